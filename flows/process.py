"""One command in a project, with its log, and one run at a time: what the flows are made of."""

import fcntl
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from maavt.errors import redacted

GRACE = 10  # seconds from SIGINT to SIGKILL; Prefect itself kills a cancelled flow after 30
PROGRESS = 5  # seconds between two lines logged of one progress bar
LAST = 50  # lines of a failed command that are told
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
LEVELS = {"error:": logging.ERROR, "warning:": logging.WARNING}  # of lines that begin so, in any case
ADVICE = ("To track the changes with git, run:", "\tgit add ", "To enable auto staging, run:",
          "\tdvc config core.autostage", "Use `dvc push` to send your updates")  # DVC's, in every stage the same

# Runs a command in a process group that cannot outlive us. Its standard input is a pipe that we hold; it
# closes when we say so and when we die, even by SIGKILL. The group then gets SIGINT, not SIGTERM, which would
# end dvc and leave its stage running. What a finished command left in the background is stopped too.
GUARD = f"""
exec 3<&0 </dev/null
(read _ <&3; kill -INT 0; sleep {GRACE}; kill -KILL 0) >/dev/null 2>&1 &
trap : INT
"$@" 3<&-
code=$?
trap '' TERM
kill -TERM 0
exit $code
"""

_running: set[subprocess.Popen] = set()
_stopped = threading.Event()


@contextmanager
def guarded(command: list[str], **options) -> Iterator[subprocess.Popen]:
    """A running command; no process of it is left afterwards. Closing its stdin stops it within GRACE."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # started by `&` in a script: children inherit that
    process = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "guard", *command], stdin=subprocess.PIPE, start_new_session=True, **options
    )
    _running.add(process)
    try:
        if _stopped.is_set():
            process.stdin.close()
        yield process
    finally:
        _running.discard(process)
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE + 1)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def stopping() -> Iterator[None]:
    """When the block ends by an exception, commands that other threads run are stopped, and no further ones begin."""
    _stopped.clear()
    try:
        yield
    except BaseException:
        _stopped.set()
        for process in list(_running):
            process.stdin.close()
        raise


def stopped() -> bool:
    return _stopped.is_set()


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, its last lines, and the file with all of them."""

    code: int
    tail: str
    log: Path

    @property
    def reason(self) -> str:
        """The last line that is an error, or the last of all."""
        lines = self.tail.splitlines() or ["no message"]
        return next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])


def run(command: list[str] | tuple[str, ...], project: Path, lock: int, log: Path, *,
        quiet: bool = False) -> Done:
    """Run a command in the project; its lines go to the run's logger (not if `quiet`) and, all of them, to `log`."""
    from prefect import get_run_logger  # here: half of this module is for commands that do without Prefect

    logger, tail = get_run_logger(), deque(maxlen=LAST)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    options = {
        "cwd": project,
        "env": {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "pass_fds": [lock],  # so that the lock is held as long as one process of the run lives
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", buffering=1) as file, guarded(list(command), **options) as process:
        # newline="": a line ends at \n or \r, and keeps it
        output = io.TextIOWrapper(process.stdout, "utf-8", "replace", newline="")

        def follow():
            told, level = -PROGRESS, logging.INFO
            for line in output:
                text = redacted(line.rstrip())
                if not text or (line.endswith("\r") and time.monotonic() < told + PROGRESS):
                    continue
                file.write(text + "\n")
                if quiet or text.startswith(ADVICE):
                    continue
                if not text.startswith("  "):  # which goes on with the line above
                    level = LEVELS.get(text.split(" ")[0].lower(), logging.INFO)
                logger.log(level, text)
                tail.append(text)
                told = time.monotonic()

        try:
            follow()
        except BaseException:
            process.stdin.close()
            follow()  # its last words
            raise
        return Done(process.wait(), "\n".join(tail), log)


@contextmanager
def only_run(project: Path, say: Callable[[str], object]) -> Iterator[int]:
    """Hold the project's lock, waiting (which is said) for another run; yields the lock's file descriptor."""
    (project / ".dvc" / "tmp").mkdir(exist_ok=True)
    with open(project / ".dvc" / "tmp" / "pipeline.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is at work in {project}: this one waits until it ends")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
