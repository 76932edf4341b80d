"""fan_out on a Dask cluster (MAAVT_DASK=tcp://host:port): the same results in the same order.

Every thread of a Dask worker keeps one process of its own for the work, as fan_out does on one machine: an item that
hangs or crashes the decoder costs itself alone, never the Dask worker. The workers must see the project's files under
the same path and run the same code.
"""

import atexit
import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from maavt.errors import UserError
from maavt.media.rejected import Rejected
from maavt.work import fingerprint
from maavt.workers.local import fan_out, tell

IN_FLIGHT = 4  # items per thread of the cluster
CONNECT = 20  # seconds

_own = threading.local()  # each Dask thread's process


def fan_out_on_cluster(address: str, function: Callable[[Any], Any], items: Iterable[Any], *,
                       time_limit: float | None = None, memory_limit: int | None = None,
                       label: Callable[[Any], str] = str, tolerant: bool = False) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) or (item, Rejected) in order, as fan_out says.

    Raises UserError when the cluster cannot be reached, runs other code, or is lost on the way.
    """
    try:
        from distributed import Client
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise UserError("MAAVT_DASK is set, but Dask is not installed; pip install 'maavt[dask]', or unset it"
                        ) from None
    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"MAAVT_DASK={address}: no Dask scheduler answers there ({error}); start one, or unset it"
                        ) from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise UserError(f"MAAVT_DASK={address}: the cluster has no workers yet; start some")
        work = (pickle.dumps(function), fingerprint(), time_limit, memory_limit, tolerant)
        work = client.scatter(work, broadcast=True)
        source, tasks = iter(items), deque()
        try:
            while True:
                for item in source:
                    tasks.append((item, client.submit(_do, work, pickle.dumps(item), label(item), pure=False)))
                    if len(tasks) >= IN_FLIGHT * threads:
                        break
                if not tasks:
                    return
                item, future = tasks.popleft()
                result = pickle.loads(future.result())
                if isinstance(result, Rejected) and result.reason == "failed here":  # told to the Dask worker's log
                    tell(label(item), result)
                yield item, result
                del future
        except (KilledWorker, FutureCancelledError, OSError) as error:
            raise UserError(f"MAAVT_DASK={address}: the cluster was lost ({error}); the same command goes on from the "
                            "last finished shard") from None
        finally:
            client.cancel([future for _, future in tasks])


def _do(work: tuple, item: bytes, label: str) -> bytes:
    """On a Dask worker: one item, in this thread's own process; the result or Rejected, pickled."""
    function, code, time_limit, memory_limit, tolerant = work
    if _code() != code:
        raise UserError(f"the Dask worker on {os.uname().nodename} runs another version of maavt; install the same one")
    if getattr(_own, "work", None) != work:
        _end()
        multiprocessing.current_process()._config["daemon"] = False  # else it may have no processes of its own
        _own.work, _own.todo = work, deque()
        _own.results = fan_out(pickle.loads(function), _next(_own.todo), workers=1, in_flight=1, time_limit=time_limit,
                               memory_limit=memory_limit, label=lambda _: _own.label, tolerant=tolerant)
        atexit.register(_own.results.close)
    _own.label = label
    _own.todo.append(pickle.loads(item))
    try:
        return pickle.dumps(next(_own.results)[1])
    except BaseException:
        _end()
        raise


def _next(todo: deque) -> Iterator[Any]:
    while True:
        yield todo.popleft()


def _end() -> None:
    if getattr(_own, "work", None):
        _own.results.close()
        _own.work = None


@lru_cache
def _code() -> str:
    return fingerprint()
