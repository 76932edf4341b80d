"""MBT: two fully tuned Vision Transformers that exchange bottleneck tokens (Nagrani et al., NeurIPS 2021, section 3).

B pairs, N tokens of a stream, D width, T bottleneck tokens, C classes.
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from maavt.models.head import PairHead
from maavt.models.inference import FastPatches, constant, fast_blocks
from maavt.models.output import Output
from maavt.models.vit import as_images, embed, remade, run_block

BOTTLENECK_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class MbtConfig:
    """What MBT is built from, beside the backbone. `fusion_layer` counts blocks from 0; None is 8 of 12, scaled with
    the depth. At the depth or past it nothing is exchanged, and each stream keeps the tokens from its first block on:
    the version that the authors of MA-AVT timed. `background` makes background one more class."""

    classes: int
    background: bool
    multilabel: bool = False
    bottlenecks: int = 4
    fusion_layer: int | None = None

    def __post_init__(self):
        for name in ("bottlenecks", "fusion_layer"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}: {value}; expected 0 or more")


class MBT(nn.Module):
    """Frames (B, 3, S, S) and spectrograms (B, S, S), both normalised -> Output.

    All weights are tuned and stay in float32; `set_compute_type` says which type they are multiplied in.
    """

    def __init__(self, backbone: VisionTransformer, config: MbtConfig):
        super().__init__()
        depth = len(backbone.blocks)
        self.config, self.checkpointing = config, False
        self.fusion_layer = round(depth * 8 / 12) if config.fusion_layer is None else config.fusion_layer
        self.visual, self.audio = backbone, copy.deepcopy(backbone)
        self.bottlenecks = nn.Parameter(torch.randn(config.bottlenecks, backbone.embed_dim) * BOTTLENECK_STD)
        self.head = PairHead(backbone.embed_dim, config.classes, config.background, config.multilabel)
        self.compute_type = torch.float32

    def trained(self) -> list[str]:
        """Names of what is trained and kept: everything."""
        return ["visual", "audio", "bottlenecks", "head"]

    def training_only(self) -> list[str]:
        """Names of what is trained but discarded afterwards: nothing."""
        return []

    def parts(self) -> dict[str, list[str]]:
        """What learns at a rate of its own, by the name of its setting: tuned ViTs need a smaller one than the rest."""
        return {"encoder": ["visual", "audio"]}

    def set_compute_type(self, kind: torch.dtype) -> None:
        """Multiply in this type from now on; the weights stay in float32, since all of them are trained."""
        self.compute_type = kind

    def for_inference(self, kind: torch.dtype | None = None, *, pack: bool = True) -> nn.Module:
        """A copy for inference alone, in the compute type or in another; `pack` is False for torch.compile."""
        return MbtInference(self, kind or self.compute_type, pack)

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        narrow = self.compute_type != torch.float32
        with torch.autocast(frames.device.type, self.compute_type) if narrow else nullcontext():
            visual, audio = self._encode(frames, as_images(spectrograms))
        return self.head(visual, audio)

    def _encode(self, frames: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        """The CLS token of each stream after the last block, (B, D) each."""
        visual, audio = embed(self.visual, frames), embed(self.audio, sound)  # (B, N, D)
        depth, own = len(self.visual.blocks), visual.shape[1]
        enters = self.fusion_layer if self.fusion_layer < depth else 0  # the block that the bottlenecks join at
        for number, (see, hear) in enumerate(zip(self.visual.blocks, self.audio.blocks, strict=True)):
            if number == enters:
                shared = self.bottlenecks.to(visual.dtype).expand(len(frames), -1, -1)
                visual, audio = torch.cat([visual, shared], 1), torch.cat([audio, shared], 1)
            read = None if number + 1 < depth else slice(0, 1)  # of the last block the CLS tokens alone
            visual, audio = (remade(self.checkpointing, run_block, block, x, read)
                             for block, x in ((see, visual), (hear, audio)))
            if self.fusion_layer <= number < depth - 1:
                shared = (visual[:, own:] + audio[:, own:]) / 2  # equation 9: the mean of both updates
                visual, audio = torch.cat([visual[:, :own], shared], 1), torch.cat([audio[:, :own], shared], 1)
        return self.visual.norm(visual[:, 0]), self.audio.norm(audio[:, 0])


class MbtInference(nn.Module):
    """MBT for inference: weights in the compute type once, the last block for the CLS tokens alone."""

    def __init__(self, model: MBT, kind: torch.dtype, pack: bool):
        super().__init__()
        self.fusion_layer, streams = model.fusion_layer, (model.visual, model.audio)
        self.patches = nn.ModuleList(FastPatches(vit, kind, pack, channels)
                                     for vit, channels in zip(streams, (3, 1), strict=True))
        self.blocks = nn.ModuleList(fast_blocks(vit, kind, pack) for vit in streams)
        self.norms = nn.ModuleList(constant(vit.norm, kind) for vit in streams)
        cls = torch.cat([vit.cls_token + vit.pos_embed[:, :1] for vit in streams])
        self.register_buffer("cls", cls.detach().to(kind), persistent=False)  # (2, 1, D)
        self.register_buffer("bottlenecks", model.bottlenecks.detach().to(kind), persistent=False)
        self.head = constant(model.head, torch.float32)

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        visual, audio = (torch.cat([cls.expand(frames.shape[0], -1, -1), patches(x)], 1)
                         for cls, patches, x in zip(self.cls, self.patches, (frames, spectrograms[:, None]),
                                                    strict=True))
        depth, own = len(self.blocks[0]), visual.shape[1]
        enters = self.fusion_layer if self.fusion_layer < depth else 0
        for number, (see, hear) in enumerate(zip(*self.blocks, strict=True)):
            if number == enters:
                shared = self.bottlenecks.expand(frames.shape[0], -1, -1)
                visual, audio = torch.cat([visual, shared], 1), torch.cat([audio, shared], 1)
            read = 1 if see.last else None
            visual, audio = see(visual, read), hear(audio, read)
            if self.fusion_layer <= number < depth - 1:
                shared = (visual[:, own:] + audio[:, own:]) / 2
                visual[:, own:], audio[:, own:] = shared, shared
        return self.head(*(norm(x[:, 0]) for norm, x in zip(self.norms, (visual, audio), strict=True)))
