"""What the benchmark compares with: a ViT as a timm user runs it, MA-AVT written plainly, and its products alone.

B pairs, N tokens of a stream, D width, H heads, K blocks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from maavt.models.inference import Linear
from maavt.models.maavt import MAAVT
from maavt.models.output import Output
from maavt.models.vit import as_images, embed_patches


class BackboneFloor(nn.Module):
    """Two forward passes of timm's own ViT under autocast: what both streams cost without any audio-visual model."""

    def __init__(self, vit: VisionTransformer, kind: torch.dtype):
        super().__init__()
        self.vit, self.kind = vit, kind

    def forward(self, frames: Tensor, spectrograms: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(frames.device.type, self.kind, enabled=self.kind != torch.float32):
            return self.vit(frames), self.vit(as_images(spectrograms))


class PlainMAAVT(nn.Module):
    """MA-AVT written plainly: autocast over float32 weights, timm's blocks, one stream after the other, nothing folded
    or left out. The same numbers as the model that it wraps."""

    def __init__(self, model: MAAVT, kind: torch.dtype):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        model, config = self.model, self.model.config
        with torch.autocast(frames.device.type, self.kind, enabled=self.kind != torch.float32):
            visual, see = self._stream(frames, 0, model.visual_projectors)
            audio, hear = self._stream(as_images(spectrograms), 1, model.audio_projectors)
        summary = torch.cat([visual, audio], -1).float()  # (B, 1 or 2, 2 D)
        return Output(model.head(summary[:, 0]),
                      model.background_head(summary[:, 1])[:, 0] if config.background else None,
                      list(zip(see, hear, strict=True)) or None)

    def _stream(self, images: Tensor, stream: int, projectors: nn.ModuleList) -> tuple[Tensor, list[Tensor]]:
        """The class (and background) token of one stream, and its projected shared prompts of every block."""
        model, vit, background = self.model, self.model.backbone, self.model.config.background
        learned = model.learned_tokens()[stream].expand(len(images), -1, -1)
        x = torch.cat([learned[:, :1], embed_patches(vit, images), learned[:, 1:]], 1)
        projections, compared = [], self.training and len(projectors)
        patches = x.shape[1] - learned.shape[1]
        for number, block in enumerate(vit.blocks):
            x = block(x)
            if compared and (len(projectors) > 1 or number + 1 == len(vit.blocks)):
                shared = x[:, -model.config.tokens :].float().mean(1)
                projections.append(F.normalize(projectors[min(number, len(projectors) - 1)](shared).float(), dim=-1))
        x = vit.norm(x)
        return torch.cat([x[:, :1], x[:, 1 + patches : 2 + patches]], 1) if background else x[:, :1], projections


def matmul_limit(model: MAAVT, batch: int, kind: torch.dtype, device: torch.device) -> Callable[[], None]:
    """The matrix products of MA-AVT's inference and nothing else, on operands that lie ready; calling it runs them.

    The shapes are those of `MaavtInference`, its shortened last block included.
    """
    vit = model.backbone
    width, heads, depth = vit.embed_dim, vit.blocks[0].attn.num_heads, len(vit.blocks)
    hidden = vit.blocks[0].mlp.fc1.out_features
    patches, pixels = vit.patch_embed.num_patches, vit.patch_embed.patch_size[0] ** 2
    streams, tokens, read = 2 * batch, patches + model.learned_tokens().shape[1], 1 + model.config.background

    def linear(rows: int, inputs: int, outputs: int, times: int) -> list[Callable]:
        weight = torch.randn(outputs, inputs, device=device) * inputs**-0.5
        layer, x = Linear(weight, torch.zeros(outputs, device=device), kind, pack=True), \
            torch.randn(rows, inputs, device=device).to(kind)
        return [lambda: layer(x)] * times

    def attention(queries: int, times: int) -> list[Callable]:
        q, k, v = (torch.randn(streams * heads, count, width // heads, device=device).to(kind)
                   for count in (queries, tokens, tokens))
        scores = q @ k.mT
        return [lambda: q @ k.mT, lambda: scores @ v] * times

    every, last = streams * tokens, streams * read
    products = [
        *linear(batch * patches, 3 * pixels, width, 1), *linear(batch * patches, pixels, width, 1),
        *linear(every, width, 3 * width, depth - 1), *attention(tokens, depth - 1),
        *linear(every, width, width, depth - 1), *linear(every, width, hidden, depth - 1),
        *linear(every, hidden, width, depth - 1),
        *linear(every, width, 2 * width, 1), *linear(last, width, width, 2), *attention(read, 1),
        *linear(last, width, hidden, 1), *linear(last, hidden, width, 1),
    ]

    def run() -> None:
        for product in products:
            product()

    return run
