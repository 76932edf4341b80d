"""Child processes that tell how they fared, never know a Ctrl-C, and end at once when this process dies."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from typing import Any

_spawn = multiprocessing.get_context("spawn")  # a forked copy of a process with threads (torch, FFmpeg) may hang

Process = multiprocessing.process.BaseProcess


def start(name: str, target: Callable, *arguments: Any) -> tuple[Process, connection.Connection]:
    """A child that runs target(pipe, *arguments), and our end of the pipe; to be called within uninterrupted()."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=target, daemon=True, name=name, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back what would leave a process half started, and let those started here never know Ctrl-C."""
    resource_tracker.ensure_running()  # else start() does it, and that unblocks SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes
    held, handlers = [], {}
    if threading.current_thread() is threading.main_thread():  # where handlers run, also for signals to other threads
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                handlers[number] = signal.signal(number, lambda *call: held.append(call))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, frame in held:
            handlers[number](number, frame)


def end(process: Process, pipe: connection.Connection) -> int:
    """Make sure that a child is dead, and return its exit code."""
    pipe.close()
    process.join(1)  # it may be dying, and how is worth knowing
    process.kill()
    process.join()
    code = process.exitcode
    process.close()
    return code


def fate(code: int) -> str:
    """What an exit code says, as a part of a sentence."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def die_with_parent() -> None:
    """To be called by a child first of all: from now on it ends when its parent does, however that dies."""
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def pack(kind: str, value: Any) -> bytes:
    """A message for a pipe, of the kind `error` for an exception. What cannot be sent is replaced by its text."""
    try:
        if kind == "error":
            value.add_note(traceback.format_exc())
        message = pickle.dumps((kind, value))
        if kind == "error":
            pickle.loads(message)  # not every exception survives the way
        return message
    except Exception as error:
        text = "".join(traceback.format_exception(value if kind == "error" else error))
        return pickle.dumps(("error", RuntimeError(text)))
