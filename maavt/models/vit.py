"""A timm Vision Transformer taken apart: what the audio-visual models share.

B batch, N tokens, D width, H heads.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maavt.models.adapters import StreamAdapters
from maavt.models.choice import choice
from maavt.models.merge import Merged


def embed_patches(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Patch tokens with their position embeddings: (B, 3, S, S) -> (B, N, D)."""
    return vit.patch_embed(images) + vit.pos_embed[:, vit.num_prefix_tokens :]


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:
    """CLS and patch tokens with their position embeddings: (B, 3, S, S) -> (B, 1 + N, D)."""
    patches = embed_patches(vit, images)
    cls = (vit.cls_token + vit.pos_embed[:, :1]).to(patches.dtype)
    return torch.cat([cls.expand(len(patches), -1, -1), patches], 1)


def as_images(spectrograms: Tensor) -> Tensor:
    """A spectrogram as three equal channels: (B, S, S) -> (B, 3, S, S)."""
    return spectrograms[:, None].expand(-1, 3, -1, -1)


def self_attention(block: Block, x: Tensor, read: slice | None = None, own: StreamAdapters | None = None) -> Tensor:
    """What the attention of a block adds to the tokens `read` (default all): (B, N, D) -> (B, read, D)."""
    return block.ls1(block.attn.proj(attend(*queries(block, x, read, own))))


def queries(block: Block, x: Tensor, read: slice | None = None, own: StreamAdapters | None = None
            ) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the tokens `read` (default all), keys and values of all: (B, N, D) -> (B, H, N, D/H) each."""
    attention, y = block.attn, block.norm1(x)
    weight, bias, width = attention.qkv.weight, attention.qkv.bias, x.shape[-1]

    def product(y: Tensor, columns: slice) -> Tensor:
        made = F.linear(y, weight[columns], bias[columns])
        return own.update(made, y, columns) if own else made

    if read is None:
        return split_heads(product(y, slice(None)), 3, attention.num_heads)
    (q,) = split_heads(product(y[:, read], slice(0, width)), 1, attention.num_heads)
    return q, *split_heads(product(y, slice(width, None)), 2, attention.num_heads)


def feed_forward(block: Block, x: Tensor, own: StreamAdapters | None = None) -> Tensor:
    """What the MLP of a block adds to (B, N, D)."""
    y = block.norm2(x)
    added = block.ls2(block.mlp(y))
    beside = own.beside_mlp(y, block.mlp.act) if own else None
    return added if beside is None else added + beside


def run_block(block: Block, x: Tensor, read: slice | None = None, own: StreamAdapters | None = None) -> Tensor:
    """One transformer block on (B, N, D). With `read`, only those tokens are computed, exactly: (B, read, D).

    `own` is what the two streams, which are then the halves of the batch, have for themselves.
    """
    x = (x if read is None else x[:, read]) + self_attention(block, x, read, own)
    return x + feed_forward(block, x, own)


def streams(x: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of a batch, visual and audio: (2 B, ...) -> 2 times (B, ...). Unlike chunk(), torch.export follows it
    for any B."""
    return x.unflatten(0, (2, -1)).unbind(0)


def both(x: Tensor) -> Tensor:
    """What is read of the picture beside what is read of the sound: (2 B, ..., H) -> (B, ..., 2 H)."""
    return torch.cat(streams(x), -1)


def run_merging(block: Block, x: Tensor, merged: Merged | None, most: int = 0, read: slice | None = None,
                own: StreamAdapters | None = None) -> tuple[Tensor, Merged | None]:
    """run_block that knows which patches have become one, and merges `most` more of them between attention and MLP."""
    if merged is None:
        return run_block(block, x, read, own), None
    q, k, v = queries(block, x, read, own)
    added = block.ls1(block.attn.proj(attend(q, k, v, merged.weights(x.shape[1], x.dtype))))
    x, merged = merged.merge((x if read is None else x[:, read]) + added, k, most)
    return x + feed_forward(block, x, own), merged


