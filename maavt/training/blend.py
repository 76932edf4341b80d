"""How much each stream, or its early blocks and its last, counts in what MA-AVT's head says: fitted on the validation
split, when training has ended.

A stream that learns its training pairs by heart (faces of few speakers) is as sure of others as of those, and outvotes
the one that knows. What the parts say is added up, so a number for each puts that right, and costs nothing afterwards.
N pairs, C classes, P parts of what the head reads.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maavt.models.vit import both
from maavt.shards.loader import Batch
from maavt.training.runtime import Normaliser, whole_pairs

NAMES = {2: ("picture", "sound"), 4: ("picture_early", "picture_last", "sound_early", "sound_last")}  # of the parts


@torch.no_grad()
def blend(model: nn.Module, batches: Iterable[Batch], normalise: Normaliser) -> dict[str, float] | None:
    """Weigh the columns of each part in MA-AVT's head, in place, by what suits the first pairs of the batches that have
    both modalities and are no background; the weights, or None where there is no such pair."""
    device, form = next(model.parameters()).device, model.for_inference()
    said, truth = [], []
    for frames, sound, labels, kept in whole_pairs(batches, normalise, device):
        said.append(form.head.each(both(form.encode(frames, sound))[:, 0])[:, kept])
        truth.append(labels[kept])
    if not truth:
        return None
    said, truth = torch.cat(said, 1).cpu(), torch.cat(truth).cpu()  # (P, N, C)
    known = said.isfinite().all(-1).all(0)  # one pair of which a part says no number would leave no weight a number
    if not known.any():
        return None
    said, truth = said[:, known], truth[known]
    weights = fitted(said, model.head.bias.detach().cpu(), truth)
    for columns, weight in zip(model.head.columns(), weights, strict=True):
        columns *= weight
    return dict(zip(NAMES[len(weights)], weights, strict=True))


def fitted(said: Tensor, bias: Tensor, truth: Tensor) -> tuple[float, ...]:
    """The weights of what the parts say (P, N, C) that make the class loss of the pairs least; `truth` is (N,),
    or (N, C) where clips have several labels. Beside the loss, summed over the pairs, counts by how much the weights
    differ from 1, so that few pairs, or none that is wrong, do not carry them off: to leave a part out costs as much
    as one nat, and none counts against what it says."""
    said, bias = said.double(), bias.double()
    roots = torch.ones(len(said), dtype=torch.float64, requires_grad=True)  # of the weights, which are thus at least 0
    search = torch.optim.LBFGS([roots], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        weights = roots.square()
        logits = (weights[:, None, None] * said).sum(0) + bias
        if truth.dim() > 1:
            found = F.binary_cross_entropy_with_logits(logits, truth.double(), reduction="sum")
        else:
            found = F.cross_entropy(logits, truth, reduction="sum")
        found = found + (weights - 1).square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        search.step(loss)
    return tuple(round(weight, 4) for weight in roots.detach().square().tolist())
