"""MA-AVT beside its published form, a linear probe, LAVISH and MBT: each at its own best rate, over several seeds.

    python -m flows.compare [--project PATH] [--models maavt paper linear lavish mbt] [--seeds 0 1 2]
                            [--rates 0.33 1 3] [-S KEY=VALUE ...]

The rates are shares of the model's own in params.yaml (of LAVISH's adapters, MBT's encoders, the probe's head ...).
With the first seed each is trained, and the validation split chooses, of equal ones that nearest to the model's own;
the model is evaluated on the test split at that one alone. A run that fails costs no other.
Epochs and data are the same for all, and so are augmentation, clipping, averaging and balance, but for `paper`, which
has none of these four. The result is data/comparison: comparison.csv, comparison.svg, and index.html that shows both.

The lead of the first model over each other one has a 95 % interval that allows for other seeds and other clips: see
maavt.measure.scores.lead. Fewer than three seeds hardly tell how far seeds scatter, which is said.
"""

import argparse
import csv
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from ruamel.yaml import YAML

from flows import PROJECT, told, trusted
from flows.ablate import at_work, dvc, experiment, spread
from flows.server import use_server
from flows.settings import changed, changed_text, check_free, check_project, experiment_name
from maavt import errors
from maavt.clips import SEVERAL
from maavt.errors import UsageError, UserError, redacted
from maavt.measure import plots, scores
from maavt.page import ran
from maavt.page.results import group_of
from maavt.stages.report import render
from maavt.work import atomic, write_table

# What is compared: the model, its settings beside those of params.yaml, and the rate that is searched.
CONTENDERS = {
    "maavt": ("maavt", [], "maavt.adapter_rate"),
    "paper": ("maavt", ["recipe=paper"], "train.learning_rate"),
    "linear": ("linear", [], "linear.head_rate"),
    "lavish": ("lavish", [], "lavish.adapter_rate"),
    "mbt": ("mbt", [], "mbt.encoder_rate"),
}
NUMBERS = ("val_accuracy", "accuracy", "accuracy_audio_only", "accuracy_visual_only", "accuracy_clips", "map",
           "seconds_per_epoch")
FEW = 3  # seeds that are needed to say how far they scatter
Right = dict[tuple[str, str], tuple[bool, str]]  # of pairs by key and second: whether it is right, and its group


@flow(persist_result=False, on_completion=[told.ended], on_failure=[told.ended], on_cancellation=[told.ended],
      on_crashed=[told.ended])
def compare(models: list[str], seeds: list[int], rates: list[float], settings: list[str]) -> list[dict]:
    """Train and evaluate every model; returns the rows of comparison.csv, which grows with each experiment.

    Experiments stay in the repository (`dvc exp show`) and in DVC's cache: a comparison that was stopped goes on.
    """
    project = check_project(trusted.project())
    runs: dict[str, list[dict]] = defaultdict(list)
    failed = []
    with at_work(project, settings) as (lock, logs):
        def told(name: str, rate: float, seed: int) -> tuple[str, list[str]]:
            """The name and the settings of a run."""
            model, own, key = CONTENDERS[name]
            return (f"compare-{experiment_name([name, f'{rate:.3g}', str(seed), *settings])}",
                    [*settings, f"models=[{model}]", *own, f"{key}={rate:.3g}", f"seed={seed}"])

        def reached(name: str, rate: float, seed: int) -> float | None:
            return validated(*told(name, rate, seed), CONTENDERS[name][0], project, lock, logs)

        def one(name: str, rate: float, seed: int) -> dict:
            model = CONTENDERS[name][0]
            (row,) = experiment(*told(name, rate, seed), project, lock, logs, targets=(f"evaluate@{model}",))
            right, chance = read_right(project / "data" / "eval" / model, several="map" in row)
            return {"rate": f"{rate:.3g}", "seed": seed, **row, "right": right, "chance": chance}

        def safely(call: Callable, *arguments):
            """What the call returns, or None where it fails, which is told at the end."""
            try:
                return call(*arguments)
            except UserError as error:
                failed.append(str(error))
                return None

        for name in models:
            rate = safely(choose, name, rates_of(name, rates, settings, project), seeds, reached, failed)
            for seed in seeds if rate else ():
                if run := safely(one, name, rate, seed):
                    runs[name].append(run)
                    write(rows(runs, models[0]), models[0], settings, project)
    if failed:
        raise UserError("\n".join(failed) + ("; the others are in data/comparison" if runs else ""))
    return rows(runs, models[0])


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def validated(name: str, changes: list[str], model: str, project: Path, lock: int, logs: Path) -> float | None:
    """Train a model, and no more; returns what its kept epoch reached on the validation split, if there is one: where
    clips have several labels the mean average precision, since training goes by it, else the accuracy.

    Raises UserError when it fails.
    """
    with changed(project, changes):
        dvc(["repro", f"train@{model}"], name, changes, project, lock, logs)
        kept = json.loads((project / "data" / "curves" / model / "metrics.json").read_text()).get("kept", {})
    return kept.get("val_map", kept.get("val_accuracy"))


