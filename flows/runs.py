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
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed, State

from flows import told, trusted
from maavt.errors import UserError

STARTING = 300  # seconds from a run's start to its lock, at most
OFTEN = 20  # seconds between two looks
WAITING = ["Scheduled", "Late"]  # names of the states of runs that nobody has begun to start
MISSED = "missed; a later one runs instead"


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
    """Mark runs of this clone (all, or those of the deployment) whose process is gone as Crashed, and tell the command
    of --notify; returns their names."""
    unfinished = FlowRunFilterState(type=FlowRunFilterStateType(
        any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]))
    tags = FlowRunFilterTags(all_=[trusted.tag(project)])
    marked = []
    with get_client(sync_client=True) as client:
        for run in _runs(client, deployment, FlowRunFilter(state=unfinished, tags=tags)):
            if gone(run, project):
                reason = f"its process on {socket.gethostname()} is gone: killed, or the machine went down"
                client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
                marked.append(run.name)
                told.ended(None, run, Crashed(message=reason))
    return marked


def check_owner(project: Path, name: str) -> None:
    """Raises UserError when the server has a deployment of this name (FLOW/NAME) which is not of this clone: two clones
    would take each other's place."""
    with get_client(sync_client=True) as client:
        try:
            known = client.read_deployment_by_name(name)
        except ObjectNotFound:
            return
    owners = [tag.removeprefix("clone:") for tag in known.tags if tag.startswith("clone:")]
    before = known.parameters.get("project")  # of an earlier version, which had no tags
    if trusted.tag(project) not in known.tags and (owners or before != str(project)):
        raise UserError(f'the Prefect server has a deployment "{name}" of another project '
                        f"({', '.join(owners) or before or 'not served by flows.serve'}); give this one a name of its "
                        f'own, --name OTHER, or, if that project is no more: prefect deployment delete "{name}"')


def drop_missed(deployment: str) -> int:
    """Of the runs whose time came while nobody was there to start them, cancel all but the latest; how many."""
    with get_client(sync_client=True) as client:
        names = FlowRunFilterStateName(any_=WAITING)
        return _leave_out(client, [
            run for run in _runs(client, deployment, FlowRunFilter(state=FlowRunFilterState(name=names)))
            if run.auto_scheduled and run.expected_start_time < datetime.now(UTC)])


def missed() -> State | None:
    """How this run ends at once: it was on schedule, and when somebody could start it a later one was due as well,
    which is to run instead. None for all others, and with --catch-up."""
    if trusted.catch_up() or not deployment.id:
        return None
    with suppress(Exception), get_client(sync_client=True) as client:  # when in doubt it runs
        this = client.read_flow_run(flow_run.id)
        taken = max(state.timestamp for state in client.read_flow_run_states(this.id) if state.is_pending())
        due = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[this.deployment_id]),
                            expected_start_time=FlowRunFilterExpectedStartTime(after_=this.expected_start_time,
                                                                               before_=taken))
        later = [run for run in _runs(client, None, due) if run.auto_scheduled and not run.state.is_cancelled()
                 and run.expected_start_time > this.expected_start_time]
        if this.auto_scheduled and later:
            _leave_out(client, [run for run in later if run.state.name in WAITING])
            return Cancelled(message=MISSED)
    return None


def _leave_out(client, runs: list[FlowRun]) -> int:
    """Cancel all of these runs but the latest; how many."""
    runs = sorted(runs, key=lambda run: run.expected_start_time)[:-1]
    for run in runs:
        client.set_flow_run_state(run.id, Cancelled(message=MISSED), force=True)
    return len(runs)


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
