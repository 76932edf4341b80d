"""The linear probe: what a linear head makes of the frozen Vision Transformer's CLS tokens of both streams.

No audio-visual model at all, so that a comparison shows what one adds. B pairs, N tokens, D width, C classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from maavt.models.head import Head
from maavt.models.inference import FastPatches, constant, fast_blocks
from maavt.models.output import Output
from maavt.models.vit import as_images, both, embed, run_block


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """What the probe is built from, beside the backbone; `background` makes background one more class."""

    classes: int
    background: bool
    multilabel: bool = False


class LinearHead(Head):
    """The CLS tokens of both streams, each normalised, through one layer: (2 B, D), visual then audio -> Output."""

    def __init__(self, width: int, config: LinearConfig):
        super().__init__([width], config.classes + config.background, standardise=True)
        self.background, self.multilabel = config.background, config.multilabel

    def begin(self, cls: Tensor, absent: Tensor) -> None:
        super().begin(self._read(cls), self._read(absent)[0])

    def forward(self, cls: Tensor) -> Output:
        logits = super().forward(self._read(cls))
        return Output(logits[:, :-1], logits[:, -1], one_softmax=True) if self.background else Output(
            logits, multilabel=self.multilabel)

    def _read(self, cls: Tensor) -> Tensor:
        return both(F.layer_norm(cls.float(), cls.shape[-1:]))


class LinearProbe(nn.Module):
    """Frames (B, 3, S, S) and spectrograms (B, S, S), both normalised -> Output. No gradient goes through the ViT."""

    def __init__(self, backbone: VisionTransformer, config: LinearConfig):
        super().__init__()
        self.config, self.backbone = config, backbone
        self.head = LinearHead(backbone.embed_dim, config)

    def trained(self) -> list[str]:
        """Names of what is trained and kept: the head."""
        return ["head"]

    def training_only(self) -> list[str]:
        """Names of what is trained but discarded afterwards: nothing."""
        return []

    def parts(self) -> dict[str, list[str]]:
        """What learns at a rate of its own, by the name of its setting."""
        return {"head": ["head"]}

    def set_compute_type(self, kind: torch.dtype) -> None:
        """Keep the frozen weights in the type that they are multiplied in."""
        self.backbone.to(kind)

    def for_inference(self, kind: torch.dtype | None = None, *, pack: bool = True) -> nn.Module:
        """A copy for inference alone, in the compute type or in another; `pack` is False for torch.compile."""
        return LinearInference(self, kind or self.backbone.patch_embed.proj.weight.dtype, pack)

    @torch.no_grad()
    def begin(self, frames: Tensor, spectrograms: Tensor, absent: tuple[Tensor, Tensor]) -> None:
        """Before training, look at some pairs (B, ...) to train on, and at what stands in for an absent picture and an
        absent sound (1, ...): what the head reads is standardised by them."""
        self.head.begin(self._cls(frames, spectrograms), self._cls(*absent))

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        return self.head(self._cls(frames, spectrograms))

    @torch.no_grad()
    def _cls(self, frames: Tensor, spectrograms: Tensor) -> Tensor:
        kind = self.backbone.patch_embed.proj.weight.dtype
        x = embed(self.backbone, torch.cat([frames.to(kind), as_images(spectrograms).to(kind)]))
        *blocks, last = self.backbone.blocks
        for block in blocks:
            x = run_block(block, x)
        return self.backbone.norm(run_block(last, x, slice(0, 1))[:, 0])


class LinearInference(nn.Module):
    """The probe for inference: both streams in one pass, of the last block the CLS tokens alone."""

    def __init__(self, model: LinearProbe, kind: torch.dtype, pack: bool):
        super().__init__()
        vit = model.backbone
        self.see, self.hear = FastPatches(vit, kind, pack, channels=3), FastPatches(vit, kind, pack, channels=1)
        self.blocks, self.norm = fast_blocks(vit, kind, pack), constant(vit.norm, kind)
        self.register_buffer("cls", (vit.cls_token + vit.pos_embed[:, :1]).detach().to(kind), persistent=False)
        self.head = constant(model.head, torch.float32)

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        return self.decide(self.encode(frames, spectrograms))

    def encode(self, frames: Tensor, spectrograms: Tensor) -> Tensor:
        """Each stream by itself: (2 B, D), visual then audio."""
        x = torch.cat([self.see(frames), self.hear(spectrograms[:, None])])
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, 1 if block.last else None)
        return self.norm(x[:, 0])

    def decide(self, cls: Tensor) -> Output:
        """What the head says of both streams, as encode() gives them."""
        return self.head(cls)
