"""LAVISH: adapters that join two streams through a frozen Vision Transformer (Lin et al., CVPR 2023).

As the authors of MA-AVT built it for plain ViTs. B pairs, N tokens of a stream, D width, T latents, C classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from maavt.models.head import PairHead
from maavt.models.inference import FastPatches, Linear, constant, fast_blocks
from maavt.models.output import Output
from maavt.models.vit import as_images, embed, feed_forward, remade, self_attention, streams

TABLE_7 = {192: (16, 32, False), 384: (8, 15, False), 768: (8, 2, True), 1024: (8, 2, True)}
PLACES = ("visual_attention", "audio_attention", "visual_mlp", "audio_mlp")


@dataclass(frozen=True, kw_only=True)
class LavishConfig:
    """What LAVISH is built from, beside the backbone. None takes what gives Table 7's parameters at the backbone's
    width; `expansion` 3 makes LAVISH*, whose bottlenecks hold two more convolutions, 3 times as wide between them.
    `background` makes background one more class, as on AVE."""

    classes: int
    background: bool
    multilabel: bool = False
    reduction: int | None = None
    latents: int | None = None
    batch_norm: bool | None = None
    groups: int = 2
    expansion: int = 0

    def __post_init__(self):
        for name, least in (("reduction", 1), ("latents", 1), ("groups", 1), ("expansion", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: {value}; expected {least} or more")


class GroupedLinear(nn.Module):
    """A 1 x 1 convolution in groups, without bias: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as torch does for a convolution

    def dense(self) -> Tensor:
        """(outputs, inputs): one matrix, faster than the groups in turn."""
        return torch.block_diag(*self.weight.chunk(self.groups)) if self.groups > 1 else self.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense().to(x.dtype))


class Adapter(nn.Module):
    """Latents gather the other stream, this stream gathers the latents, then a gated bottleneck.

    (B, N, D) and the other stream (B, M, D) -> what is added to this stream (B, N, D). It begins at zero: `gate`.
    """

    def __init__(self, width: int, config: LavishConfig):
        super().__init__()
        reduction, latents, batch_norm = (
            default if value is None else value
            for value, default in zip((config.reduction, config.latents, config.batch_norm),
                                      TABLE_7.get(width, (8, 2, True)), strict=True)
        )
        narrow = width // reduction
        if width % config.groups or not narrow or narrow % config.groups:
            raise ValueError(f"reduction: {reduction} leaves {narrow} of {width} channels in {config.groups} groups; "
                             "expected groups that divide both widths")
        self.latents = nn.Parameter(torch.rand(latents, width))
        self.gate, self.gate_latents = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.gate_gathered = nn.Parameter(torch.ones(1))
        self.norm_before, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.down = GroupedLinear(width, narrow, config.groups)
        self.up = GroupedLinear(narrow, width, config.groups)
        self.deeper = nn.ModuleList()
        if config.expansion:
            wide = config.expansion * narrow
            self.deeper.extend([GroupedLinear(narrow, wide), GroupedLinear(wide, narrow)])
        self.batch_norm_down = nn.BatchNorm1d(narrow) if batch_norm else None
        self.batch_norm_up = nn.BatchNorm1d(width) if batch_norm else None

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        kind = x.dtype
        latents = self.latents.to(kind).expand(len(x), -1, -1)  # (B, T, D)
        latents = latents + self.gate_gathered.to(kind) * ((latents @ other.mT).softmax(-1) @ other)
        x = x + self.gate_latents.to(kind) * ((x @ latents.mT).softmax(-1) @ latents)
        x = _layer_norm(self.norm_before, x)
        x = _batch_norm(self.batch_norm_down, self.down(x)).relu()
        for layer in self.deeper:
            x = layer(x).relu()
        x = _batch_norm(self.batch_norm_up, self.up(x))
        return self.gate.to(kind) * _layer_norm(self.norm_after, x)


