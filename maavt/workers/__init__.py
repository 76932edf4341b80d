"""A function over many items: in worker processes here, or on a Dask cluster when MAAVT_DASK names one."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from maavt.workers import local


def fan_out(function: Callable[[Any], Any], items: Iterable[Any], *, workers: int | None = None, **options
            ) -> Iterator[tuple[Any, Any]]:
    """local.fan_out, which says what it does and takes; with MAAVT_DASK set and no number of `workers` given, on that
    cluster instead, with the same results in the same order."""
    if workers is None and (address := os.environ.get("MAAVT_DASK")):
        from maavt.workers.dask import fan_out_on_cluster

        return fan_out_on_cluster(address, function, items, **options)
    return local.fan_out(function, items, workers=workers, **options)
