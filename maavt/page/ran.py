"""What was run: data set, settings, code, machines and times."""

import json
import os
import re
import shlex
import statistics
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from ruamel.yaml import YAML, YAMLError

from maavt.clips import BACKGROUND, SEVERAL, SPLITS, Clip, pair_label
from maavt.errors import redacted
from maavt.media.sample import pair_begins
from maavt.params import PAPER, Model, Params, Spectrogram, flat
from maavt.work import project_root, read_times

PLAIN = re.compile(r"[\w./:+-]+")  # a value that DVC's command line takes without quotes


def now() -> datetime:
    """The time to be printed: SOURCE_DATE_EPOCH where it is set (reproducible-builds.org), so that the page is then
    the same to the byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)


def git(*arguments: str) -> str | None:
    """What git says in the project, None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=project_root(), capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def revision() -> dict | None:
    """The last commit, and which files differ from it; None without one."""
    if not (told := git("log", "-1", "--format=%h%x00%cs%x00%s")):
        return None
    short, date, subject = told.strip("\n").split("\0")
    changed = [line[3:] for line in (git("status", "--porcelain", "--untracked-files=no") or "").splitlines()]
    return {"short": short, "date": date, "subject": subject,
            "changed": [name for name in changed if Path(name).name not in ("params.yaml", "dvc.lock")]}


def settings(params: Params) -> list[dict]:
    """The keys of params.yaml that concern this run, with their values, the committed ones where they differ, and
    those that `recipe: paper` takes instead."""
    text = git("show", "HEAD:./params.yaml")
    here, committed = (flat(_yaml(held) or {}) for held in ((project_root() / "params.yaml").read_text(), text or ""))
    others = {*params.augment, *get_args(Model)} - {params.dataset, *params.models}  # augment names every data set
    rows = []
    for key, value in here.items():
        before = _before(key, committed, value)
        if before != value or not others & set(key.split(".")):
            block, _, name = key.partition(".")
            paper = PAPER.get(block, {}).get(name, value) if params.recipe == "paper" else value
            rows.append({"key": key, "value": _text(value), "before": _text(before) if before != value else None,
                         "paper": _text(paper) if paper != value else None})
    return rows


def _before(key: str, committed: dict, default: object) -> object:
    """The committed value of a key, be it that of all keys below it or of one above it; `default` where it has none."""
    below = {name.removeprefix(f"{key}."): value for name, value in committed.items() if name.startswith(f"{key}.")}
    above = [name for name in committed if key.startswith(f"{name}.")]
    return committed[key] if key in committed else below or (committed[above[0]] if above else default)


def command(rows: list[dict]) -> str:
    """What makes this page again at its git revision."""
    changed = [row for row in rows if row["before"] is not None]
    return " ".join(["dvc exp run" if changed else "dvc repro",
                     *(f"-S {shlex.quote(row['key'] + '=' + row['value'])}" for row in changed)])


def _yaml(text: str) -> dict:
    try:
        return YAML(typ="safe").load(text)
    except YAMLError:
        return {}


def _text(value: object) -> str:
    value = redacted(value) if isinstance(value, str) else value
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return json.dumps(value, ensure_ascii=False)


def times(models: tuple[str, ...]) -> list[dict]:
    """Each stage with its last run in this project: when it ended, how long it took, and where."""
    noted = read_times()
    stages = ["listing", "download", "backbone", "shard",
              *(f"{stage} --model {model}" for model in models for stage in ("train", "evaluate")), "benchmark"]
    rows = [{"stage": stage.replace(" --model ", "@"), **noted.get(stage, {})} for stage in stages]
    for row in rows:
        if "seconds" in row:
            minutes, seconds = divmod(round(row["seconds"]), 60)
            row["took"] = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else \
                f"{minutes} min {seconds} s" if minutes else f"{row['seconds']:.1f} s"
    return rows


def class_counts(clips: list[Clip], quality: list[dict[str, str]], index: dict) -> list[dict]:
    """Of each class the clips and pairs in each split, as `train`: (clips, pairs); the most frequent class first.

    Pairs are counted as the shards have them; None where that does not come to the number that they have.
    """
    recipe, reached = Spectrogram(**index["spectrogram"]), {row["key"]: float(row["seconds"]) for row in quality}
    held, pairs, told = Counter(), Counter(), Counter()

    def parts(label: str | None) -> list[str]:
        return [BACKGROUND] if label is None else label.split(SEVERAL) if index.get("multilabel") else [label]

    for clip in clips:
        if clip.key not in reached:
            continue
        named = {part for label in (clip.label, *(event[0] for event in clip.events)) for part in parts(label)}
        held.update((label, clip.split) for label in named)
        labels = clip.second_labels(recipe.clip_seconds)
        for begin in pair_begins(min(reached[clip.key], recipe.clip_seconds), recipe):
            told[clip.split] += 1
            pairs.update((label, clip.split) for label in parts(pair_label(labels, begin, recipe.seconds)))
    exact = all(told[split] == index["splits"][split]["pairs"] for split in SPLITS)
    names = [*index["classes"], *([BACKGROUND] if index["background"] else [])]
    rows = [{"class": name, "total": sum((pairs if exact else held)[name, split] for split in SPLITS),
             **{split: (held[name, split], pairs[name, split] if exact else None) for split in SPLITS}}
            for name in names]
    return sorted(rows, key=lambda row: -row["total"])


