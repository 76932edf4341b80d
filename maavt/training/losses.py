"""The loss of MA-AVT: class loss + background loss + blockwise contrastive loss (supplement, sections B and C).

B pairs, C classes, P outputs of a projector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from maavt.models.output import Output

TEMPERATURE = 0.07


@dataclass
class Losses:
    """The parts of the loss, scalars; 0 where a part does not apply. `chance` is the contrastive loss of projections
    that are all alike, `streams` the sum of the class losses of the streams, or of parts of them, each alone."""

    classes: Tensor
    background: Tensor
    contrastive: Tensor
    chance: Tensor
    streams: Tensor
    contrastive_weight: float = 1.0
    stream_weight: float = 0.0

    @property
    def total(self) -> Tensor:
        return (self.classes + self.background + self.contrastive_weight * self.contrastive
                + self.stream_weight * self.streams)


def losses(output: Output, labels: Tensor, *, whole: Tensor | None = None, same_class: str = "negatives",
           contrastive_weight: float = 1.0, stream_weight: float = 0.0) -> Losses:
    """The loss of a batch. `labels` (B,): the class, or -1 for background; or of pairs with several labels (B, C), 1 or
    0: then the class loss is a binary cross-entropy, summed over the classes as in a softmax. `whole` (B,): which pairs
    have both picture and sound; the others have no part in the contrastive loss, nor in that of each stream alone.

    Where background is one more class of the softmax, the class loss is the cross-entropy over all pairs. Else class
    and contrastive losses are means over the foreground pairs alone; in a batch without any they are 0.
    Nothing here waits for the device.
    """
    if output.one_softmax:
        return _one_softmax(output, labels)
    foreground = foreground_of(labels)
    zero = output.logits.new_zeros(())
    background = zero
    if output.background is not None:
        background = F.binary_cross_entropy_with_logits(output.background, (~foreground).float())
    aligned = labels
    if whole is not None:
        aligned = labels.masked_fill(~whole, -1) if labels.dim() == 1 else labels * whole[:, None]
    compared = [contrastive(visual, audio, aligned, same_class) for visual, audio in output.projections or ()]
    counted = torch.ones_like(labels[:, 0], dtype=torch.bool) if labels.dim() > 1 else foreground

    def classes(logits: Tensor, counted: Tensor) -> Tensor:
        if labels.dim() > 1:
            each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
        else:
            each = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        return _mean(each, counted)

    alone = counted if whole is None else counted * whole
    return Losses(
        classes=classes(output.logits, counted),
        background=background,
        contrastive=torch.stack(compared).mean() if compared else zero,
        chance=contrastive_chance(aligned, same_class) if compared else zero,
        streams=sum((classes(stream, alone) for stream in output.streams or ()), zero),
        contrastive_weight=contrastive_weight,
        stream_weight=stream_weight,
    )


def whole_batch(output: Output, labels: Tensor, gather: Callable[[Sequence[Tensor]], list[Tensor]],
                whole: Tensor | None = None) -> tuple[Output, Tensor, Tensor | None]:
    """What the model says of a share of a batch, its labels, and which pairs have both picture and sound (b,), as those
    of the whole batch: the loss is a matter of all its pairs. `gather` makes (B, F) each of tensors (b, F)."""
    columns = [labels.view(len(labels), -1), output.logits]
    several = labels.dim() > 1
    columns += [] if whole is None else [whole[:, None]]
    columns += [] if output.background is None else [output.background[:, None]]
    columns += output.streams or []
    columns += [projected for pair in output.projections or () for projected in pair]
    labels, logits, *rest = gather(columns)
    whole = None if whole is None else rest.pop(0)[:, 0].detach().bool()
    background = None if output.background is None else rest.pop(0)[:, 0]
    streams = [rest.pop(0) for _ in output.streams or ()] or None
    projections = output.projections and list(zip(rest[::2], rest[1::2], strict=True))
    labels = labels.detach() if several else labels[:, 0].detach().long()  # exact in float32 too, up to 2**24 classes
    return (replace(output, logits=logits, background=background, projections=projections, streams=streams), labels,
            whole)


def _one_softmax(output: Output, labels: Tensor) -> Losses:
    logits = torch.cat([output.logits, output.background[:, None]], 1)  # (B, C + 1)
    zero = logits.new_zeros(())
    labels = labels.masked_fill(labels < 0, logits.shape[1] - 1)
    return Losses(classes=F.cross_entropy(logits, labels), background=zero, contrastive=zero, chance=zero,
                  streams=zero)


def contrastive(visual: Tensor, audio: Tensor, labels: Tensor, same_class: str = "negatives") -> Tensor:
    """Symmetric InfoNCE at temperature 0.07 between two sets of unit vectors (B, P), over foreground pairs alone.

    Other pairs of a pair's class, or that have one of its several labels, are `negatives` (the paper) or `left_out`.
    """
    foreground = foreground_of(labels)
    similarity = visual @ audio.T / TEMPERATURE  # (B, B)
    similarity = similarity.masked_fill(~_candidates(labels, same_class), float("-inf"))
    similarity = similarity.masked_fill(torch.diag(~foreground), 0.0)  # a row of background alone: finite, not counted
    rows, columns = (similarity.log_softmax(side).diagonal() for side in (1, 0))
    return -(_mean(rows, foreground) + _mean(columns, foreground)) / 2


def contrastive_chance(labels: Tensor, same_class: str = "negatives") -> Tensor:
    """The contrastive loss of projections that are all alike."""
    return _mean(_candidates(labels, same_class).sum(1).clamp(min=1).log(), foreground_of(labels))


def foreground_of(labels: Tensor) -> Tensor:
    """(B,): which pairs have a label."""
    return labels >= 0 if labels.dim() == 1 else labels.any(1)


def _alike(labels: Tensor) -> Tensor:
    """(B, B): which pairs have the same label, or one of several in common."""
    return labels[:, None] == labels if labels.dim() == 1 else labels @ labels.T > 0


def _candidates(labels: Tensor, same_class: str) -> Tensor:
    """(B, B): among which pairs each one is to find its own."""
    foreground = foreground_of(labels)
    candidates = foreground[:, None] & foreground
    if same_class == "left_out":
        candidates &= (~_alike(labels)).fill_diagonal_(True)
    return candidates


def mine_background(
    spectrograms: Tensor, labels: Tensor, share: float, generator: torch.Generator, whole: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Foreground mining: about `share` of the pairs get the sound of another class's pair and the label -1. Pairs that
    are not `whole`, having no sound or no picture, neither get nor give any.

    (B, S, S) and (B,) -> the same, and how many chosen pairs had no pair of another class beside them and stayed
    as they were (a scalar on the device). Partners come from the batch; nothing waits for the device.
    """
    chosen = torch.rand(labels.shape, generator=generator, device=labels.device) < share
    other = labels[:, None] != labels  # (B, B)
    if whole is not None:
        chosen &= whole
        other &= whole
    draw = torch.rand(other.shape, generator=generator, device=labels.device)
    partner = draw.masked_fill(~other, -1.0).argmax(1)
    possible = other.any(1)
    mined = chosen & possible
    return (
        torch.where(mined[:, None, None], spectrograms[partner], spectrograms),
        labels.masked_fill(mined, -1),
        (chosen & ~possible).sum(),
    )


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean, weighted where `counted` are weights; 0 where nothing counts."""
    total = counted.sum()
    return (values * counted).sum() / total.masked_fill(total == 0, 1)
