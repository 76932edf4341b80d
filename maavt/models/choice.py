"""How a number type is computed here, where there is more than one way. All ways say the same but for rounding."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Choice:
    """Attention by one kernel (`fused`), or by matrix products; for inference, weights laid out as oneDNN multiplies
    them (`pack`), or as they are, or rounded to eight bits and multiplied in them (`int8`)."""

    fused_inference: bool = True
    fused_training: bool = True
    pack: bool = False
    int8: bool = False


CHOSEN: dict[torch.dtype, Choice] = {}  # of this CPU, as it was measured (training/machine.py)


def choice(kind: torch.dtype, device: torch.device) -> Choice:
    """What to take for this number type; on a GPU there is nothing to choose."""
    return CHOSEN.get(kind, Choice()) if device.type == "cpu" else Choice()


def use_int8(wanted: bool) -> None:
    """Whether forms for inference in float32 on a CPU are made to multiply in int8 from now on: nothing measured says
    so, since it is not the same but for a rounding that shows."""
    CHOSEN[torch.float32] = replace(CHOSEN.get(torch.float32, Choice()), int8=wanted)


def multiplies_int8() -> bool:
    """Whether this CPU has instructions for products of int8 (VNNI), and torch the kernels."""
    return torch.cpu._is_vnni_supported() and hasattr(torch.ops.onednn, "qlinear_pointwise")
