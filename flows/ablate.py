"""A grid of experiments: every setting with every seed, one table and one picture of them.

    python -m flows.ablate [--project PATH] [--seeds 0 1 2] [--metric accuracy] [-S KEY=VALUE ...] SETTING [SETTING ...]

Each SETTING is experiments of its own: `tokens=2` is one, `tokens=2,5,10` are three, `maavt.lsa=false+tokens=2` is one
that changes two keys at once, and `maavt.lsa=true,false+tokens=2,10` are four. What all of them share is told
by -S. The result is data/ablation/ablation.csv and ablation.svg.
"""

import argparse
import json
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from ruamel.yaml import YAML

from flows import PROJECT, runs, told, trusted
from flows.lock import drop_damaged
from flows.process import DVC, only_run, run
from flows.server import use_server
from flows.settings import (
    OUTPUTS_BACK,
    changed,
    changed_text,
    check_free,
    check_project,
    experiment_name,
    saving,
)
from maavt import errors
from maavt.errors import UsageError, UserError
from maavt.measure import plots
from maavt.work import write_table

COMMA = re.compile(r",(?![^\[\]{}]*[\]}])")  # outside of brackets


def grid(settings: list[str]) -> list[str]:
    """Settings with several values -> single ones: ["tokens=2,5"] -> ["tokens=2", "tokens=5"]; each once, in order.

    A list in brackets is one value: models=[maavt,lavish].

    Raises UsageError for what is no KEY=VALUE.
    """
    found = []
    for setting in settings:
        changes = [change.partition("=") for change in setting.split("+")]
        if not all(key and value for key, _, value in changes):
            raise UsageError(f"{setting!r} is no setting; expected KEY=VALUE, KEY=VALUE,VALUE or KEY=VALUE+KEY=VALUE")
        options = [[f"{key}={value}" for value in COMMA.split(values)] for key, _, values in changes]
        found += ["+".join(chosen) for chosen in product(*options)]
    return list(dict.fromkeys(found))


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def experiment(name: str, changes: list[str], project: Path, lock: int, logs: Path, targets: tuple[str, ...] = ()
               ) -> list[dict]:
    """The graph, or what `targets` need of it, with these settings as a DVC experiment; returns a row of scores for
    each model.

    Raises UserError when it fails.
    """
    with changed(project, changes):
        for step in (nullcontext(["repro", *targets]), saving(project, name, targets)):
            with step as command:
                dvc(command, name, changes, project, lock, logs)
        return [{"model": model, **speed(project, model), **scores} for model, scores in read_metrics(project).items()]


def dvc(command: list[str], name: str, changes: list[str], project: Path, lock: int, logs: Path) -> None:
    """Run a command of DVC for an experiment. Raises UserError when it fails."""
    done = run([*DVC, *command], project, lock, logs / f"{name}.log")
    if done.code:
        raise UserError(f"the experiment {', '.join(changes)} failed: {done.reason} (all of it: {done.log})")


def speed(project: Path, model: str) -> dict[str, float]:
    """How long an epoch of the model that is here took when it was trained, which may be long ago, where that is known.
    """
    try:
        seconds = json.loads((project / "data" / "timing" / f"{model}.json").read_text())["seconds_per_epoch"]
    except (OSError, KeyError):
        return {}
    return {} if seconds is None else {"seconds_per_epoch": seconds}


@contextmanager
def at_work(project: Path, settings: list[str]) -> Iterator[tuple[int, Path]]:
    """The project's lock and the folder of logs for a run of many experiments, which says what it is."""
    logs = told.logs(project, told.introduce(project, settings))
    with runs.alive(project, flow_run.id), only_run(project, get_run_logger().warning) as lock:
        drop_damaged(project)
        try:
            yield lock, logs
        finally:  # models and predictions, which git does not see: those of the settings that are back in params.yaml
            run([*DVC, *OUTPUTS_BACK], project, lock, logs / "checkout.log", quiet=True)


@flow(persist_result=False, on_completion=[told.ended], on_failure=[told.ended], on_cancellation=[told.ended],
      on_crashed=[told.ended])
