"""What a training goes on from that was killed, that had to make room, or whose loss is no number any more.

FOLDER/checkpoint.pt is of the last whole epoch; FOLDER/within.pt is written within one, every MAAVT_CHECKPOINT_MINUTES
(10), and holds the place in the data and the random states besides: on a CPU the end is the same bit for bit.
"""

import copy
import math
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maavt.errors import UserError
from maavt.training.processes import Team, again_later
from maavt.work import atomic

LOOK = 10  # steps between two looks at the loss, for which the device is waited for


class NotFinite(Exception):
    """The loss, or a weight, is no number any more."""


class _Preempted(Exception):
    """Somebody else needs this machine."""


class Checkpoint:
    """Keeps `training`, a Training of stages/train.py: all calls are made by each of several processes, of which the
    first alone reads and writes."""

    def __init__(self, training: Any, folder: Path, team: Team):
        self.training, self.team = training, team
        self.whole, self.within = folder / "checkpoint.pt", folder / "within.pt"
        self.seconds, self.kept = 60 * _minutes(), time.monotonic()
        self.start, self.halved, self.preempted = None, False, False
        self.going_on = self.place = None  # where in an epoch the training goes on, and where it is

    def resume(self) -> None:
        """Go on from what is kept, if anything is."""
        if (state := self.team.of_first(self._read)) is None:
            self.start = copy.deepcopy(self._state())
            return
        self._load(state)
        if self.team.first:
            within = f" and {self.going_on['step']} steps" if self.going_on else ""
            print(f"{self.training.name}: goes on after epoch {self.training.epoch}{within}")

    def begin(self, generator: torch.Generator, sums: Tensor, lone: Tensor) -> tuple[int, int]:
        """Steps and pairs of the epoch that were done before; the random states and the sums are as they were then."""
        self.place = 0, 0, generator, sums, lone
        place, self.going_on = self.going_on, None
        if place is None:
            return 0, 0
        own = place["random"][self.team.rank]
        generator.set_state(own["generator"])
        torch.set_rng_state(own["torch"])
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])
        sums.copy_(place["sums"])
        lone.copy_(own["lone"])
        self.place = place["step"], place["pairs"], generator, sums, lone
        return self.place[:2]

    def after(self, step: int, pairs: int, generator: torch.Generator, sums: Tensor, lone: Tensor) -> None:
        """Called after each step of an epoch; keeps it now and then. Raises NotFinite."""
        self.place = step, pairs, generator, sums, lone
        last = step == self.training.steps
        if step % LOOK == 0 or last:
            self._check_finite(sums, weights=last)
        self.look_up()
        late = time.monotonic() - self.kept > self.seconds
        if late if self.team.ranks == 1 else step % LOOK == 0 and self.team.of_first(lambda: late):
            self._save_within()

    def look_up(self) -> None:
        """Called where the training can be left."""
        if self.preempted:
            raise _Preempted

    def save(self) -> None:
        """Keep a whole epoch."""
        self._write(self.whole, self._state())
        self.within.unlink(missing_ok=True)

    def go_back(self) -> None:
        """To the last that is kept, once, at half the rates from there on. Raises UserError the second time."""
        run = self.training
        told = f"the loss of {run.name} is no longer finite in epoch {run.epoch}"
        train = run.params.train
        if self.halved:
            raise UserError(f"{told}, at half the rate too; lower train.learning_rate (it is {train.learning_rate}) "
                            f"or raise train.warmup (it is {train.warmup})")
        self._load(self.team.of_first(self._read) or self.start)
        self.halved = True
        for group in run.optimizer.param_groups:
            group |= {key: group[key] / 2 for key in ("lr", "initial_lr", "max_lr", "min_lr") if key in group}
        run.scheduler.base_lrs = [rate / 2 for rate in run.scheduler.base_lrs]
        if self.team.first:
            print(f"warning: {told}; it goes on from what was kept last, at half the rates")

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Have a SIGTERM keep all that was done, and end this process with AGAIN_LATER; a second one ends it at once.

        Of several processes the launcher is told, who ends them.
        """
        if self.team.ranks > 1:
            yield
            return

        def note(*_: Any) -> None:
            self.preempted = True
            signal.signal(signal.SIGTERM, before)

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        except _Preempted:
            with suppress(NotFinite):
                self._save_within()
            raise again_later(f"epoch {self.training.epoch}, step {self.place[0]} of {self.training.steps}") from None
        finally:
            signal.signal(signal.SIGTERM, before)

    def _save_within(self) -> None:
        step, pairs, generator, sums, lone = self.place
        self._check_finite(sums, weights=True)
        own = {"generator": generator.get_state(), "torch": torch.get_rng_state(), "lone": lone}
        if self.training.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state()
        random = self.team.to_first(own)
        if self.team.first:
            self._write(self.within, self._state({"step": step, "pairs": pairs, "sums": sums, "random": random}))
        self.kept = time.monotonic()

    def _check_finite(self, sums: Tensor, *, weights: bool) -> None:
        total = sums[0].item()
        if weights:
            trained = [p.detach() for p in self.training.model.parameters() if p.requires_grad]
            total += torch.stack(torch._foreach_norm(trained)).sum().item()
        if not math.isfinite(total):
            raise NotFinite

    def _state(self, place: dict | None = None) -> dict:
        run = self.training
        return {
            "average": run.average.state(), "epoch": run.epoch - (place is not None), "within": place,
            "best": run.best, "history": run.history, "step_log": run.step_log, "took": run.took,
            "halved": self.halved,
            "weights": {name: tensor for name, tensor in run.model.state_dict().items()
                        if not name.startswith("backbone.")},
            "optimizer": run.optimizer.state_dict(), "scheduler": run.scheduler.state_dict(),
        }

    def _load(self, state: dict) -> None:
        run = self.training
        run.epoch, self.going_on, self.halved = state["epoch"], state["within"], state["halved"]
        run.model.load_state_dict(state["weights"], strict=False)
        run.optimizer.load_state_dict(state["optimizer"])
        run.scheduler.load_state_dict(state["scheduler"])
        run.average.load(state["average"])
        if self.team.first:
            run.best, run.history, run.step_log = state["best"], state["history"], state["step_log"]
            run.took = list(state["took"])

    def _write(self, path: Path, state: dict) -> None:
        with atomic(path) as temporary:
            torch.save(state, temporary)
        self.kept = time.monotonic()

    def _read(self) -> dict | None:
        """The one to go on from: one within an epoch counts where as many processes wrote it, and its epoch is the
        next one."""
        whole, within = (_load_file(path) if path.exists() else None for path in (self.whole, self.within))
        fits = within and len(within["within"]["random"]) == self.team.ranks
        return within if fits and within["epoch"] == (whole["epoch"] if whole else 0) else whole


def _load_file(path: Path) -> dict:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")  # best["weights"] stays there
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path} is no checkpoint ({str(error).splitlines()[0]:.100}); remove it, and the training "
                        "begins anew") from None


def _minutes() -> float:
    text = os.environ.get("MAAVT_CHECKPOINT_MINUTES", "").strip() or "10"
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not minutes > 0:
        raise UserError(f"MAAVT_CHECKPOINT_MINUTES={text!r}: expected minutes above 0; set it to some, or unset it")
    return minutes
