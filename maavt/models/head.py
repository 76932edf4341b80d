"""What tells the class from both streams: MA-AVT's and the probe's linear head, and LAVISH's and MBT's classifier."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maavt.models.output import Output

HIDDEN = 512
LEAST = 0.01  # a deviation: of numbers that are about 1 a smaller one is rounding


class Head(nn.Linear):
    """(B, 2 H) -> (B, C), the picture's numbers before the sound's; those of a stream are in parts of `sizes`.

    With `standardise` each number counts, from begin() on, by how far it is from its mean among some pairs to train on,
    in their deviations, so that what hardly differs between pairs, such as most of a class token in the middle of a
    ViT, does not drown what does. A picture or sound that is absent would stand far from all others, and so be loud;
    hence the direction in which it lies from the mean is left out of each stream, so that it says nothing.
    """

    def __init__(self, sizes: Sequence[int], outputs: int, *, standardise: bool):
        half = sum(sizes)
        super().__init__(2 * half, outputs)
        self.sizes = [*sizes, *sizes]
        self.register_buffer("mean", torch.zeros(2 * half) if standardise else None)
        self.register_buffer("deviation", torch.ones(2 * half) if standardise else None)
        self.register_buffer("absent", torch.zeros(2, half) if standardise else None)  # of length 1

    @torch.no_grad()
    def begin(self, read: Tensor, absent: Tensor) -> None:
        """Before training: what is read of some pairs (B, 2 H), and where picture and sound are absent (2 H,). All
        parts together weigh as much as the last one alone would."""
        much = self.in_features / 2 / self.sizes[-1]
        self.mean.copy_(read.mean(0))
        self.deviation.copy_(read.std(0, correction=0).clamp_min(LEAST) * much ** 0.5)
        self.absent.copy_(F.normalize(torch.stack(((absent - self.mean) / self.deviation).chunk(2)), dim=-1))

    def forward(self, read: Tensor) -> Tensor:
        return super().forward(self._standard(read))

    def each(self, read: Tensor) -> Tensor:
        """What each part adds to the logits beside the bias: (P, B, C), the picture's before the sound's."""
        parts = zip(self._standard(read).split(self.sizes, -1), self.columns(), strict=True)
        return torch.stack([F.linear(part, weight) for part, weight in parts])

    def columns(self) -> tuple[Tensor, ...]:
        """The weight's columns of each part."""
        return self.weight.split(self.sizes, 1)

    def _standard(self, read: Tensor) -> Tensor:
        if self.mean is None:
            return read
        halves = ((read - self.mean) / self.deviation).chunk(2, -1)
        return torch.cat([half - (half @ absent)[..., None] * absent
                          for half, absent in zip(halves, self.absent, strict=True)], -1)


class PairHead(nn.Sequential):
    """The classifier of LAVISH and MBT in the MA-AVT authors' comparison: two linear layers, with nothing between them,
    on both streams' CLS tokens: (B, D) and (B, D) -> Output.

    With `background`, background is one more class of the same softmax, as LAVISH has it on AVE (29-way).
    """

    def __init__(self, width: int, classes: int, background: bool, multilabel: bool = False):
        super().__init__(nn.Linear(2 * width, HIDDEN), nn.Linear(HIDDEN, classes + background))
        self.background, self.multilabel = background, multilabel

    def forward(self, visual: Tensor, audio: Tensor) -> Output:
        logits = super().forward(torch.cat([audio, visual], -1).float())  # in the authors' order
        return Output(logits[:, :-1], logits[:, -1], one_softmax=True) if self.background else Output(
            logits, multilabel=self.multilabel)
