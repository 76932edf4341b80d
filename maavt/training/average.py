"""A moving average of what is trained, which is validated and kept in place of the last step's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Weights averaged over the steps with `decay` (over 20 steps at 0.95), less of it at the beginning; decay 0 is no
    average at all."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad} if decay else {}
        self.weights = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        if self.trained:
            self.steps += 1
            share = 1 - min(self.decay, self.steps / (self.steps + 9))
            torch._foreach_lerp_(list(self.weights.values()), list(self.trained.values()), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages while the block runs, and its own weights afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.trained.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)

    def state(self) -> dict[str, int | dict[str, Tensor]]:
        """What a killed run needs to go on."""
        return {"steps": self.steps, "weights": self.weights}

    def load(self, state: dict) -> None:
        """Go on from there."""
        self.steps = state["steps"]
        for name, tensor in self.weights.items():
            tensor.copy_(state["weights"][name])
