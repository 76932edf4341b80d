"""How a number type is computed here, where there is more than one way. All ways say the same but for rounding."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Choice:
    """Attention by one kernel (`fused`), or by matrix products; for inference, weights laid out as oneDNN multiplies
    them (`pack`), or as they are."""

    fused_inference: bool = True
    fused_training: bool = True
    pack: bool = False


CHOSEN: dict[torch.dtype, Choice] = {}  # of this CPU, as it was measured (training/machine.py)


def choice(kind: torch.dtype, device: torch.device) -> Choice:
    """What to take for this number type; on a GPU there is nothing to choose."""
    return CHOSEN.get(kind, Choice()) if device.type == "cpu" else Choice()
