"""The data set, and where the result comes from: settings, code, machines and times."""

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

OWN_OUTPUTS = (":!data", ":!dvc.lock", ":!params.yaml")
PLAIN = re.compile(r"[\w./:+-]+")  # a value that DVC's command line takes without quotes


def now() -> datetime:
    """The time to print: SOURCE_DATE_EPOCH where it is set (reproducible-builds.org), which makes the report equal to
    the byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)


def git(*arguments: str, project: Path | None = None) -> str | None:
    """The output of a git command in the project, or None where it fails or git is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=project or project_root(), capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def revision(project: Path | None = None) -> dict | None:
    """The last commit and the files that differ from it, without what a run writes itself and params.yaml, whose
    changes settings() lists. None without a commit."""
    if not (found := git("log", "-1", "--format=%h%x00%cs%x00%s", project=project)):
        return None
    short, date, subject = found.strip("\n").split("\0")
    status = git("status", "--porcelain", "--untracked-files=no", "--", ".", *OWN_OUTPUTS, project=project) or ""
    return {"short": short, "date": date, "subject": subject, "changed": [line[3:] for line in status.splitlines()]}


def settings(params: Params) -> list[dict]:
    """The keys of params.yaml that concern this run with their values, the committed value where it differs, and the
    one that `recipe: paper` uses instead."""
    text = git("show", "HEAD:./params.yaml")
    here, committed = (flat(_yaml(file) or {}) for file in ((project_root() / "params.yaml").read_text(), text or ""))
    others = {*params.augment, *get_args(Model)} - {params.dataset, *params.models}  # augment names every data set
    rows = []
    for key, value in here.items():
        before = _before(key, committed, value)
        if before != value or not others & set(key.split(".")):
            block, _, name = key.partition(".")
            paper, _ = PAPER.get(block, {}).get(name, (value, value)) if params.recipe == "paper" else (value, value)
            rows.append({"key": key, "value": _text(value), "before": _text(before) if before != value else None,
                         "paper": _text(paper) if paper != value else None})
    return rows


def _before(key: str, committed: dict, default: object) -> object:
    """The committed value of a key, or of all keys below it, or of the key above it; else `default`."""
    below = {name.removeprefix(f"{key}."): value for name, value in committed.items() if name.startswith(f"{key}.")}
    above = [name for name in committed if key.startswith(f"{name}.")]
    return committed[key] if key in committed else below or (committed[above[0]] if above else default)


def command(rows: list[dict]) -> str:
    """The command that makes this report again at its git revision."""
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
    """Each stage's last run in this project: when it ended, how long it took, and on which machine."""
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
    """Of each class the clips and samples in each split, as `train`: (clips, samples); the most frequent class first.

    Samples are counted from the labels; None where that differs from the number in the shards.
    """
    recipe, reached = Spectrogram(**index["spectrogram"]), {row["key"]: float(row["seconds"]) for row in quality}
    of_clips, of_samples, found = Counter(), Counter(), Counter()

    def parts(label: str | None) -> list[str]:
        return [BACKGROUND] if label is None else label.split(SEVERAL) if index.get("multilabel") else [label]

    for clip in clips:
        if clip.key not in reached:
            continue
        named = {part for label in (clip.label, *(event[0] for event in clip.events)) for part in parts(label)}
        of_clips.update((label, clip.split) for label in named)
        labels = clip.second_labels(recipe.clip_seconds)
        for begin in pair_begins(min(reached[clip.key], recipe.clip_seconds), recipe):
            found[clip.split] += 1
            label = pair_label(labels, begin, recipe.seconds, ((clip.label, clip.start, clip.end), *clip.events)
                               if clip.events else ())
            of_samples.update((part, clip.split) for part in parts(label))
    exact = all(found[split] == index["splits"][split]["pairs"] for split in SPLITS)
    names = [*index["classes"], *([BACKGROUND] if index["background"] else [])]
    rows = [{"class": name, "total": sum((of_samples if exact else of_clips)[name, split] for split in SPLITS),
             **{split: (of_clips[name, split], of_samples[name, split] if exact else None) for split in SPLITS}}
            for name in names]
    return sorted(rows, key=lambda row: -row["total"])


def likeness(quality: list[dict[str, str]]) -> list[dict]:
    """Properties of the clips of each split, from quality.csv: rows of `what` and a value per split."""
    split_of = {row["key"]: row["split"] for row in quality}

    def median(rows: list[dict[str, str]], column: str) -> str:
        return f"{statistics.median(float(row[column]) for row in rows):g}"

    def share(rows: list[dict[str, str]], column: str, least: float) -> int:
        return sum(float(row[column] or 0) >= least for row in rows)

    facts = {
        "minutes in total": lambda rows: f"{sum(float(row['seconds']) for row in rows) / 60:.1f}",
        "seconds of a clip, median": lambda rows: median(rows, "seconds"),
        "most frequent frame size": lambda rows: "{} x {}".format(
            *Counter((row["width"], row["height"]) for row in rows).most_common(1)[0][0]),
        "different frame sizes": lambda rows: len({(row["width"], row["height"]) for row in rows}),
        "frames per second, median": lambda rows: median(rows, "frame_rate"),
        "loudness in dBFS, median of clips with audio": lambda rows: median(rows, "loudness_dbfs"),
        "clips at least half silent": lambda rows: share(rows, "silent_share", 0.5),
        "clips at least 90 % still": lambda rows: share(rows, "still_share", 0.9),
        "clips with clipped audio (0.1 % of its values or more)": lambda rows: share(rows, "clipped_share", 0.001),
        "clips without audio": lambda rows: sum(row["absent"] == "sound" for row in rows),
        "clips without visual": lambda rows: sum(row["absent"] == "picture" for row in rows),
        "near-duplicates of another clip": lambda rows: sum(bool(row["near_duplicate"]) for row in rows),
        "near-duplicates of a clip in another split": lambda rows: sum(
            split_of.get(row["near_duplicate"], row["split"]) != row["split"] for row in rows),
    }
    by_split = {split: [row for row in quality if row["split"] == split] for split in SPLITS}
    return [{"what": what, **{split: fact(rows) if rows else "" for split, rows in by_split.items()}}
            for what, fact in facts.items()]


def rejected(rejects: list[dict[str, str]]) -> list[dict]:
    """How many clips were rejected for which reason, by stage and split; the most frequent first."""
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
