"""Runs whose process is gone, and runs that nobody was there to start.

Prefect's server hears nothing of a killed process or a power cut: such a run would stay Running for ever. So every run
holds the lock of a file in .dvc/tmp/runs as long as its process lives, and says on which machine it is.
"""

import fcntl
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Crashed

STARTING = 300  # seconds from a run's start to its lock, at most
OFTEN = 20  # seconds between two looks


@contextmanager
def alive(project: Path, run: str | None) -> Iterator[None]:
    """Within the block this run is known to be alive."""
    folder = project / ".dvc" / "tmp" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (run or "none")
    with open(made := path.with_suffix(".new"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made.rename(path)  # it has its name only with its lock
        try:
            with suppress(Exception):  # what the page says is not worth a run
                mark_crashed(project)
            yield
        finally:
            path.unlink(missing_ok=True)


def gone(run: FlowRun, project: Path) -> bool:
    """Whether the process of a run that the server takes for running is known to be gone."""
    host = (run.infrastructure_pid or "").partition(":")[0]
    if host and host != socket.gethostname():
        return False  # another machine's business
    path = project / ".dvc" / "tmp" / "runs" / str(run.id)
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # it has not come so far, or has ended and not yet said so
        return (datetime.now(UTC) - run.state.timestamp).total_seconds() > STARTING
    path.unlink(missing_ok=True)
    return True


def mark_crashed(project: Path, deployment: str | None = None) -> list[str]:
    """Mark runs whose process is gone as Crashed: those of the deployment, or those tagged with the project; returns
    their names."""
    unfinished = FlowRunFilterState(type=FlowRunFilterStateType(
        any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]))
    tags = None if deployment else FlowRunFilterTags(all_=[f"project:{project.name}"])
    marked = []
    with get_client(sync_client=True) as client:
        for run in _runs(client, deployment, FlowRunFilter(state=unfinished, tags=tags)):
            if gone(run, Path(run.parameters.get("project") or project)):
                reason = f"its process on {socket.gethostname()} is gone: killed, or the machine went down"
                client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
                marked.append(run.name)
    return marked


def drop_missed(deployment: str) -> int:
    """Of the runs whose time came while nobody was there to start them, cancel all but the latest; how many."""
    with get_client(sync_client=True) as client:
        names = FlowRunFilterStateName(any_=["Scheduled", "Late"])
        missed = [run for run in _runs(client, deployment, FlowRunFilter(state=FlowRunFilterState(name=names)))
                  if run.auto_scheduled and run.expected_start_time < datetime.now(UTC)]
        missed = sorted(missed, key=lambda run: run.expected_start_time)[:-1]
        for run in missed:
            client.set_flow_run_state(run.id, Cancelled(message="missed; a later one runs instead"), force=True)
    return len(missed)


def watch(project: Path, deployment: str) -> None:
    """Mark crashed runs now, and from time to time as long as this process lives."""
    def look() -> None:
        while True:
            with suppress(Exception):  # the server may be away for a while
                for name in mark_crashed(project, deployment):
                    print(f"the process of the run {name} is gone: it is marked as Crashed", flush=True)
            time.sleep(OFTEN)

    threading.Thread(target=look, daemon=True, name="dead runs").start()


def _runs(client, deployment: str | None, chosen: FlowRunFilter) -> list[FlowRun]:
    filters = {"flow_run_filter": chosen}
    if deployment:
        flow, _, name = deployment.partition("/")
        filters |= {"flow_filter": FlowFilter(name=FlowFilterName(any_=[flow])),
                    "deployment_filter": DeploymentFilter(name=DeploymentFilterName(any_=[name]))}
    found, page = [], 200
    while True:
        some = client.read_flow_runs(**filters, limit=page, offset=len(found))
        found += some
        if len(some) < page:
            return found
