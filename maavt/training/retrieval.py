"""How well sound finds pictures of its kind, and pictures sound, by the vectors that the contrastive loss compares.

B pairs, P outputs of a projector.
"""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from maavt.shards.loader import Batch
from maavt.training.runtime import Normaliser

NEAREST = 5
BATCHES = 8  # that are looked at
COLUMNS = ("when", "block", "sound_to_picture", "picture_to_sound", "chance", "pairs")


@torch.no_grad()
def retrieval(model: nn.Module, batches: Iterable[Batch], normalise: Normaliser, device: torch.device, when: str
              ) -> list[dict]:
    """Rows of retrieval.csv, one for each block that is compared: the share of the NEAREST pictures to a sound that
    are of its class, the reverse, and the share of all that are, which is chance. Pairs of background are left out.

    [] for a model without the contrastive loss.
    """
    if not len(getattr(model, "visual_projectors", ())):
        return []
    mode, found, labels = model.training, [], []
    model.train()  # it projects in training alone
    for batch in islice(batches, BATCHES):
        frames, sound, own = normalise(batch, device)
        found.append([torch.stack(streams) for streams in model(frames, sound).projections])
        labels.append(own)
    model.train(mode)
    kept = (labels := torch.cat(labels)) >= 0
    same = _others(labels[kept][:, None] == labels[kept])
    if same.shape[1] < NEAREST:
        return []
    rows = []
    for number, parts in enumerate(zip(*found, strict=True), 1):
        seen, heard = torch.cat(parts, 1)[:, kept].float()  # (B, P) each
        alike = heard @ seen.T
        rows.append({"when": when, "block": number, "sound_to_picture": f"{_precision(alike, same):.4f}",
                     "picture_to_sound": f"{_precision(alike.T, same):.4f}",
                     "chance": f"{same.float().mean().item():.4f}", "pairs": len(same)})
    return rows


def _precision(alike: Tensor, same: Tensor) -> float:
    """Of the NEAREST of each row, its own pair left out, the share that is of the same class."""
    nearest = _others(alike).topk(NEAREST, 1).indices
    return same.gather(1, nearest).float().mean().item()


def _others(x: Tensor) -> Tensor:
    """(B, B) without its diagonal: (B, B - 1)."""
    kept = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return x[kept].view(len(x), -1)
