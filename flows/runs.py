"""Runs whose process is gone, and runs that nobody was there to start.

Prefect's server hears nothing of a killed process or a power cut: such a run would stay Running for ever. So every run
holds the lock of a file in .dvc/tmp/runs as long as its process lives, and says on which machine it is.
"""

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed, State

from maavt.errors import UserError

STARTING = 300  # seconds from a run's start to its lock, at most
OFTEN = 20  # seconds between two looks


def place(project: Path) -> str:
    """The tag of all runs of this project: two clones with one folder name are two projects."""
    return f"place:{socket.gethostname()}:{project}"


def check_own(deployment: str, project: Path) -> None:
    """Raises UserError if the server has a deployment (FLOW/NAME) of that name that serves another project."""
    with get_client(sync_client=True) as client:
        try:
            tags = client.read_deployment_by_name(deployment).tags
        except ObjectNotFound:
            return
    others = [tag.removeprefix("place:") for tag in tags if tag.startswith("place:") and tag != place(project)]
    if others:
        raise UserError(f"the Prefect server has a deployment {deployment} of {others[0]}; choose another name for "
                        f"{project}: --name NAME")


def superseded() -> State | None:
    """A Cancelled state if this run was started by the schedule and a later scheduled run of its deployment is due, too
    (after a suspend, say); None with --catch-up (MAAVT_CATCH_UP)."""
    if not flow_run.id or os.environ.get("MAAVT_CATCH_UP"):
        return None
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(flow_run.id)
        if not own.auto_scheduled or not own.deployment_id:
            return None
        due = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled", "Late", "Pending"])),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC))),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[own.deployment_id])))
    later = any(run.auto_scheduled and run.expected_start_time > own.expected_start_time for run in due)
    return Cancelled(message="missed; a later run follows") if later else None


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


def mark_crashed(project: Path, deployment: str | None = None) -> list[tuple[FlowRun, State]]:
    """Mark runs whose process is gone as Crashed: those of the deployment, or those of the project; returns
    them with their states."""
    unfinished = FlowRunFilterState(type=FlowRunFilterStateType(
        any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]))
    tags = None if deployment else FlowRunFilterTags(all_=[place(project)])
    marked = []
    with get_client(sync_client=True) as client:
        for run in _runs(client, deployment, FlowRunFilter(state=unfinished, tags=tags)):
            if gone(run, project):
                reason = f"its process on {socket.gethostname()} is gone: killed, or the machine went down"
                state = Crashed(message=reason)
                client.set_flow_run_state(run.id, state, force=True)
                marked.append((run, state))
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


def watch(project: Path, deployment: str, on_crash: Callable) -> None:
    """Mark crashed runs, and call on_crash(None, run, state) for each, every OFTEN seconds while this process lives."""
    def look() -> None:
        while True:
            with suppress(Exception):  # the server may be away for a while
                for run, state in mark_crashed(project, deployment):
                    print(f"the process of the run {run.name} is gone: it is marked as Crashed", flush=True)
                    on_crash(None, run, state)
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
