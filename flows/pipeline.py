"""The DVC graph as a Prefect flow: one task per stage, in the graph's order.

    python -m flows.pipeline [--project PATH] [--set KEY=VALUE] [--push] [--retries N] [--notify CMD]

DVC decides what has to run; Prefect starts it, keeps its log, retries what may pass and says how it ended.
Without `PREFECT_API_URL` the command starts a Prefect server for this one run.
"""

import argparse
import queue
import re
import sys
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from time import monotonic

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows import PROJECT, runs, told, trusted
from flows.lock import drop_damaged
from flows.process import DVC, LAST, only_run, run, stopped, stopping
from flows.server import use_server
from flows.settings import changed, changed_text, check_project, experiment_name, saving
from maavt import errors
from maavt.errors import UserError
from maavt.work import positive

FETCH = ("download", "backbone")  # the stages that a second try may help: what they need is elsewhere
WRONG, AGAIN = 2, 75  # exit codes of a stage: called wrongly; stopped from outside, to be gone on with
STOPS = 5  # how often a stage that was stopped from outside is gone on with


def graph(project: Path) -> tuple[dict[str, set[str]], str | None]:
    """The stages' addresses, each after those it depends on, and these; and the default remote. Raises DvcException."""
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro

    with Repo(str(project)) as repo:
        def address(stage) -> str:
            return stage.name if stage.path_in_repo == "dvc.yaml" else f"{stage.path_in_repo}:{stage.name}"

        stages = [stage for stage in plan_repro(repo.index.graph) if stage.cmd]
        needs = {address(stage): {address(other) for other in repo.index.graph.successors(stage) if other.cmd}
                 for stage in stages}
        return needs, repo.config["core"].get("remote")


def upstream(needs: dict[str, set[str]], stage: str) -> dict[str, set[str]]:
    """Of the stages those that one needs, and itself; all of them where there is none of that name."""
    wanted = {stage}
    for name in reversed(needs):
        wanted |= needs[name] if name in wanted else set()
    return {name: needs[name] for name in needs if name in wanted} or needs


def log_of(stage: str, logs: Path) -> Path:
    return logs / f"{stage.replace('/', '_').replace(':', '_')}.log"


def worth_another_try(tries: int) -> Callable:
    """Whether a failed stage may end better: one of so many tries, unless it was called wrongly; what was stopped."""
    def condition(task, task_run, state) -> bool:  # Prefect takes plain functions alone
        code = re.search(r"exit code (-?\d+)", state.message or "")
        if stopped() or not code or int(code[1]) == WRONG:
            return False
        return task_run.run_count <= (STOPS if int(code[1]) == AGAIN else tries)

    return condition


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def reproduce(stage: str, project: Path, lock: int, logs: Path, force: bool = False) -> State:
    """`dvc repro --single-item STAGE`; a Failed state names the stage, a Completed one is called Cached when nothing
    had to be done."""
    command = [*DVC, "repro", "--single-item", *(["--force"] if force else []), stage]
    done = run(command, project, lock, log_of(stage, logs))
    if done.code == 0:
        ran = re.search(rf"^Running stage '{re.escape(stage)}'", done.log.read_text(), re.M)
        return Completed(message="it ran") if ran else Completed(name="Cached", message="it was up to date")
    if "Unable to acquire lock" in done.tail or "being blocked by" in done.tail:
        return Failed(message=f"stage {stage} was not run: another dvc command works in {project}")
    # dvc itself ends with 255 whatever the stage ended with
    own = re.findall(r"exited with (-?\d+)", done.tail)
    get_run_logger().error("the last lines of %s, of which %s has all:\n%s", stage, done.log, done.tail)
    return Failed(message=f"stage {stage} failed with exit code {own[-1] if own else done.code}")


@task(name="push", task_run_name="push", cache_policy=NO_CACHE, persist_result=False)
def push_cache(project: Path, lock: int, logs: Path) -> State:
    """`dvc push`, of what is cached and of which stage made it; a Failed state when it fails."""
    done = run([*DVC, "push", "--run-cache"], project, lock, logs / "push.log")
    if done.code:
        get_run_logger().error("the last lines of dvc push, of which %s has all:\n%s", done.log, done.tail)
        return Failed(message=f"dvc push failed with exit code {done.code}")
    return Completed(message=(done.tail.splitlines() or ["pushed"])[-1])


@task(name="experiment", task_run_name="experiment {name}", cache_policy=NO_CACHE, persist_result=False)
def save_experiment(name: str, project: Path, lock: int, logs: Path) -> State:
    """`dvc exp save`: what the workspace has becomes the experiment of that name, instead of an older one."""
    with saving(project, name) as command:
        done = run([*DVC, *command], project, lock, logs / "experiment.log")
    return Failed(message=f"dvc exp save failed: {done.reason}") if done.code else Completed()


def in_order(needs: dict[str, set[str]], start: Callable, at_once: int) -> Iterator[tuple[str, State]]:
    """(stage, its final state) as they end. `start(stage, threaded)` runs a stage, in a thread of its own if asked to.

    Up to `at_once` stages run at the same time, each after those that it needs; none begins after one that failed.
    """
    if at_once == 1:
        for stage in needs:
            state = start(stage, False)
            yield stage, state
            if not state.is_completed():
                break
        return
    waiting, running, ended = dict(needs), {}, queue.Queue()
    while waiting or running:
        for stage in [stage for stage, needed in waiting.items() if not needed & {*waiting, *running}]:
            if len(running) < at_once:
                del waiting[stage]
                running[stage] = start(stage, True)
                running[stage].add_done_callback(lambda _, stage=stage: ended.put(stage))
        stage = ended.get()
        future = running.pop(stage)
        future.wait()  # or its state would be what the server has heard so far
        state = future.state
        if not state.is_completed():
            waiting.clear()
        yield stage, state