def choose(name: str, rates: dict[float, float], seeds: list[int],
           reached: Callable[[str, float, int], float | None], failed: list[str]) -> float:
    """The rate that validation prefers, of equal ones that nearest to the model's own; by the first of the seeds with
    which any can be trained. `rates` are the shares of the model's own, with the rates themselves. A rate that fails
    (too high, say) is told in `failed` and costs no other.

    Raises UserError when there is none.
    """
    if len(rates) == 1:
        return next(iter(rates.values()))
    for seed in seeds:
        found = {}
        for share, rate in rates.items():
            try:
                found[share] = reached(name, rate, seed)
            except UserError as error:
                failed.append(str(error))
        if len(found) > 1 and None in found.values():
            raise UserError(f"{name}: nothing was validated, so nothing chooses among {len(found)} rates; "
                            "expected clips to validate on, or one rate: --rates 1")
        if found:
            return rates[max(found, key=lambda share: (found[share], -abs(math.log(share))))]
    raise UserError(f"{name}: it could be trained at none of the rates {', '.join(f'{r:.3g}' for r in rates.values())}")


def rates_of(name: str, shares: list[float], settings: list[str], project: Path) -> dict[float, float]:
    """The rates to try for a model, by their shares of its own, which is that of the settings or of params.yaml."""
    block, rate = CONTENDERS[name][2].split(".")
    own = float(YAML(typ="safe").load(changed_text(project, settings))[block][rate])
    return {share: own * share for share in shares}


def read_right(folder: Path, several: bool) -> tuple[Right, float]:
    """Of predictions.csv: which samples are right, and the chance level, the share of the most frequent label; clips
    have `several` labels or one."""
    right, counts = {}, Counter()
    with open(folder / "predictions.csv", newline="") as file:
        for row in csv.DictReader(file):
            labels = row["label"].split(SEVERAL) if several else [row["label"]]
            right[row["key"], row["second"]] = row["predicted"] in labels, group_of(row)
            counts.update(labels)
    return right, round(max(counts.values()) / len(right), 4)


def rows(runs: dict[str, list[dict]], leader: str) -> list[dict]:
    """A row per model: mean and deviation over its seeds, and the lead over it of the one that the others are held
    against, if that has run, on the pairs that all their runs have."""
    first, table = runs.get(leader, []), []
    for name, own in runs.items():
        row = {"model": name, "chance": own[0]["chance"], "seeds": len(own), "rate": own[0]["rate"],
               "trained": own[0]["trained"],
               "epochs_kept": " ".join(str(one["epoch"]) for one in own)}
        for number in NUMBERS:
            if all(number in one for one in own):
                row |= spread(number, [one[number] for one in own])
        if first and name != leader:
            found = lead([one["right"] for one in first], [one["right"] for one in own])
            row |= {"lead": round(found.mean, 4), "lead_low": round(found.low, 4), "lead_high": round(found.high, 4),
                    "p": f"{found.p:.2g}", "lead_lacks": lacks(len(first), len(own))}
        table.append(row)
    return table


def lead(first: list[Right], second: list[Right]) -> scores.Lead:
    """The lead of one model over another, given what is right in each of their runs."""
    pairs = sorted(set.intersection(*(set(run) for run in (*first, *second))))
    ours, theirs = ([[run[pair][0] for pair in pairs] for run in runs] for runs in (first, second))
    return scores.lead(ours, theirs, [first[0][pair][1] for pair in pairs])


def lacks(first: int, second: int) -> str:
    """What a lead of models with so many seeds each cannot tell, in words; "" where it tells all."""
    if first == second == 1:
        return ("one seed each: the interval allows for other test clips alone, not for other seeds, which may well "
                f"turn the lead around; expected {FEW} seeds or more")
    if min(first, second) < FEW:
        return (f"{first} and {second} seeds hardly tell how far seeds scatter, and the interval is as wide as that "
                f"makes it; expected {FEW} or more of each")
    return ""


def write(table: list[dict], leader: str, settings: list[str], project: Path) -> None:
    """The files of data/comparison, as far as the comparison has come."""
    folder = project / "data" / "comparison"
    settings = [redacted(setting) for setting in settings]
    table = [{**row, "settings": " ".join(settings)} for row in table]
    write_table(folder / "comparison.csv", dict.fromkeys(key for row in table for key in row), table)
    plots.save(folder / "comparison.svg", plots.comparison, table)
    dataset = YAML(typ="safe").load(changed_text(project, settings))["dataset"]
    with atomic(folder / "index.html") as path:
        path.write_text(render("comparison.html", rows=table, leader=leader, settings=settings, dataset=dataset,
                               seeds=max(row["seeds"] for row in table), made=ran.now(),
                               revision=ran.revision(project)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--models", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS),
                        help="the others are held against the first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1 / 3, 1, 3], help="shares of each model's own rate")
    parser.add_argument("-S", "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
                        help="settings of params.yaml that are the same for all")
    options = parser.parse_args()
    project = check_project(options.project)
    check_free(options.settings, seed="--seeds", models="--models")
    changed_text(project, options.settings)
    if not all(rate > 0 for rate in options.rates):
        raise UsageError(f"--rates {options.rates}: expected numbers above 0")
    trusted.decide(project)
    use_server()
    for row in compare(*(list(dict.fromkeys(given)) for given in (options.models, options.seeds, options.rates)),
                       options.settings):
        spread = f" ± {row['accuracy_std']:.3f}" if row["seeds"] > 1 else ""
        lead = (f"; {options.models[0]} leads by {row['lead']:+.3f} ({row['lead_low']:+.3f} to "
                f"{row['lead_high']:+.3f}, p {row['p']})") if "lead" in row else ""
        lead += f"; {row['lead_lacks']}" if row.get("lead_lacks") else ""
        print(f"{row['model']}: {row['accuracy_mean']:.3f}{spread} at a rate of {row['rate']}, sound alone "
              f"{row['accuracy_audio_only_mean']:.3f}, picture alone {row['accuracy_visual_only_mean']:.3f}{lead}")
    print(project / "data" / "comparison" / "index.html")


if __name__ == "__main__":
    sys.exit(errors.run(main))
