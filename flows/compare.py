"""MA-AVT beside its published form, a linear probe, LAVISH and MBT: each at its own best rate, over several seeds.

    python -m flows.compare [--project PATH] [--models maavt paper linear lavish mbt] [--seeds 0 1 2]
                            [--rates 0.33 1 3] [-S KEY=VALUE ...]

The rates are shares of the model's own in params.yaml (of LAVISH's adapters, MBT's encoders, the probe's head ...).
With the first seed each is tried, and the validation split chooses; the test split is looked at with that one alone.
Epochs and data are the same for all, and so are augmentation, clipping, averaging and balance, but for `paper`, which
has none of these four. The result is data/comparison: comparison.csv, comparison.svg, and index.html that shows both.
"""

import argparse
import csv
import sys
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
from prefect import flow
from ruamel.yaml import YAML

from flows import PROJECT, told, trusted
from flows.ablate import at_work, experiment, spread
from flows.server import use_server
from flows.settings import changed_text, check_free, check_project, experiment_name
from maavt import errors
from maavt.clips import SEVERAL
from maavt.errors import UsageError, UserError, redacted
from maavt.measure import plots, scores
from maavt.page.draw import svg
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
        def one(name: str, rate: float, seed: int) -> dict:
            model, own, key = CONTENDERS[name]
            changes = [*settings, f"models=[{model}]", *own, f"{key}={rate:.3g}", f"seed={seed}"]
            (row,) = experiment(f"compare-{experiment_name([name, f'{rate:.3g}', str(seed), *settings])}", changes,
                                project, lock, logs, targets=(f"evaluate@{model}",))
            right = read_right(project / "data" / "eval" / model, several="map" in row)
            return {"rate": f"{rate:.3g}", **row, "right": right}

        for name in models:
            try:
                tried = {}
                for rate in rates_of(name, rates, settings, project):
                    try:
                        tried[rate] = one(name, rate, seeds[0])
                    except UserError as error:  # too high a rate, say: it costs this one
                        failed.append(str(error))
                if not tried:
                    continue
                # by what training goes by, too: where clips have several labels the mean average precision
                validated = {rate: run.get("val_map", run.get("val_accuracy")) for rate, run in tried.items()}
                if len(tried) > 1 and None in validated.values():
                    raise UserError(f"{name}: nothing was validated, so nothing chooses among {len(tried)} rates; "
                                    "expected clips to validate on, or one rate: --rates 1")
                rate = max(tried, key=validated.get)
                runs[name].append(tried[rate])
                write(rows(runs, models[0]), models[0], settings, project / "data" / "comparison")
                for seed in seeds[1:]:
                    runs[name].append(one(name, rate, seed))
                    write(rows(runs, models[0]), models[0], settings, project / "data" / "comparison")
            except UserError as error:
                failed.append(str(error))
    if failed:
        raise UserError("\n".join(failed) + ("; the others are in data/comparison" if runs else ""))
    return rows(runs, models[0])


def rates_of(name: str, shares: list[float], settings: list[str], project: Path) -> list[float]:
    """The rates to try for a model: shares of its own, from the settings or from params.yaml."""
    block, rate = CONTENDERS[name][2].split(".")
    own = float(YAML(typ="safe").load(changed_text(project, settings))[block][rate])
    return [own * share for share in shares]


def read_right(folder: Path, several: bool) -> dict[tuple[str, str], bool]:
    """Of predictions.csv: which pairs, by key and second, are right; clips have `several` labels or one."""
    with open(folder / "predictions.csv", newline="") as file:
        return {(row["key"], row["second"]): row["predicted"] in (row["label"].split(SEVERAL) if several else
                                                                  [row["label"]]) for row in csv.DictReader(file)}


def rows(runs: dict[str, list[dict]], leader: str) -> list[dict]:
    """A row per model: mean and deviation over its seeds, and the lead over it of the one that the others are held
    against, if that has run, on the same clips.

    The lead is the mean over the seeds that both have, its interval a bootstrap over clips of all of them together; p
    is McNemar's over the clips with the first seed.
    """
    first, table = runs.get(leader, []), []
    for name, own in runs.items():
        row = {"model": name, "seeds": len(own), "rate": own[0]["rate"], "trained": own[0]["trained"],
               "epochs_kept": " ".join(str(one["epoch"]) for one in own)}
        for number in NUMBERS:
            if all(number in one for one in own):
                row |= spread(number, [one[number] for one in own])
        if first and name != leader:
            lead, low, high, chance = paired([one["right"] for one in first], [one["right"] for one in own])
            row |= {"lead": round(lead, 4), "lead_low": round(low, 4), "lead_high": round(high, 4),
                    "p": f"{chance:.2g}"}
        table.append(row)
    return table


def paired(first: list[dict], second: list[dict]) -> tuple[float, float, float, float]:
    """How much more often the first model is right than the second, its 95 % interval, and McNemar's p of the clips in
    which one is right more often, since seconds of a clip are no independent witnesses; of each a dict per seed of what
    is right, by (key, second)."""
    both = [[(pair[0], one[pair], other[pair]) for pair in sorted(one.keys() & other.keys())]
            for one, other in zip(first, second, strict=False)]
    keys, ours, theirs = zip(*chain(*both), strict=True)
    lead = np.subtract(ours, theirs, dtype=float)
    leads = Counter()
    for key, ours, theirs in both[0]:
        leads[key] += ours - theirs
    chance = scores.mcnemar([lead > 0 for lead in leads.values()], [lead < 0 for lead in leads.values()])
    return float(lead.mean()), *scores.accuracy_interval(keys, lead), chance


def write(table: list[dict], leader: str, settings: list[str], folder: Path) -> None:
    """The files of data/comparison, as far as the comparison has come."""
    settings = [redacted(setting) for setting in settings]
    table = [{**row, "settings": " ".join(settings)} for row in table]
    write_table(folder / "comparison.csv", dict.fromkeys(key for row in table for key in row), table)
    plots.save(folder / "comparison.svg", plots.comparison, table)
    picture = svg(plots.comparison, table, label="Accuracy of every model, with both modalities and with either alone")
    with atomic(folder / "index.html") as path:
        path.write_text(render("comparison.html", rows=table, leader=leader, picture=picture,
                               settings=settings, seeds=max(row["seeds"] for row in table)))


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
        print(f"{row['model']}: {row['accuracy_mean']:.3f}{spread} at a rate of {row['rate']}, sound alone "
              f"{row['accuracy_audio_only_mean']:.3f}, picture alone {row['accuracy_visual_only_mean']:.3f}{lead}")
    print(project / "data" / "comparison" / "index.html")


if __name__ == "__main__":
    sys.exit(errors.run(main))
