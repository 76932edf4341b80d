"""The DVC graph as a Prefect flow: one task per stage, in the graph's order.

    python -m flows.pipeline [--project PATH] [--push] [--retries N]

DVC decides what has to run; Prefect starts it, keeps its log, retries it and says how it ended.
Without `PREFECT_API_URL` the command starts a Prefect server for this one run.
"""

import argparse
import atexit
import fcntl
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
for name, value in {
    "PREFECT_HOME": str(PROJECT / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(name, value)  # before the import: Prefect reads them there

import httpx  # noqa: E402
from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, get_current_settings, temporary_settings  # noqa: E402
from prefect.states import Failed  # noqa: E402

from flows.lock import drop_damaged_lock  # noqa: E402
from maavt import errors  # noqa: E402
from maavt.errors import UserError  # noqa: E402

GRACE = 10  # seconds from SIGINT to SIGKILL; Prefect itself kills a cancelled flow after 30
PROGRESS = 5  # seconds between two lines logged of one progress bar

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


@contextmanager
def guarded(command: list[str], **options) -> Iterator[subprocess.Popen]:
    """A running command; no process of it is left afterwards. Closing its stdin stops it within GRACE."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started by `&` in a script: children inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "guard", *command], stdin=subprocess.PIPE, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE + 1)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(command: list[str], project: Path, lock: int) -> tuple[int, str]:
    """Run a command in the project and log its lines; returns its exit code and its last lines."""
    log, tail = get_run_logger(), deque(maxlen=20)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    options = {
        "cwd": project,
        "env": {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "pass_fds": [lock],  # so that the lock is held as long as one process of the run lives
    }
    with guarded(command, **options) as process:
        # newline="": a line ends at \n or \r, and keeps it
        output = io.TextIOWrapper(process.stdout, "utf-8", "replace", newline="")

        def follow():
            logged = -PROGRESS
            for line in output:
                if line.strip() and not (line.endswith("\r") and time.monotonic() < logged + PROGRESS):
                    log.info(line.rstrip())
                    tail.append(line.rstrip())
                    logged = time.monotonic()

        try:
            follow()
        except BaseException:
            process.stdin.close()
            follow()  # its last words
            raise
        return process.wait(), "\n".join(tail)


@contextmanager
def only_run(project: Path) -> Iterator[int]:
    """Hold the project's lock, waiting for another run if need be; yields the lock's file descriptor."""
    (project / ".dvc" / "tmp").mkdir(exist_ok=True)
    with open(project / ".dvc" / "tmp" / "pipeline.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            get_run_logger().warning("another run is at work in %s: this one waits until it ends", project)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def graph(project: Path) -> tuple[list[str], str | None]:
    """The stages' addresses, each after those it depends on, and the default remote. Raises DvcException."""
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro

    with Repo(str(project)) as repo:
        stages = [stage for stage in plan_repro(repo.index.graph) if stage.cmd]
        names = [s.name if s.path_in_repo == "dvc.yaml" else f"{s.path_in_repo}:{s.name}" for s in stages]
        return names, repo.config["core"].get("remote")


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def reproduce(stage: str, project: Path, lock: int):
    """`dvc repro --single-item STAGE`; returns a Failed state that names the stage when it fails."""
    code, tail = run([sys.executable, "-m", "dvc", "repro", "--single-item", stage], project, lock)
    if code == 0:
        return None
    if "Unable to acquire lock" in tail or "being blocked by" in tail:
        return Failed(message=f"stage {stage} was not run: another dvc command works in {project}")
    # dvc itself ends with 255 whatever the stage ended with
    own = re.findall(r"exited with (-?\d+)", tail)
    return Failed(message=f"stage {stage} failed with exit code {own[-1] if own else code}")


@task(name="push", task_run_name="push", cache_policy=NO_CACHE, persist_result=False)
def push_cache(project: Path, lock: int):
    """`dvc push`; returns a Failed state when it fails."""
    code, _ = run([sys.executable, "-m", "dvc", "push"], project, lock)
    return Failed(message=f"dvc push failed with exit code {code}") if code else None


@flow(persist_result=False)
def pipeline(project: Path = PROJECT, push: bool = False, retries: int = 0):
    """Bring every stage of a DVC project up to date, then push the cache if asked to.

    A failed stage is tried again `retries` times, then fails the run. Of two runs in one project the second
    waits. A run that is cancelled or killed stops its stage.
    """
    from dvc.exceptions import DvcException

    project = project.resolve()
    if not (project / ".dvc").is_dir():
        return Failed(message=f"{project} is not a DVC project: it has no folder .dvc")
    with only_run(project) as lock:
        drop_damaged_lock(project)
        try:
            stages, remote = graph(project)
        except DvcException as error:
            run([sys.executable, "-m", "dvc", "stage", "list"], project, lock)  # shows the lines at fault
            return Failed(message=f"dvc cannot read the stages of {project}: {error}")
        for stage in stages:
            step = reproduce.with_options(name=stage, retries=retries)
            state = step(stage, project, lock, return_state=True)
            if not state.is_completed():
                return Failed(message=state.message)
        if push and not remote:
            get_run_logger().warning("nothing was pushed: %s has no default dvc remote", project)
        elif push:
            state = push_cache(project, lock, return_state=True)
            if not state.is_completed():
                return Failed(message=state.message)
    return None


def answers(url: str) -> bool:
    """Whether a Prefect server answers at this API address."""
    try:
        return httpx.get(f"{url}/health", timeout=10).status_code in (200, 401, 403)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


@contextmanager
def temporary_server():
    """A Prefect server for one run, with Prefect's settings pointing to it.

    The one that Prefect would start itself dies at Ctrl-C before the run has reported its end, and outlives a
    run that is killed. Raises UserError when it does not start in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = ["--factory", "prefect.server.api.server:create_app", "--port", str(port), "--log-level", "error"]
    environment = {**os.environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_UI_ENABLED": "0"}
    with guarded([sys.executable, "-m", "uvicorn", *app], env=environment) as server:
        url = f"http://127.0.0.1:{port}/api"
        limit = get_current_settings().server.ephemeral.startup_timeout_seconds
        end = time.monotonic() + limit
        while not answers(url):
            if server.poll() is not None or time.monotonic() > end:
                raise UserError(f"no Prefect server could be started within {limit} s")
            time.sleep(0.2)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_UI_URL: ""}):  # it serves no pages
            yield


def use_server() -> None:
    """Have Prefect use the server at PREFECT_API_URL, or one of this process's own until it exits.

    Raises UserError when no server answers there.
    """
    url = get_current_settings().api.url
    if url and not answers(url):
        raise UserError(f"no Prefect server answers at {url} (PREFECT_API_URL)")
    server = ExitStack()
    atexit.register(server.close)  # not earlier: at its own exit Prefect sends the last lines of the log
    if not url:
        server.enter_context(temporary_server())


def main():
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Run the whole DVC graph.")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--push", action="store_true", help="push the cache to the default remote at the end")
    parser.add_argument("--retries", type=int, default=0, help="how often a failed stage is tried again")
    options = vars(parser.parse_args())
    use_server()
    state = pipeline(**options, return_state=True)
    if not state.is_completed():
        raise UserError(state.message)


if __name__ == "__main__":
    sys.exit(errors.run(main))
