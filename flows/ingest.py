"""Take in what is new: the clips of the data set, asked for again where that may help, and the shards that changed.

    python -m flows.ingest [--project PATH] [--push] [--retries N] [--notify CMD]

Clips that failed for good are not asked for again, files of one's own that came or went are noticed, and only shards
whose clips changed are made. Training is the pipeline's business.
"""

import argparse
import csv
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner
from ruamel.yaml import YAML

from flows import runs, told, trusted
from flows.lock import drop_damaged
from flows.pipeline import arguments, bring_up_to_date
from flows.process import only_run, stopping
from flows.server import use_server
from flows.settings import changed, changed_text, check_project
from maavt import errors
from maavt.errors import UserError

LAST = "shard"  # of the stages that an ingest makes, with all that it needs
PASSING = ("transient", "session", "environment")  # kinds of failure of a clip that may be others the next time


@flow(persist_result=False, task_runner=ThreadPoolTaskRunner(max_workers=16), on_failure=[told.ended],
      on_cancellation=[told.ended], on_crashed=[told.ended])
def ingest(set: list[str] | None = None, push: bool = False, retries: int = 0, pause: float = 60,
           within: str | None = None) -> State:
    """Bring the clips and shards of the project up to date, say what is new, and push if asked to.

    The parameters are the pipeline's, but for `set`, which has no place here.
    """
    if missed := runs.missed():
        return missed
    project = trusted.project()
    facts = {"project": str(project), "run_id": flow_run.id, "url": flow_run.ui_url}
    try:
        if set:
            raise UserError("an ingest has no settings of its own; set them in params.yaml, or run the pipeline")
        project = check_project(project)
        name = told.introduce(project, [], ingest=True, push=push, retries=retries)
        facts |= {"run": name, "logs": str(logs := told.logs(project, name))}
        with (runs.alive(project, flow_run.id), concurrency(within or [], strict=True),
              only_run(project, get_run_logger().warning) as lock):
            drop_damaged(project)
            with changed(project, []), stopping():
                before = clips(project)
                again = [row for row in before.values() if row["reason"].startswith(PASSING)]
                state = bring_up_to_date(project, [], push, retries, pause, lock, logs, facts, until=LAST,
                                         force={"download"} if again else frozenset())
                facts["news"] = tell(project, before, clips(project))
    except UserError as error:
        state = Failed(message=str(error))
    if state.name == "Completed":
        state = Completed(message=", ".join(f"{count} {what}" for what, count in facts["news"].items()))
    told.notify(facts | {"state": state.name, "message": state.message})
    return state


def clips(project: Path) -> dict[str, dict]:
    """Key -> row of the manifest of the project's data set; empty where there is none yet."""
    with suppress(OSError, KeyError, TypeError):
        dataset = YAML(typ="safe").load((project / "params.yaml").read_text())["dataset"]
        with open(project / "data" / "raw" / dataset / "clips.csv", newline="") as file:
            return {row["key"]: row for row in csv.DictReader(file)}
    return {}


def tell(project: Path, before: dict[str, dict], now: dict[str, dict]) -> dict[str, int]:
    """Leave an artifact of what came and went, by split and label, and of what is missing still; returns the sums."""
    def here(rows: dict[str, dict]) -> set[str]:
        return {key for key, row in rows.items() if row["status"] == "ok"}

    groups = {"new": [now[key] for key in here(now) - here(before)],
              "gone": [before[key] for key in here(before) - here(now)],
              "missing": [row for row in now.values() if row["status"] != "ok"]}
    table = [{"clips": count, "what": what, "split": split, "label": label, "reason": reason}
             for what, rows in groups.items() for (split, label, reason), count in Counter(
                 (row["split"], row["label"], row["reason"]) for row in rows).most_common(100)]
    create_table_artifact(table or [{"clips": 0, "what": "nothing new"}], key=f"ingest-{told.slug(project.name)}",
                          description="What came, what went, and what is missing")
    return {what: len(rows) for what, rows in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.ingest", description=__doc__.partition("\n")[0])
    arguments(parser)
    options = vars(parser.parse_args())
    project = check_project(options.pop("project"))
    changed_text(project, [])
    trusted.decide(project, options.pop("notify"))
    use_server()
    state = ingest(**options, return_state=True)
    print(state.message)
    if not state.is_completed():
        raise UserError(state.message)


if __name__ == "__main__":
    sys.exit(errors.run(main))