def remade(wanted: bool, part: Callable, *arguments, **named):
    """What `part` returns; where `wanted`, its activations are not kept for the way back but made again there: less
    memory for a third more time (Chen et al., 2016). There must be nothing random in it."""
    if wanted and torch.is_grad_enabled():
        return checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False, **named)
    return part(*arguments, **named)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts D) -> parts times (B, H, N, D/H)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attend(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None = None) -> Tensor:
    """Softmax attention of (B, H, N, D/H), with the kernel that is faster here: (B, N, D). `weights` (B, 1, 1, N) are
    added to the scores."""
    kernel = fused_attention if prefers_fused(q) else plain_attention
    return kernel(q, k, v, weights).transpose(1, 2).flatten(2)


def prefers_fused(q: Tensor) -> bool:
    """Whether the fused kernel is the faster one for these queries: on a GPU always. Of CPUs with bf16 one took 0.65
    of the plain time forwards and 2.4 times it with the way back, another 1.5 times it forwards: so it is measured."""
    ways = choice(q.dtype, q.device)
    return ways.fused_training if torch.is_grad_enabled() and q.requires_grad else ways.fused_inference


def fused_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None = None) -> Tensor:
    """Attention by one kernel."""
    return F.scaled_dot_product_attention(q, k, v, weights)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | None = None) -> Tensor:
    """Attention by matrix products. Copying the heads together first pays: strided products are slower still."""
    q, k, v = (part.contiguous() for part in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return (scores if weights is None else scores + weights).softmax(-1) @ v


def attention_scores(block: Block, x: Tensor, query: int, own: StreamAdapters | None = None) -> Tensor:
    """Scores before the softmax from token `query` to all, averaged over heads: (B, N, D) -> (B, N)."""
    heads, y = block.attn.num_heads, block.norm1(x)
    made = block.attn.qkv(y)
    q, k, _ = split_heads(own.update(made, y) if own else made, 3, heads)
    return (q[:, :, query : query + 1] * q.shape[-1] ** -0.5 @ k.mT)[:, :, 0].mean(1)


def check_plain(vit: VisionTransformer) -> None:
    """Raises ValueError for a Vision Transformer with parts that the code here does not know, and names them."""
    strange = [name for name in ("norm_pre", "fc_norm") if not isinstance(getattr(vit, name), nn.Identity)]
    if vit.pos_embed.shape[1] != vit.patch_embed.num_patches + 1:
        strange.append("pos_embed without a place for the CLS token")
    for block in vit.blocks:
        if type(block) is not Block or type(block.attn) is not Attention:
            strange.append(f"{type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}")
            continue
        parts = (block.attn.q_norm, block.attn.k_norm, block.attn.norm, getattr(block.mlp, "norm", nn.Identity()))
        if not all(isinstance(part, nn.Identity) for part in parts) or block.attn.gate or block.attn.qkv.bias is None:
            strange.append("attention or MLP with norms, gates, or without bias")
    if strange:
        raise ValueError(f"the backbone is no plain Vision Transformer: it has {', '.join(dict.fromkeys(strange))}")


def shorten(vit: VisionTransformer, share: float) -> None:
    """Keep this share of the blocks, from the first on, and at least one. The norm behind them suits the last of all
    alone: behind another block it is one without weights. Raises ValueError for what is no share."""
    if not 0 < share <= 1:
        raise ValueError(f"depth: {share}; expected more than 0 and at most 1")
    kept = max(1, round(len(vit.blocks) * share))
    if kept < len(vit.blocks):
        vit.blocks = vit.blocks[:kept]
        vit.norm = nn.LayerNorm(vit.embed_dim, eps=vit.norm.eps, elementwise_affine=False)


def train_only(model: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """Freeze everything but the parameters under the declared names ('head' covers 'head.weight'); return those.

    Raises ValueError when a declared name is in no parameter of the model.
    """
    names = list(names)
    found: set[str] = set()
    trained = []
    for name, parameter in model.named_parameters():
        owners = [owner for owner in names if under(name, [owner])]
        found.update(owners)
        parameter.requires_grad_(bool(owners))
        if owners:
            trained.append(parameter)
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{type(model).__name__} declares trained parameters that it does not have: {missing}")
    return trained


def under(name: str, owners: Iterable[str]) -> bool:
    """Whether a parameter is one of those that `owners` name: 'head.weight' is under 'head'."""
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError when `heads` attention heads do not divide the width."""
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide the width {width}")


def count(parameters: Sequence[nn.Parameter] | Iterable[nn.Parameter]) -> int:
    """How many numbers the parameters hold."""
    return sum(parameter.numel() for parameter in parameters)
