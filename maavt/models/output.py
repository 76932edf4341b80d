"""What every audio-visual model answers. B pairs, C classes, P outputs of a projector."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Output:
    """What a model says of a batch of pairs; `projections` and `streams` only in training.

    Background is either the yes or no of a binary head of its own (MA-AVT), or one more class of the same softmax
    (`one_softmax`: LAVISH and MBT, as LAVISH has it on AVE). With `multilabel` each class is a yes or no of its own.
    """

    logits: Tensor  # (B, C)
    background: Tensor | None = None  # (B,) logit of "this pair is background"
    projections: list[tuple[Tensor, Tensor]] | None = None  # (visual, audio) per compared block, (B, P) each
    streams: list[Tensor] | None = None  # (B, C) logits of picture and sound alone, or parts of them
    one_softmax: bool = False
    multilabel: bool = False

    def predicted(self) -> Tensor:
        """(B,): -1 where the pair is background, else the best class."""
        strongest, best = self.logits.max(-1)
        if self.background is None:
            return best
        return best.masked_fill(self.background > (strongest if self.one_softmax else 0), -1)

    def probabilities(self) -> tuple[Tensor, Tensor | None]:
        """(B, C) of each class given that the pair is no background, and (B,) that it is background."""
        classes = self.logits.sigmoid() if self.multilabel else self.logits.softmax(-1)
        if self.background is None:
            return classes, None
        rest = torch.logsumexp(self.logits, -1) if self.one_softmax else 0
        return classes, (self.background - rest).sigmoid()
