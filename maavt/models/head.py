"""The classifier that LAVISH and MBT share in the MA-AVT authors' comparison."""

import torch
from torch import Tensor, nn

from maavt.models.output import Output

HIDDEN = 512


class PairHead(nn.Sequential):
    """Two linear layers, with nothing between them, on both streams' CLS tokens: (B, D) and (B, D) -> Output.

    With `background`, background is one more class of the same softmax, as LAVISH has it on AVE (29-way).
    """

    def __init__(self, width: int, classes: int, background: bool, multilabel: bool = False):
        super().__init__(nn.Linear(2 * width, HIDDEN), nn.Linear(HIDDEN, classes + background))
        self.background, self.multilabel = background, multilabel

    def forward(self, visual: Tensor, audio: Tensor) -> Output:
        logits = super().forward(torch.cat([audio, visual], -1).float())  # in the authors' order
        return Output(logits[:, :-1], logits[:, -1], one_softmax=True) if self.background else Output(
            logits, multilabel=self.multilabel)
