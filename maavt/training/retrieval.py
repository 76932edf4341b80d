"""How well a sound finds its picture by MA-AVT's aligned prompts, block by block: what the contrastive loss is for."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from maavt.shards.loader import Batch
from maavt.training.runtime import Normaliser, whole_pairs


@torch.no_grad()
def retrieval(model: nn.Module, batches: Iterable[Batch], normalise: Normaliser) -> dict | None:
    """Recall at 1 and 5 among the foreground pairs of some batches, sound to picture and back on average, a number per
    compared block; None of a model without projectors, and of fewer than two pairs.

    {"pairs": N, "recall_1": [...], "recall_5": [...]}; luck gives 1 / N and 5 / N.
    """
    if not len(getattr(model, "visual_projectors", ())):
        return None
    device = next(model.parameters()).device
    model.train()  # the projectors are there in training alone
    found = []
    for frames, sound, _, kept in whole_pairs(batches, normalise, device):
        projections = model(frames, sound).projections
        found.append([(visual[kept].float(), audio[kept].float()) for visual, audio in projections])
    blocks = [tuple(torch.cat(side) for side in zip(*block, strict=True)) for block in zip(*found, strict=True)]
    if not blocks or len(blocks[0][0]) < 2:
        return None
    return {"pairs": len(blocks[0][0])} | {
        f"recall_{k}": [round((recall(v @ a.T, k) + recall(a @ v.T, k)) / 2, 4) for v, a in blocks] for k in (1, 5)}


def recall(similarity: Tensor, k: int) -> float:
    """The share of rows (N, N) in which fewer than `k` others are at least as near as the row's own; ties count
    against, and so does what is no number."""
    own = similarity.diagonal()[:, None]
    return ((~(similarity < own)).sum(1) <= k).float().mean().item()
