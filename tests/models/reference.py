"""The authors' numbers (tests/golden) and the tiny network that made them."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = 7


def tiny_vit(**changes) -> VisionTransformer:
    """The network of the golden files: 3 blocks, width 64, 16 patches of 8 x 8; randomly initialised."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 0}
    return VisionTransformer(**{**shape, **changes})


def layer_scale_vit() -> VisionTransformer:
    """A tiny ViT with LayerScale, as DINOv2 has it, whose scales differ from 1."""
    vit = tiny_vit(init_values=0.5)
    for block in vit.blocks:
        nn.init.uniform_(block.ls1.gamma, 0.3, 1.2)
        nn.init.uniform_(block.ls2.gamma, 0.3, 1.2)
    return vit


def read_golden(name: str) -> dict[str, dict[str, Tensor]]:
    """A golden file as {"weight": {name: tensor}, "in": ..., "out": ..., "grad": ...}."""
    parts: dict[str, dict[str, Tensor]] = {"buffer": {}}
    for key, tensor in load_file(GOLDEN / f"{name}.safetensors").items():
        part, _, rest = key.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def load_vit(vit: VisionTransformer, weights: dict[str, Tensor], prefix: str) -> None:
    """Put the authors' weights below `prefix` into a backbone."""
    vit.load_state_dict({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})


def disagreements(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> dict[str, float]:
    """Which of the named tensors differ by more than the tolerance, and by how much."""
    far = {name: (mine[name].reshape(-1) - wanted.reshape(-1)).abs().max().item() for name, wanted in theirs.items()}
    return {name: distance for name, distance in far.items() if not distance <= tolerance}


def random_pairs(pairs: int = 6, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames (B, 3, S, S) and spectrograms (B, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pairs, 3, size, size, generator=generator), torch.randn(pairs, size, size, generator=generator)