class LAVISH(nn.Module):
    """Frames (B, 3, S, S) and spectrograms (B, S, S), both normalised -> Output.

    The backbone may be kept in a smaller type (bf16): tokens and adapters run in it, from float32 weights.
    """

    def __init__(self, backbone: VisionTransformer, config: LavishConfig):
        super().__init__()
        width = backbone.embed_dim
        self.config, self.backbone, self.checkpointing = config, backbone, False
        self.adapters = nn.ModuleDict({
            place: nn.ModuleList(Adapter(width, config) for _ in backbone.blocks) for place in PLACES
        })
        self.head = PairHead(width, config.classes, config.background, config.multilabel)

    def trained(self) -> list[str]:
        """Names of what is trained and kept: adapters and head."""
        return ["adapters", "head"]

    def training_only(self) -> list[str]:
        """Names of what is trained but discarded afterwards: nothing."""
        return []

    def parts(self) -> dict[str, list[str]]:
        """What learns at a rate of its own, by the name of its setting."""
        return {"adapter": ["adapters"]}

    def set_compute_type(self, kind: torch.dtype) -> None:
        """Keep the frozen weights in the type that they are multiplied in."""
        self.backbone.to(kind)

    def for_inference(self, kind: torch.dtype | None = None, *, pack: bool = True) -> nn.Module:
        """A copy for inference alone, in the compute type or in another; `pack` is False for torch.compile."""
        return LavishInference(self, kind or self.backbone.patch_embed.proj.weight.dtype, pack)

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        kind, again = self.backbone.patch_embed.proj.weight.dtype, self.checkpointing  # not adapters: batch norms count
        x = embed(self.backbone, torch.cat([frames.to(kind), as_images(spectrograms).to(kind)]))  # visual, then audio
        for number, block in enumerate(self.backbone.blocks):
            x = x + remade(again, self_attention, block, x) + self._adapt("attention", number, x, x)
            last = number + 1 == len(self.backbone.blocks)
            read = x[:, :1] if last and not self._counts_tokens() else x  # of the last block the CLS tokens alone
            x = read + remade(again, feed_forward, block, read) + self._adapt("mlp", number, read, x)
        return self.head(*streams(self.backbone.norm(x[:, 0])))

    def _counts_tokens(self) -> bool:
        """Whether what becomes of one token hangs on all others of the batch: batch norms do so in training."""
        return self.training and self.adapters[PLACES[0]][0].batch_norm_down is not None

    def _adapt(self, place: str, number: int, x: Tensor, other: Tensor) -> Tensor:
        """What the adapters of one place add to `x`; `other` is what the streams look at crosswise."""
        (visual, audio), (seen, heard) = streams(x), streams(other)
        return torch.cat([self.adapters[f"visual_{place}"][number](visual, heard),
                          self.adapters[f"audio_{place}"][number](audio, seen)])


class FastAdapter(nn.Module):
    """An adapter for inference: norms, batch norms and gate folded into the matrices around them."""

    def __init__(self, adapter: Adapter, kind: torch.dtype, pack: bool):
        super().__init__()
        before, after = adapter.norm_before, adapter.norm_after
        down = adapter.down.dense()
        bias = down @ before.bias  # the affine part of the norm before
        down = down * before.weight
        down, bias = _fold(adapter.batch_norm_down, down, bias)
        up, up_bias = _fold(adapter.batch_norm_up, adapter.up.dense(), None)
        self.shape, self.eps = before.normalized_shape, before.eps
        self.layers = nn.ModuleList([
            Linear(down, bias, kind, pack),
            *(Linear(layer.dense(), None, kind, pack) for layer in adapter.deeper),
            Linear(up, up_bias, kind, pack),
        ])
        for name, tensor in (("latents", adapter.latents), ("gate_gathered", adapter.gate_gathered),
                             ("gate_latents", adapter.gate_latents), ("weight", adapter.gate * after.weight),
                             ("bias", adapter.gate * after.bias)):
            self.register_buffer(name, tensor.detach().to(kind), persistent=False)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """What is added to (B, N, D), from the other stream (B, M, D)."""
        latents = torch.matmul(other, self.latents.T).mT.softmax(-1) @ other  # (B, T, D)
        latents = torch.addcmul(self.latents, self.gate_gathered, latents)
        x = torch.addcmul(x, self.gate_latents, (x @ latents.mT).softmax(-1) @ latents)
        x = F.layer_norm(x, self.shape, eps=self.eps)
        for layer in self.layers[:-1]:
            x = layer(x, "relu")
        return F.layer_norm(self.layers[-1](x), self.shape, self.weight, self.bias, self.eps)


class LavishInference(nn.Module):
    """LAVISH for inference: both streams in one pass through the ViT; of the last block, whose attention the adapters
    look at, only the MLP is computed for the CLS tokens alone."""

    def __init__(self, model: LAVISH, kind: torch.dtype, pack: bool):
        super().__init__()
        vit = model.backbone
        self.see, self.hear = FastPatches(vit, kind, pack, channels=3), FastPatches(vit, kind, pack, channels=1)
        self.blocks, self.norm = fast_blocks(vit, kind, pack, shorten=False), constant(vit.norm, kind)
        self.adapters = nn.ModuleDict({
            place: nn.ModuleList(FastAdapter(adapter, kind, pack) for adapter in model.adapters[place])
            for place in PLACES
        })
        self.register_buffer("cls", (vit.cls_token + vit.pos_embed[:, :1]).detach().to(kind), persistent=False)
        self.head = constant(model.head, torch.float32)

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        x = torch.cat([self.see(frames), self.hear(spectrograms[:, None])])
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            x = block.attention(x, add=x).add_(self._adapt("attention", number, x, x))
            read = x if number < last else x[:, :1]
            x = block.mlp(read, add=read).add_(self._adapt("mlp", number, read, x))
        return self.head(*streams(self.norm(x[:, 0])))

    _adapt = LAVISH._adapt


def _fold(norm: nn.BatchNorm1d | None, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A matrix (outputs, inputs) and its bias with the batch norm after it folded in, as it evaluates."""
    if norm is None:
        return weight, bias
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = torch.zeros_like(scale) if bias is None else bias
    return weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def _batch_norm(norm: nn.BatchNorm1d | None, x: Tensor) -> Tensor:
    """Over all tokens of all pairs, in float32: (B, N, D) -> (B, N, D)."""
    return x if norm is None else norm(x.flatten(0, 1).float()).to(x.dtype).view_as(x)
