"""A grid of experiments: every setting with every seed, one table and one picture of them.

    python -m flows.ablate [--project PATH] [--seeds 0 1 2] [--metric accuracy] SETTING [SETTING ...]

A SETTING is one -S of `dvc exp run`: `tokens=2`, `maavt.lsa=false`; `tokens=2,5,10` stands for three, and
`maavt.lsa=false+tokens=10` changes two keys at once. The result is data/ablation/ablation.csv and ablation.svg.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from flows.pipeline import PROJECT, only_run, run, use_server  # isort: skip; sets Prefect's environment
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from ruamel.yaml import YAML

from maavt import errors
from maavt.errors import UsageError, UserError
from maavt.measure import plots
from maavt.work import atomic, write_table

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


def check_keys(settings: list[str], project: Path) -> None:
    """Raises UsageError for a setting whose key is not in the project's params.yaml."""
    known = YAML(typ="safe").load((project / "params.yaml").read_text())
    for setting in settings:
        for key in (change.partition("=")[0] for change in setting.split("+")):
            here = known
            for part in key.split("."):
                if not isinstance(here, dict) or part not in here:
                    near = get_close_matches(part, here if isinstance(here, dict) else [])
                    raise UsageError(f"{setting}: params.yaml has no {key}" + (f"; is {near[0]} meant?" if near else
                                     "; expected one of its keys, such as tokens or maavt.lsa"))
                here = here[part]


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def experiment(name: str, changes: list[str], project: Path, lock: int, targets: tuple[str, ...] = ()) -> float:
    """`dvc exp run` in the project's own folder, of the stages that `targets` need or of all; returns its seconds.
    Raises UserError when it fails.

    An experiment of that name goes first: DVC's --force, which would replace it, runs every stage again.
    """
    begin = time.monotonic()
    dvc = [sys.executable, "-m", "dvc", "exp"]
    known = subprocess.run([*dvc, "list", "--name-only"], cwd=project, capture_output=True, text=True).stdout.split()
    if name in known:
        run([*dvc, "remove", name], project, lock)
    code, tail = run([*dvc, "run", "--name", name, *(part for change in changes for part in ("-S", change)), *targets],
                     project, lock)
    if code:
        raise UserError(f"the experiment {', '.join(changes)} failed: {(tail.splitlines() or ['no message'])[-1]}")
    return time.monotonic() - begin


@contextmanager
def committed(project: Path) -> Iterator[Callable[[], None]]:
    """What gives params.yaml and dvc.lock back as they are now; called once more at the end."""
    before = {path: path.read_bytes() for path in (project / "params.yaml", project / "dvc.lock") if path.exists()}

    def restore() -> None:
        for path, content in before.items():
            path.write_bytes(content)

    try:
        yield restore
    finally:
        restore()


def name_of(kind: str, setting: str, seed: int) -> str:
    """What DVC calls the experiment."""
    return f"{kind}-" + "".join(c if c.isalnum() else "-" for c in f"{setting}-{seed}")


@flow(persist_result=False)
def ablate(settings: list[str], seeds: list[int], project: Path = PROJECT, metric: str = "accuracy") -> list[dict]:
    """Run every setting with every seed, one after the other; returns the rows of ablation.csv.

    Experiments stay in the repository (`dvc exp show`); the working tree gets the committed parameters back.
    """
    runs, failed = [], []
    with only_run(project) as lock, committed(project) as restore:
        for setting, seed in product(settings, seeds):
            restore()
            try:
                seconds = experiment(name_of("ablation", setting, seed), [*setting.split("+"), f"seed={seed}"],
                                     project, lock)
            except UserError as error:
                failed.append(str(error))
                continue
            runs += [{"setting": setting, "seed": seed, "model": model, "seconds": seconds, **scores}
                     for model, scores in read_metrics(project).items()]
            write(summarise(runs), project / "data" / "ablation", metric)
    if failed:
        kept = f"; the {len(runs)} finished ones are in data/ablation" if runs else ""
        raise UserError("\n".join(failed) + kept)
    return summarise(runs)


def write(rows: list[dict], folder: Path, metric: str) -> None:
    """ablation.csv and ablation.svg, as far as the grid has come. Raises UserError for an unknown metric."""
    if any(f"{metric}_mean" not in row for row in rows):
        raise UserError(f"--metric {metric}: no such number in data/eval; one is accuracy")
    write_table(folder / "ablation.csv", dict.fromkeys(key for row in rows for key in row), rows)
    figure = Figure(layout="constrained")
    plots.ablation(figure, rows, metric)
    with atomic(folder / "ablation.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})


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
        for key in own[0].keys() - {"setting", "model", "seed"}:
            values = [one[key] for one in own]
            if isinstance(values[0], str):  # a version
                continue
            row[f"{key}_mean"] = round(statistics.fmean(values), 4)
            if len(values) > 1:
                row[f"{key}_std"] = round(statistics.stdev(values), 4)
        rows.append({key: row[key] for key in ("setting", "model", "seeds", *sorted(row.keys() - {"setting", "model",
                                                                                             "seeds"}))})
    return rows


def chosen(rows: list[dict]) -> dict | None:
    """The row that the validation split prefers; the test split has no say. None where nothing was validated."""
    validated = [row for row in rows if "val_accuracy_mean" in row]
    return max(validated, key=lambda row: row["val_accuracy_mean"], default=None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.ablate", description="Run a grid of DVC experiments.")
    parser.add_argument("settings", nargs="*", default=["tokens=2,5,10,15"], metavar="SETTING",
                        help="such as tokens=2,5 or maavt.lsa=false (tokens=2,5,10,15: Table 8)")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--metric", default="accuracy", help="what the picture shows")
    options = parser.parse_args()
    project = options.project.resolve()
    if not (project / ".dvc").is_dir():
        raise UserError(f"{project} is not a DVC project: it has no folder .dvc")
    settings = grid(options.settings)
    check_keys(settings, project)
    use_server()
    rows = ablate(settings, options.seeds, project, options.metric)
    for row in rows:
        spread = f" ± {row[f'{options.metric}_std']:.3f} over {row['seeds']} seeds" if row["seeds"] > 1 else ""
        print(f"{row['setting']}, {row['model']}: {options.metric} {row[f'{options.metric}_mean']:.3f}{spread}, "
              f"{row['seconds_mean']:.0f} s each")
    if best := chosen(rows):
        print(f"best on the validation split: {best['setting']}, {best['model']} ({best['val_accuracy_mean']:.3f}): "
              f"dvc exp run {' '.join(f'-S {change!r}' for change in best['setting'].split('+'))}")
    print(project / "data" / "ablation" / "ablation.csv")


if __name__ == "__main__":
    sys.exit(errors.run(main))