def ablate(settings: list[str], seeds: list[int], metric: str = "accuracy", shared: Sequence[str] = ()) -> list[dict]:
    """Run every setting with every seed and the `shared` settings, one after the other; returns the rows of
    ablation.csv.

    Experiments stay in the repository (`dvc exp show`); the workspace gets back what it had.
    """
    if missed := runs.missed():
        return missed
    project = check_project(trusted.project())
    found, failed = [], []
    with at_work(project, [*shared, *settings]) as (lock, logs):
        for setting, seed in product(grid(settings), seeds):
            changes = [*shared, *setting.split("+"), f"seed={seed}"]
            try:
                rows = experiment(f"ablation-{experiment_name([setting, str(seed), *shared])}", changes, project, lock,
                                  logs)
            except UserError as error:
                failed.append(str(error))
                continue
            found += [{"setting": setting, "seed": seed, **row} for row in rows]
            write(summarise(found), project / "data" / "ablation", metric)
    if failed:
        kept = f"; the {len(found)} finished ones are in data/ablation" if found else ""
        raise UserError("\n".join(failed) + kept)
    return summarise(found)


def write(rows: list[dict], folder: Path, metric: str) -> None:
    """ablation.csv and ablation.svg, as far as the grid has come. Raises UserError for a metric that no row has."""
    drawn = [row for row in rows if f"{metric}_mean" in row]
    if not drawn:
        raise UserError(f"--metric {metric}: no such number in data/eval; one is accuracy")
    write_table(folder / "ablation.csv", dict.fromkeys(key for row in rows for key in row), rows)
    plots.save(folder / "ablation.svg", plots.ablation, drawn, metric)


def read_metrics(project: Path) -> dict[str, dict[str, float]]:
    """data/eval/MODEL/metrics.json of the models that params.yaml names."""
    models = YAML(typ="safe").load((project / "params.yaml").read_text())["models"]
    return {model: json.loads((project / "data" / "eval" / model / "metrics.json").read_text()) for model in models}


def summarise(runs: list[dict]) -> list[dict]:
    """One row per setting and model: number of seeds, mean and standard deviation of every number over them."""
    rows = []
    for setting, model in dict.fromkeys((one["setting"], one["model"]) for one in runs):
        own = [one for one in runs if (one["setting"], one["model"]) == (setting, model)]
        row = {"setting": setting, "model": model, "seeds": len(own)}
        for key in set.intersection(*(set(one) for one in own)) - {"setting", "model", "seed"}:
            values = [one[key] for one in own]
            if isinstance(values[0], str):  # a version
                continue
            row |= spread(key, values)
        rows.append({key: row[key] for key in ("setting", "model", "seeds", *sorted(row.keys() - {"setting", "model",
                                                                                             "seeds"}))})
    return rows


def spread(number: str, values: list[float]) -> dict[str, float]:
    """The columns of a number's mean and, over several values, its standard deviation."""
    mean = {f"{number}_mean": round(statistics.fmean(values), 4)}
    return mean | ({f"{number}_std": round(statistics.stdev(values), 4)} if len(values) > 1 else {})


def chosen(rows: list[dict]) -> dict | None:
    """The row of the first model that the validation split prefers; the test split has no say. None where nothing was
    validated."""
    validated = [row for row in rows if "val_accuracy_mean" in row and row["model"] == rows[0]["model"]]
    return max(validated, key=lambda row: row.get("val_map_mean", row["val_accuracy_mean"]), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.ablate", description="Run a grid of DVC experiments.")
    parser.add_argument("settings", nargs="*", default=["tokens=2,5,10,15"], metavar="SETTING",
                        help="such as tokens=2,5 or maavt.lsa=false (tokens=2,5,10,15: Table 8)")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--metric", default="accuracy", help="what the picture shows")
    parser.add_argument("-S", "--set", dest="shared", action="append", default=[], metavar="KEY=VALUE",
                        help="settings of params.yaml that all share")
    options = parser.parse_args()
    project = check_project(options.project)
    check_free([*options.shared, *options.settings], seed="--seeds")
    for setting in grid(options.settings):
        changed_text(project, [*options.shared, *setting.split("+")])
    trusted.decide(project)
    use_server()
    rows = ablate(options.settings, list(dict.fromkeys(options.seeds)), options.metric, options.shared)
    for row in rows:
        if f"{options.metric}_mean" not in row:
            continue
        spread = f" ± {row[f'{options.metric}_std']:.3f} over {row['seeds']} seeds" if row["seeds"] > 1 else ""
        took = f", {row['seconds_per_epoch_mean']:.0f} s per epoch" if "seconds_per_epoch_mean" in row else ""
        print(f"{row['setting']}, {row['model']}: {options.metric} {row[f'{options.metric}_mean']:.3f}{spread}{took}")
    if best := chosen(rows):
        print(f"best on the validation split: {best['setting']}, {best['model']} ({best['val_accuracy_mean']:.3f}): "
              f"make exp SET={shlex.quote(' '.join([*options.shared, *best['setting'].split('+')]))}")
    print(project / "data" / "ablation" / "ablation.csv")


if __name__ == "__main__":
    sys.exit(errors.run(main))