def likeness(quality: list[dict[str, str]]) -> list[dict]:
    """What the clips of each split are like, from quality.csv: rows of `what` and of each split its number."""
    split_of = {row["key"]: row["split"] for row in quality}

    def median(rows: list[dict[str, str]], column: str) -> str:
        return f"{statistics.median(float(row[column]) for row in rows):g}"

    def share(rows: list[dict[str, str]], column: str, least: float) -> int:
        return sum(float(row[column] or 0) >= least for row in rows)

    facts = {
        "minutes in all": lambda rows: f"{sum(float(row['seconds']) for row in rows) / 60:.1f}",
        "seconds of a clip, the median": lambda rows: median(rows, "seconds"),
        "most frequent size of the picture": lambda rows: "{} x {}".format(
            *Counter((row["width"], row["height"]) for row in rows).most_common(1)[0][0]),
        "sizes of the picture": lambda rows: len({(row["width"], row["height"]) for row in rows}),
        "frames per second, the median": lambda rows: median(rows, "frame_rate"),
        "loudness where there is sound, the median in dBFS": lambda rows: median(rows, "loudness_dbfs"),
        "clips of which half or more is silent": lambda rows: share(rows, "silent_share", 0.5),
        "clips of which nine tenths or more stand still": lambda rows: share(rows, "still_share", 0.9),
        "clips whose sound is clipped (a sample in a thousand)": lambda rows: share(rows, "clipped_share", 0.001),
        "clips without sound": lambda rows: sum(row["absent"] == "sound" for row in rows),
        "clips without picture": lambda rows: sum(row["absent"] == "picture" for row in rows),
        "copies of another clip": lambda rows: sum(bool(row["near_duplicate"]) for row in rows),
        "copies of a clip in another split": lambda rows: sum(
            split_of.get(row["near_duplicate"], row["split"]) != row["split"] for row in rows),
    }
    held = {split: [row for row in quality if row["split"] == split] for split in SPLITS}
    return [{"what": what, **{split: fact(rows) if rows else "" for split, rows in held.items()}}
            for what, fact in facts.items()]


def drop_outs(rejects: list[dict[str, str]]) -> list[dict]:
    """How many clips dropped out for which reason, in which stage and split; the most frequent first."""
    counts = Counter((row["stage"], row["reason"], row["split"]) for row in rejects)
    rows = {}
    for (stage, reason, split), count in counts.items():
        row = rows.setdefault((stage, reason), {"stage": stage, "reason": reason, "total": 0,
                                                **dict.fromkeys(SPLITS, 0)})
        row[split] = count
        row["total"] += count
    return sorted(rows.values(), key=lambda row: (-row["total"], row["reason"]))


def committed(path: str) -> dict | str:
    """A JSON file of data/ as the last commit has it: in git, or in DVC's cache by the dvc.lock; or why there is none.
    """
    if (text := git("show", f"HEAD:./{path}")) is None:
        if (lock := git("show", "HEAD:./dvc.lock")) is None:
            return "no dvc.lock is committed yet; git add dvc.lock && git commit makes this run the one to compare with"
        outs = [out for stage in (_yaml(lock).get("stages") or {}).values() for out in stage.get("outs", ())]
        hashes = [out["md5"] for out in outs if out.get("path") == path and "md5" in out]
        if not hashes:
            return f"the last commit's dvc.lock has no {path}"
        cache = Path(os.environ.get("DVC_ROOT") or project_root()) / ".dvc" / "cache" / "files" / "md5"
        try:
            text = (cache / hashes[0][:2] / hashes[0][2:]).read_text()
        except OSError:
            return "the last commit's result is not in DVC's cache here; dvc fetch brings it"
    try:
        return json.loads(text)
    except ValueError:
        return f"the last commit's {path} is no JSON"


def committed_dataset() -> str | None:
    """The data set of the last commit's params.yaml."""
    return (_yaml(git("show", "HEAD:./params.yaml") or "") or {}).get("dataset")
