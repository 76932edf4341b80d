"""Map a function over items in local worker processes, of which any may hang or crash.

Each worker has a pipe of its own and no lock is shared, so that a worker killed at any instant (a segfault, the
kernel out of memory, its time limit) harms nothing but the item it had in hand. The pools of the standard library and
of pebble break or hang as a whole when that happens.
"""

import gc
import logging
import os
import pickle
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from maavt.media.rejected import Rejected
from maavt.work import default_workers, keep_freed
from maavt.workers import children

LOG = logging.getLogger(__name__)
IN_FLIGHT = 16  # items per worker that are being worked on, or done and waiting behind one that takes long
FAILED_STARTS = 10  # in a row, after which no further worker is started
SPARE, LARGEST = 64 * 2**20, 16 * 2**20  # bytes of freed memory that a worker keeps from one item to the next


def fan_out(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    workers: int | None = None,
    in_flight: int = IN_FLIGHT,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    label: Callable[[Any], str] = str,
    tolerant: bool = False,
) -> Iterator[tuple[Any, Any]]:
    """(item, function(item)) for each item, in order, or (item, Rejected) where that failed on the item itself.

    A result is a Rejected when the function raised one, when it took longer than `time_limit` seconds (reason
    `timed out`), when it needed `memory_limit` bytes more than its process began with (`out of memory`), or when its
    process died (`decoder crashed`; of SIGKILL, which may come from outside, twice). Any other exception of the
    function is raised here, with a note of the item's `label`; with `tolerant` its traceback is logged, and the result
    is a Rejected (`failed here`). Items are taken as they are needed and few are in flight, so memory stays flat.

    `function` and the items are pickled; workers start by importing the main module, hence the usual
    `if __name__ == "__main__"`. They ignore Ctrl-C and end at once when the iterator is closed, when it fails, or
    when this process dies, however it dies.
    """
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1")
    crew = _Crew(pickle.dumps(function), workers, time_limit, memory_limit, tolerant)
    source = iter(items)
    tasks: deque[_Task] = deque()  # in order; the first is the next to be handed back
    waiting: deque[_Task] = deque()  # those that no worker has yet
    try:
        while True:
            while source is not None and len(tasks) < in_flight * workers:
                try:
                    tasks.append(_Task(next(source)))
                except StopIteration:
                    source = None
                else:
                    waiting.append(tasks[-1])
                    crew.hand_out(waiting)
            if not tasks:
                return
            crew.collect(label, timeout=0)
            crew.hand_out(waiting)
            while not tasks[0].done:
                crew.collect(label)
                crew.hand_out(waiting)
            task = tasks.popleft()
            if task.error:
                raise task.error
            yield task.item, task.result
            del task  # may be large, and the next one takes a while
    finally:
        crew.end()


def tell(name: str, failed: Rejected) -> None:
    """Log the origin of a mistake of ours, which costs the item of that name."""
    LOG.error("%s: %s; it is left out\n%s", name, failed.detail, "\n".join(failed.__notes__))


@dataclass(eq=False)
class _Task:
    item: Any
    result: Any = None
    error: Exception | None = None
    done: bool = False
    killed: bool = False  # once, by somebody


@dataclass(eq=False)
class _Worker:
    process: children.Process
    pipe: connection.Connection
    ready: bool = False  # has imported all it needs
    task: _Task | None = None


