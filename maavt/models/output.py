"""What every audio-visual model answers. B pairs, C classes, P outputs of a projector."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Output:
    """What a model says of a batch of pairs; `projections` only in training."""

    logits: Tensor  # (B, C)
    background: Tensor | None = None  # (B,) logits of "this pair is background"
    projections: list[tuple[Tensor, Tensor]] | None = None  # (visual, audio) per compared block, (B, P) each

    def predicted(self) -> Tensor:
        """(B,): -1 (background) where the background logit says so, else the best class."""
        best = self.logits.argmax(-1)
        return best if self.background is None else best.masked_fill(self.background > 0, -1)
