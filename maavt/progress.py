"""Progress with rate and time left: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

_NOWHERE = open(os.devnull, "w")  # for tqdm's own carriage returns and line ends


class _Lines(tqdm):
    """A tqdm that prints a line instead of redrawing one, for logs."""

    def display(self, msg=None, pos=None):
        print(msg or str(self), file=sys.stderr, flush=True)
        return True


def progress(iterable=None, *, label: str, unit: str, total: int | None = None, leave: bool = True,
             scale: bool = False, silent: bool = False) -> tqdm:
    """A tqdm over `iterable` (or to be updated by hand) that suits where stderr goes; `scale` for kB, MB, GB."""
    common = dict(desc=label, unit=unit, total=total, leave=leave, unit_scale=scale, disable=silent)
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **common)
    bar = "{desc}: {n_fmt}/{total_fmt} {unit} in {elapsed}, {remaining} left, {rate_fmt}{postfix}"
    return _Lines(iterable, mininterval=10, miniters=1, file=_NOWHERE, bar_format=bar, **common)


class Waited:
    """Passes on what another iterable gives, and knows which share of the time so far was spent waiting for it."""

    def __init__(self, items: Iterable):
        self.items, self.begin, self.seconds = items, time.perf_counter(), 0.0

    def __iter__(self) -> Iterator:
        items = iter(self.items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - asked
            yield item

    def __str__(self) -> str:
        return f"{self.seconds / max(time.perf_counter() - self.begin, 1e-9):.0%}"
