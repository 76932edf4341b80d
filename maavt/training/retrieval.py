"""How well sound finds pictures of its kind, and pictures sound, by the vectors that the contrastive loss compares.

B pairs, P outputs of a projector.
"""

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maavt.shards.loader import Batch
from maavt.training.runtime import Normaliser

NEAREST = 5
BATCHES = 8  # that are looked at
COLUMNS = ("when", "block", "sound_to_picture", "picture_to_sound", "chance", "recall_1", "recall_5", "pairs")


@torch.no_grad()
def retrieval(model: nn.Module, batches: Iterable[Batch], normalise: Normaliser, device: torch.device, when: str,
              classes: int) -> list[dict]:
    """Rows of retrieval.csv, one for each block that is compared: the share of the NEAREST pictures to a sound that
    are of its class, the reverse, and the share of all that are, which is chance; and how often the own picture of a
    sound is the nearest or among the nearest five, both ways on average (luck: 1 and 5 of `pairs`). Pairs of
    background, and those without sound or picture, are left out. `classes` is their number.

    [] for a model without the contrastive loss.
    """
    if not len(getattr(model, "visual_projectors", ())):
        return []
    mode, found, labels = model.training, [], []
    model.train()  # it projects in training alone
    for batch in islice(batches, BATCHES):
        frames, sound, own = normalise(batch, device)
        found.append([torch.stack(streams) for streams in model(frames, sound).projections])
        labels.append(F.one_hot(own + 1, classes + 1)[:, 1:] if own.dim() == 1 else own)  # (B, C); background: none
        if batch.absent is not None:
            labels[-1] = labels[-1] * (batch.absent == 0).to(device)[:, None]
    model.train(mode)
    kept = (labels := torch.cat(labels).float()).any(1)
    same = _others(labels[kept] @ labels[kept].T > 0)
    if same.shape[1] < NEAREST:
        return []
    rows = []
    for number, parts in enumerate(zip(*found, strict=True), 1):
        seen, heard = torch.cat(parts, 1)[:, kept].float()  # (B, P) each
        alike = heard @ seen.T
        rows.append({"when": when, "block": number, "sound_to_picture": f"{_precision(alike, same):.4f}",
                     "picture_to_sound": f"{_precision(alike.T, same):.4f}",
                     "chance": f"{same.float().mean().item():.4f}",
                     **{f"recall_{k}": f"{(recall(alike, k) + recall(alike.T, k)) / 2:.4f}" for k in (1, 5)},
                     "pairs": len(same)})
    return rows


def recall(alike: Tensor, k: int) -> float:
    """The share of rows (B, B) in which fewer than `k` others are at least as near as the row's own."""
    return ((alike >= alike.diagonal()[:, None]).sum(1) <= k).float().mean().item()


def _precision(alike: Tensor, same: Tensor) -> float:
    """Of the NEAREST of each row, its own pair left out, the share that is of the same class."""
    nearest = _others(alike).topk(NEAREST, 1).indices
    return same.gather(1, nearest).float().mean().item()


def _others(x: Tensor) -> Tensor:
    """(B, B) without its diagonal: (B, B - 1)."""
    kept = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return x[kept].view(len(x), -1)