class _Crew:
    """The worker processes of one fan_out, started as there is work for them and replaced when they die."""

    def __init__(self, function: bytes, size: int, time_limit: float | None, memory_limit: int | None, tolerant: bool):
        self.tolerant = tolerant
        self.function = function
        self.size = size
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self.workers: list[_Worker] = []
        self.again: list[_Task] = []  # whose worker somebody killed
        self.failed_starts = 0

    def hand_out(self, waiting: deque[_Task]) -> None:
        """Give each idle worker a task, and start workers for the rest."""
        while self.again:
            waiting.appendleft(self.again.pop())
        for worker in self.workers:
            if waiting and worker.ready and worker.task is None:
                worker.task = waiting.popleft()
                try:
                    worker.pipe.send(worker.task.item)
                except OSError:  # it died while idle, which is not this item's fault
                    waiting.appendleft(worker.task)
                    worker.task = None
        starting = sum(not worker.ready for worker in self.workers)
        for _ in range(min(len(waiting) - starting, self.size - len(self.workers))):
            self._start()

    def collect(self, label: Callable[[Any], str], timeout: float | None = None) -> None:
        """Wait until some worker has something to say, or `timeout` seconds, and note it."""
        pipes = {worker.pipe: worker for worker in self.workers}
        for pipe in connection.wait(list(pipes), timeout):
            worker = pipes[pipe]
            try:
                message = pipe.recv_bytes()
            except (EOFError, OSError):  # dead, perhaps in the middle of a message
                self._bury(worker, label)
                continue
            kind, value = pickle.loads(message)
            worker.ready = True
            self.failed_starts = 0
            task, worker.task = worker.task, None
            if task is None:  # it is ready to work, or cannot import the function
                if kind == "error":
                    raise value
            elif kind == "error" and self.tolerant:
                task.result, task.done = Rejected("failed here", f"{type(value).__name__}: {value}"), True
                task.result.__notes__ = getattr(value, "__notes__", [str(value)])
                tell(label(task.item), task.result)
            elif kind == "error":
                value.add_note(f"in a worker process, on {label(task.item)}")
                task.error, task.done = value, True
            else:
                task.result, task.done = value, True

    def _start(self) -> None:
        with children.uninterrupted(), _one_thread():
            self.workers.append(_Worker(*children.start("maavt worker", _work, self.function, self.time_limit,
                                                        self.memory_limit)))

    def _bury(self, worker: _Worker, label: Callable[[Any], str]) -> None:
        """Remove a dead worker, and reject what it had in hand."""
        self.workers.remove(worker)
        code = children.end(worker.process, worker.pipe)
        if worker.task:
            if code == -signal.SIGKILL and not worker.task.killed:
                worker.task.killed = True
                self.again.append(worker.task)
                return
            if code == -signal.SIGALRM:
                result = Rejected("timed out", f"{label(worker.task.item)} took longer than {self.time_limit:g} s")
            else:
                result = Rejected("decoder crashed", f"the process {children.fate(code)} on {label(worker.task.item)}")
            worker.task.result, worker.task.done = result, True
        elif not worker.ready:
            self.failed_starts += 1
            if self.failed_starts == FAILED_STARTS:
                raise RuntimeError(f"worker processes cannot start: the last one {children.fate(code)}; is the main "
                                   'module guarded by `if __name__ == "__main__"`?')

    def end(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        while self.workers:
            worker = self.workers.pop()
            children.end(worker.process, worker.pipe)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes started here compute in one thread each: they share the cores, and sums stay the same."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: connection.Connection, function: bytes, time_limit: float | None, memory_limit: int | None) -> None:
    """A worker's life: one item after the other, until the pipe closes."""
    children.die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected: no core files
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process whatever it is stuck in
    try:
        call = pickle.loads(function)
        if memory_limit:
            pages = int(Path("/proc/self/statm").read_text().split()[5])  # what it has for itself and its imports
            limit = pages * resource.getpagesize() + memory_limit
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except Exception as error:
        pipe.send_bytes(children.pack("error", error))
        return
    keep_freed(SPARE, LARGEST)
    gc.freeze()  # the modules are here to stay: not to be looked through again and again
    pipe.send_bytes(pickle.dumps(("ready", None)))
    while True:
        try:
            task = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_REAL, time_limit or 0)
        try:
            message = children.pack("result", call(pickle.loads(task)))
        except Rejected as rejected:
            message = children.pack("result", rejected)
        except MemoryError as error:
            message = children.pack("result", Rejected("out of memory", str(error)))
        except Exception as error:
            message = children.pack("error", error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(message)