@flow(persist_result=False, task_runner=ThreadPoolTaskRunner(max_workers=16), on_failure=[told.ended],
      on_cancellation=[told.ended], on_crashed=[told.ended])
def pipeline(set: list[str] | None = None, push: bool = False, retries: int = 0, pause: float = 60,
             within: str | None = None) -> State:
    """Bring every stage of the DVC project up to date, then push the cache if asked to.

    With `set` (["tokens=10", ...]) the run is an experiment: DVC keeps it under a name made of the settings, and the
    workspace gets back what it had. What is fetched from elsewhere is tried again `retries` times, after `pause`
    seconds and then twice as long each time. Of two runs in one project the second waits; `within` names a
    concurrency limit of the Prefect server. A run that is cancelled or killed stops its stages. The process that serves
    decides which project it is, and which command hears how the run ended (flows/trusted.py).
    """
    if missed := runs.missed():
        return missed
    settings, project = list(set or []), trusted.project()
    facts = {"project": str(project), "settings": settings, "run_id": flow_run.id, "url": flow_run.ui_url}
    try:
        project = check_project(project)
        name = told.introduce(project, settings, push=push, retries=retries)
        facts |= {"run": name, "logs": str(logs := told.logs(project, name))}
        with (runs.alive(project, flow_run.id), concurrency(within or [], strict=True),
              only_run(project, get_run_logger().warning) as lock):
            drop_damaged(project)
            with changed(project, settings, outputs=True), stopping():
                state = bring_up_to_date(project, settings, push, retries, pause, lock, logs, facts)
    except UserError as error:
        state = Failed(message=str(error))
    told.notify(facts | {"state": state.name, "message": state.message})
    return state


def bring_up_to_date(project: Path, settings: list[str], push: bool, retries: int, pause: float, lock: int,
                     logs: Path, facts: dict, until: str | None = None, force: Container[str] = ()) -> State:
    """Run the stages, those that `until` needs or all, and push; what came of them goes to artifacts and `facts`.

    Stages in `force` run even when nothing they depend on has changed.
    """
    from dvc.exceptions import DvcException

    try:
        needs, remote = graph(project)
    except DvcException as error:
        run([*DVC, "stage", "list"], project, lock, logs / "dvc.log")  # shows the lines at fault
        return Failed(message=f"dvc cannot read the stages of {project}: {error}")
    needs, begun = upstream(needs, until) if until else needs, {}

    def start(stage: str, threaded: bool):
        tries = retries if stage.split("@")[0] in FETCH else 0
        step = reproduce.with_options(name=stage, retries=max(tries, STOPS),
                                      retry_delay_seconds=exponential_backoff(pause),
                                      retry_condition_fn=worth_another_try(tries))
        begun[stage] = monotonic()
        if threaded:
            return step.submit(stage, project, lock, logs, stage in force)
        return step(stage, project, lock, logs, stage in force, return_state=True)

    rows, failed = [], []
    for stage, state in in_order(needs, start, positive("MAAVT_PARALLEL_STAGES", 1)):
        rows.append({"stage": stage, "after": ", ".join(sorted(needs[stage])), "state": state.name,
                     "seconds": f"{monotonic() - begun[stage]:.1f}"})
        if not state.is_completed():
            failed.append(state)
            log = log_of(stage, logs)
            facts.setdefault("log", str(log))
            facts.setdefault("last_lines", log.read_text().splitlines()[-LAST:] if log.exists() else [])
    facts["stages"] = rows
    try:
        facts["metrics"] = told.publish(project, rows, settings)
    except Exception:  # what is told of a run does not fail it
        get_run_logger().warning("the artifacts of this run are not complete", exc_info=True)
    if failed:
        return Failed(message=failed[0].message)
    if settings:
        state = save_experiment(experiment_name(settings), project, lock, logs, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
    if push and not remote:
        message = f"nothing was pushed: {project} has no default dvc remote; dvc remote add --default NAME URL"
        get_run_logger().warning(message)
        return Completed(name="NotPushed", message=message)
    if push:
        state = push_cache(project, lock, logs, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
    return Completed()


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options that a run has, here and where it is served."""
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE",
                        help="a setting of this run alone, which makes it an experiment; may be repeated")
    parser.add_argument("--push", action="store_true", help="push the cache to the default remote at the end")
    parser.add_argument("--retries", type=int, default=0, help="how often a failed download is tried again")
    parser.add_argument("--pause", type=float, default=60, help="seconds before the first of these, then twice as long")
    parser.add_argument("--notify", metavar="CMD", help="a command that is told how the run ended: JSON on its stdin "
                        "(by default MAAVT_NOTIFY)")
    parser.add_argument("--within", metavar="NAME", help="a concurrency limit of the Prefect server to keep to")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Run the whole DVC graph.")
    arguments(parser)
    options = vars(parser.parse_args())
    project = check_project(options.pop("project"))
    changed_text(project, options["set"] or [])  # wrong settings are told before a server is started
    trusted.decide(project, options.pop("notify"))
    use_server()
    state = pipeline(**options, return_state=True)
    if not state.is_completed():
        raise UserError(state.message)


if __name__ == "__main__":
    sys.exit(errors.run(main))
