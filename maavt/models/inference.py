"""A Vision Transformer for inference alone: constants folded, weights in the compute type and laid out for it.

Equal to the form that is trained, but for rounding. B batch, N tokens, D width, H heads.
"""

import copy
import math

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from maavt.models.adapters import StreamAdapters
from maavt.models.choice import choice
from maavt.models.merge import Merged
from maavt.models.vit import attend, split_heads

IN_PLACE = {"relu": torch.relu_, "gelu": torch.ops.aten.gelu_}
ROWS = 4096  # tokens of a batch that oneDNN lays weights out for; other batches work as well
NARROW = 32  # inputs or outputs: with fewer, rounding what comes in takes longer than int8 saves
TINY = 1e-12


class Linear(nn.Module):
    """A linear layer of constants. With `pack` the weight lies as oneDNN multiplies it where that is faster here (a
    matter of the CPU and the type), or in int8 where that is wished for; a compiled graph does that itself and cannot
    read a packed one."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: torch.dtype, pack: bool):
        super().__init__()
        self.packed = self.rounded = None
        self.register_buffer("bias", None if bias is None else bias.detach().to(kind), persistent=False)
        self.register_buffer("weight", weight.detach().to(kind).contiguous(), persistent=False)
        ways = choice(kind, weight.device)
        if pack and ways.int8 and min(weight.shape) >= NARROW:
            self.round()
        elif pack and ways.pack:
            self.lay_out()

    def lay_out(self) -> None:
        """Lay the weight out for oneDNN, once, where it knows the type."""
        if torch.backends.mkldnn.is_available() and (self.weight.dtype == torch.float32 or multiplies_bf16()):
            self.packed, self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, ROWS), None

    def round(self) -> None:
        """Keep the weight in int8, each output in 127 steps of its own to either side."""
        step = self.weight.abs().amax(1).clamp_min(TINY) / 127
        whole = (self.weight / step[:, None]).round().to(torch.int8)
        self.rounded, self.weight = torch.ops.onednn.qlinear_prepack(whole, [ROWS, whole.shape[1]]), None
        self.step, self.zero = step, torch.zeros(len(step), dtype=torch.long)

    def multiply_rounded(self, x: Tensor, act: str, add: Tensor | None) -> Tensor:
        """forward() in int8: what comes in is rounded as it comes, in 255 steps from the least to the most of it."""
        least, most = (float(end) for end in x.aminmax())
        step = max(max(most, 0) - min(least, 0), TINY) / 255
        nought = int(-min(least, 0) / step) if math.isfinite(step) else 0  # else all that comes out is no number
        x = torch.add(torch.tensor(nought + 0.5), x, alpha=1 / step).to(torch.uint8).contiguous()
        rest = (step, nought, self.rounded, self.step, self.zero)
        if add is not None:
            add = add.contiguous()  # it reads as if it were
            return torch.ops.onednn.qlinear_pointwise(x, *rest, add, self.bias, 1, 0, torch.float32, 1, 0, "add", 1,
                                                      "none", [], "")
        return torch.ops.onednn.qlinear_pointwise(x, *rest, self.bias, 1, 0, torch.float32, act, [], "none")

    def forward(self, x: Tensor, act: str = "none", add: Tensor | None = None) -> Tensor:
        """(..., inputs) -> (..., outputs), through `act` (none, relu, or gelu, the exact one) or with `add` on top.

        oneDNN does either within the product, without a second pass over the memory; otherwise it is done in place.
        """
        if self.rounded is not None:
            return self.multiply_rounded(x, act, add)
        if self.packed is None and add is not None:  # the product is added to what is there already
            y = add + self.bias
            return y.flatten(0, -2).addmm_(x.flatten(0, -2), self.weight.T).view_as(y)
        if self.packed is None:
            y = F.linear(x, self.weight, self.bias)
            return y if act == "none" else IN_PLACE[act](y)
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.packed, self.bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, act, [], "none")


class FastBlock(nn.Module):
    """A timm block with LayerScale folded into its weights; `last` is read at its first tokens alone.

    What two streams have of their own (`own`) widens its matrices, so that both halves of the batch still go through
    one product: more inputs of qkv, more hidden numbers of the MLP, those of the other stream set to zero.
    """

    def __init__(self, block: Block, kind: torch.dtype, pack: bool, last: bool = False,
                 own: StreamAdapters | None = None):
        super().__init__()
        attention, mlp = block.attn, block.mlp
        self.heads, self.last = attention.num_heads, last
        self.norm1, self.norm2 = constant(block.norm1, kind), constant(block.norm2, kind)
        weight, bias, width = attention.qkv.weight, attention.qkv.bias, attention.qkv.in_features
        self.rank, self.bottleneck = (own.rank, own.bottleneck) if own else (0, 0)
        self.low = None
        if self.rank:
            self.low = Linear(own.low.mT.flatten(0, 1), None, kind, pack)  # to (2 R)
            weight = torch.cat([weight.float(), own.high.flatten(0, 1).T], 1)  # (3 D, D + 2 R)
        self.qkv = None if last else Linear(weight, bias, kind, pack)
        self.q = Linear(weight[:width], bias[:width], kind, pack) if last else None
        self.kv = Linear(weight[width:], bias[width:], kind, pack) if last else None
        self.proj = _scaled(attention.proj, block.ls1, kind, pack)
        fc1, fc1_bias = mlp.fc1.weight, mlp.fc1.bias
        if self.bottleneck:
            fc1 = torch.cat([fc1.float(), *own.down.mT])  # (hidden + 2 W, D)
            fc1_bias = torch.cat([fc1_bias.float(), own.bias.flatten()])
        self.fc1 = Linear(fc1, fc1_bias, kind, pack)
        exact = type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
        self.within, self.act = ("gelu", nn.Identity()) if exact else ("none", mlp.act)
        self.fc2 = _scaled(mlp.fc2, block.ls2, kind, pack, own.up.flatten(0, 1).T if self.bottleneck else None)

    def forward(self, x: Tensor, read: int | None = None, merged: Merged | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, read, D) from the last block; `merged` are patches that are one by now."""
        weights = merged and merged.weights(x.shape[1], x.dtype)
        x = self.proj(attend(*self.queries(x, read), weights), add=x[:, :read])
        return self.mlp(x, add=x)

    def merging(self, x: Tensor, merged: Merged, most: int) -> tuple[Tensor, Merged]:
        """The same, with `most` more patches merged between attention and MLP."""
        q, k, v = self.queries(x)
        x = self.proj(attend(q, k, v, merged.weights(x.shape[1], x.dtype)), add=x)
        x, merged = merged.merge(x, k, most)
        return self.mlp(x, add=x), merged

    def attention(self, x: Tensor, read: int | None = None, add: Tensor | None = None) -> Tensor:
        """What the attention adds to the first `read` tokens (default all), with `add` on top."""
        return self.proj(attend(*self.queries(x, read)), add=add)

    def queries(self, x: Tensor, read: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first `read` tokens (default all), keys and values of all: (B, H, N, D/H) each."""
        y = self.norm1(x)
        if self.low is not None:
            y = torch.cat([y, own_only(self.low(y), self.rank)], -1)
        if self.last:
            return *split_heads(self.q(y[:, :read]), 1, self.heads), *split_heads(self.kv(y), 2, self.heads)
        return split_heads(self.qkv(y), 3, self.heads)

    def mlp(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """What the MLP adds, with `add` on top."""
        hidden = self.act(self.fc1(self.norm2(x), self.within))
        return self.fc2(own_only(hidden, self.bottleneck) if self.bottleneck else hidden, add=add)


class FastPatches(nn.Module):
    """Patch tokens with their position embeddings, by one matrix product: (B, channels, S, S) -> (B, N, D).

    One channel (a spectrogram) stands for three equal ones; their weights are summed.
    """

    def __init__(self, vit: VisionTransformer, kind: torch.dtype, pack: bool, channels: int):
        super().__init__()
        weight = vit.patch_embed.proj.weight  # (D, 3, P, P)
        weight = weight.float().sum(1, keepdim=True) if channels == 1 else weight
        self.size, self.kind = vit.patch_embed.patch_size[0], kind
        self.proj = Linear(weight.flatten(1), vit.patch_embed.proj.bias, kind, pack)
        self.register_buffer("position", vit.pos_embed[:, vit.num_prefix_tokens :].detach().to(kind), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        size = self.size
        patches = images.to(self.kind).unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, C, rows, P, columns, P)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C P P)
        return self.proj(patches).add_(self.position)


def own_only(x: Tensor, each: int) -> Tensor:
    """The last 2 `each` numbers of (2 B, N, F) are one half for each stream: set the other stream's to zero, in place.
    """
    half, end = x.shape[0] // 2, x.shape[-1]
    x[:half, :, end - each :].zero_()
    x[half:, :, end - 2 * each : end - each].zero_()
    return x


def fast_blocks(vit: VisionTransformer, kind: torch.dtype, pack: bool, shorten: bool = True,
                own: nn.ModuleList | None = None) -> nn.ModuleList:
    """The blocks of a ViT; with `shorten` the last one is made for reading its first tokens alone."""
    last = len(vit.blocks) - 1
    return nn.ModuleList(FastBlock(block, kind, pack, shorten and number == last, own[number] if own else None)
                         for number, block in enumerate(vit.blocks))


def constant(module: nn.Module, kind: torch.dtype) -> nn.Module:
    """A copy of a module in the compute type that needs no gradients."""
    return copy.deepcopy(module).to(kind).eval().requires_grad_(False)


def multiplies_bf16() -> bool:
    """Whether oneDNN has products of bf16 for this CPU, be they slow: an old one cannot even lay the weights out."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _scaled(linear: nn.Linear, scale: nn.Module, kind: torch.dtype, pack: bool, more: Tensor | None = None) -> Linear:
    """A linear layer with the LayerScale after it (where there is one) folded in; `more` are further columns."""
    weight, bias = linear.weight, linear.bias
    if not isinstance(scale, nn.Identity):
        weight, bias = weight.float() * scale.gamma[:, None].float(), bias.float() * scale.gamma.float()
    weight = weight if more is None else torch.cat([weight.float(), more], 1)
    return Linear(weight, bias, kind, pack)
