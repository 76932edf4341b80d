"""A timm Vision Transformer taken apart: what the audio-visual models share.

B batch, N tokens, D width, H heads.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


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


def attend_all(block: Block, x: Tensor) -> Tensor:
    """What the attention of a block adds to (B, N, D)."""
    return block.ls1(block.attn(block.norm1(x)))


def feed_forward(block: Block, x: Tensor) -> Tensor:
    """What the MLP of a block adds to (B, N, D)."""
    return block.ls2(block.mlp(block.norm2(x)))


def run_block(block: Block, x: Tensor, read: slice | None = None) -> Tensor:
    """One transformer block on (B, N, D). With `read`, only those tokens are computed, exactly: (B, read, D)."""
    if read is None:
        return block(x)
    attention, y = block.attn, block.norm1(x)
    heads = attention.num_heads
    weight, bias = attention.qkv.weight, attention.qkv.bias
    width = x.shape[-1]
    q = F.linear(y[:, read], weight[:width], bias[:width])  # (B, read, D)
    kv = F.linear(y, weight[width:], bias[width:])  # (B, N, 2 D)
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, read, D/H)
    k, v = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D/H) each
    out = attend(attention.q_norm(q), attention.k_norm(k), v, fused=attention.fused_attn)
    x = x[:, read] + block.ls1(attention.proj(out.transpose(1, 2).flatten(2)))
    return x + feed_forward(block, x)


def attend(q: Tensor, k: Tensor, v: Tensor, *, fused: bool) -> Tensor:
    """Softmax attention (B, H, N, D/H), by the fused kernel or by plain matrix products."""
    if fused:
        return F.scaled_dot_product_attention(q, k, v)
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def attention_scores(block: Block, x: Tensor, query: int) -> Tensor:
    """Scores before the softmax from token `query` to all, averaged over heads: (B, N, D) -> (B, N)."""
    attention, width = block.attn, x.shape[-1]
    q, k, _ = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    q, k = attention.q_norm(q[:, query]), attention.k_norm(k)  # (B, H, D/H), (B, N, H, D/H)
    scale = (width // attention.num_heads) ** -0.5
    return torch.einsum("bhd,bnhd->bhn", q * scale, k).mean(1)


def use_fused_attention(model: nn.Module, fused: bool) -> None:
    """Choose the attention kernel of every block."""
    for module in model.modules():
        if isinstance(module, Block):
            module.attn.fused_attn = fused


def train_only(model: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """Freeze everything but the parameters under the declared names ('head' covers 'head.weight'); return those.

    Raises ValueError when a declared name is in no parameter of the model.
    """
    names = list(names)
    found: set[str] = set()
    trained = []
    for name, parameter in model.named_parameters():
        owners = [owner for owner in names if name == owner or name.startswith(f"{owner}.")]
        found.update(owners)
        parameter.requires_grad_(bool(owners))
        if owners:
            trained.append(parameter)
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{type(model).__name__} declares trained parameters that it does not have: {missing}")
    return trained


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError when `heads` attention heads do not divide the width."""
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide the width {width}")


def count(parameters: Sequence[nn.Parameter] | Iterable[nn.Parameter]) -> int:
    """How many numbers the parameters hold."""
    return sum(parameter.numel() for parameter in parameters)
