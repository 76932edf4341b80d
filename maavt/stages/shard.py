"""Stage shard: clips -> WebDataset tars of frames and spectrograms, with an index and the rejects.

data/shards/DATASET/{train,val,test}/DATASET-SPLIT-NNNNNN.tar holds samples of KEY.frame-00.jpg ...,
KEY.spectrogram.npy (pairs, frames, bins) float16, and KEY.json. A clip that cannot be used is in rejects.csv, what the
others are like in quality.csv.
A killed run goes on with the first shard that is not finished. Shards whose clips, settings and code are those of the
last time are taken from DVC's cache: made.jsonl says of each what it was made from.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import webdataset as wds
from tqdm import tqdm

from maavt.clips import ABSENT, SPLITS, Clip, Labels, placed, read_manifest
from maavt.errors import UserError, run
from maavt.fetch import cached
from maavt.fetch.cached import md5
from maavt.media.quality import Quality, near_duplicates
from maavt.media.rejected import Rejected, explain
from maavt.media.sample import make_sample
from maavt.media.spectrogram import spectrograms
from maavt.params import Params, load_params
from maavt.progress import progress
from maavt.work import atomic, project_root, publish, sha256, workspace, write_table
from maavt.workers import fan_out

TIME_LIMIT = 120.0  # seconds for one clip
MEASURED = tuple(field.name for field in fields(Quality))[:-1]  # not the fingerprint
QUALITY = ("key", "split", "label", *MEASURED, "near_duplicate")  # the columns of quality.csv
MEMORY_LIMIT = 600 * 2**20  # bytes for one clip: with the 80 MB of its code, a worker stays under 700 MB


def main(arguments: list[str] | None = None) -> None:
    """Shard all splits, then move the whole folder into place."""
    argparse.ArgumentParser("maavt shard", description=__doc__).parse_args(arguments)
    params = load_params()
    raw = project_root() / "data" / "raw" / params.dataset
    clips, labels = read_manifest(raw)
    recipe = params.shard.spectrogram[params.dataset].suited(clip.seconds for clip in clips if clip.status == "ok")
    if recipe != params.shard.spectrogram[params.dataset]:
        print(f"pairs of {recipe.seconds} s, which suits the lengths of the clips (seconds: auto)")
    settings = replace(params.shard, spectrogram={params.dataset: recipe})  # not those of others
    params = replace(params, shard=settings)
    with workspace("shard", params.dataset, settings, params.seed, raw / "clips.csv", raw / "classes.json",
                   _stamps(raw, clips)) as folder:
        root = Path(os.environ.get("DVC_ROOT") or project_root())
        index = shard_clips(clips, labels, raw=raw, folder=folder, params=params, root=root)
        publish(folder / "shards", project_root() / "data" / "shards" / params.dataset)
    for split, counts in index["splits"].items():
        lacking = "".join(f", {counts[f'without_{kind}']} of them without {kind}" for kind in ABSENT[1:]
                          if counts[f"without_{kind}"])
        print(f"{params.dataset} {split}: {counts['samples']} clips in shards{lacking}, {counts['rejected']} rejected")


def _stamps(raw: Path, clips: list[Clip]) -> list[tuple[int, int]]:
    """Size and time of change of every file: another clip under an old name is another input."""
    found = (os.stat(raw / clip.path) if clip.status == "ok" and (raw / clip.path).exists() else None for clip in clips)
    return [(stat.st_size, stat.st_mtime_ns) if stat else (0, 0) for stat in found]


def shard_clips(clips: list[Clip], labels: Labels, *, raw: Path, folder: Path, params: Params,
                root: Path | None = None) -> dict:
    """Write the shards of all clips below `folder`/shards, and return the index.

    Those that the project in `root` has made before are taken from its cache.
    Raises UserError when fewer clips than shard.min_coverage of the manifest can be used, or a split is empty.
    """
    plan = list(_plan(clips, params))
    origins = _take_over(plan, raw, folder, params, root) if root else {}
    done = {name: stats for name, _ in plan if (stats := _finished(folder, name))}
    with progress(total=len(clips), label="sharding", unit="clip") as bar:
        bar.update(sum(len(shard) for name, shard in plan if name in done) + sum(c.status != "ok" for c in clips))
        todo = [(name, shard) for name, shard in plan if name not in done]
        for name, stats in _make_shards(todo, raw=raw, folder=folder, params=params, bar=bar):
            done[name] = stats
    index = _index([(name, done[name]) for name, _ in plan], clips, labels, params)
    rejects = _rejects([done[name] for name, _ in plan], clips)
    write_table(folder / "shards" / "rejects.csv", ("key", "split", "label", "stage", "reason", "detail"), rejects)
    quality = _quality([done[name] for name, _ in plan], clips)
    write_table(folder / "shards" / "quality.csv", QUALITY, quality)
    with atomic(folder / "shards" / "index.json") as path:
        path.write_text(json.dumps(index, indent=1) + "\n")
    with atomic(folder / "shards" / "made.jsonl") as path, open(path, "w") as file:
        for name, of in origins.items():
            file.write(json.dumps({"name": name, "of": of, "stats": done[name]}) + "\n")
    _check_coverage(index, rejects, clips, params)
    _tell_of_tracks(quality, params)
    _warn_of_leaks(quality, params)
    return index


def _plan(clips: list[Clip], params: Params) -> Iterator[tuple[str, list[Clip]]]:
    """(SPLIT/NAME of a shard, its clips), classes mixed: fixed by the manifest and the seed before any decoding.

    A clip that is added gets into a new shard, one that is gone changes its own, and all others stay.
    """
    size, clips = params.shard.clips_per_shard, placed(clips, clips, params.seed)
    for split in SPLITS:
        chosen = sorted((clip for clip in clips if clip.split == split and clip.status == "ok"),
                        key=lambda clip: clip.slot)
        number, batches = 0, sorted({clip.batch for clip in chosen})
        for batch, following in pairwise([*batches, None]):
            shards = defaultdict(list)
            for clip in chosen:
                if clip.batch == batch:
                    shards[(clip.slot - batch) // size].append(clip)
            for place, members in shards.items():
                yield f"{split}/{params.dataset}-{split}-{number + place:06d}", members
            number += -(-(following - batch) // size) if following is not None else 0


def _take_over(plan: list[tuple[str, list[Clip]]], raw: Path, folder: Path, params: Params,
               root: Path) -> dict[str, str]:
    """Finish those shards that were made before, by the cache; returns what each is made from, as one hash."""
    output = f"data/shards/{params.dataset}"
    origins = _origins(plan, raw, root, params)
    tars, before = cached.sums(root, output), {}
    with suppress(OSError, ValueError, KeyError):
        if cached.take(root, tars["made.jsonl"], folder / "made.jsonl"):
            before = {row["of"]: row for row in map(json.loads, (folder / "made.jsonl").read_text().splitlines())}
    taken = 0
    for name, _ in plan:
        row = before.get(origins[name])
        if row and not _finished(folder, name) and cached.take(root, tars.get(f"{row['name']}.tar", "none"),
                                                               _tar(folder, name)):
            if _tar(folder, name).stat().st_size == row["stats"]["bytes"]:
                with atomic(folder / "stats" / f"{name}.json") as path:
                    path.write_text(json.dumps(row["stats"]))
                taken += 1
    if taken:
        print(f"{taken} of {len(plan)} shards are as before")
    return origins


def _origins(plan: list[tuple[str, list[Clip]]], raw: Path, root: Path, params: Params) -> dict[str, str]:
    """Of each shard a hash of its clips with their files, of the settings, and of the code that makes samples."""
    package = Path(__file__).parents[1]
    code = [sha256(path) for path in (Path(__file__), package / "clips.py", *sorted((package / "media").glob("*.py")))]
    common = json.dumps([asdict(params.shard), code], sort_keys=True)
    known, lock = cached.sums(root, f"data/raw/{params.dataset}"), root / "dvc.lock"
    since = lock.stat().st_mtime if lock.exists() else 0

    def contents(path: Path) -> str:  # of a file changed since DVC has looked at it: by its bytes
        if not path.exists():
            return ""
        name = str(path.relative_to(raw))
        return known[name] if name in known and path.stat().st_mtime <= since else md5(path)

    found = {}
    for name, clips in plan:
        rows = [[{**clip.row(), "batch": 0, "slot": 0}, contents(raw / clip.path)] for clip in clips]
        found[name] = hashlib.sha256((common + json.dumps(rows)).encode()).hexdigest()
    return found


def _finished(folder: Path, name: str) -> dict | None:
    stats = folder / "stats" / f"{name}.json"
    return json.loads(stats.read_text()) if stats.exists() and _tar(folder, name).exists() else None


def _tar(folder: Path, name: str) -> Path:
    return folder / "shards" / f"{name}.tar"


def _make_shards(plan, *, raw: Path, folder: Path, params: Params, bar: tqdm) -> Iterator[tuple[str, dict]]:
    """Decode the clips of all shards in parallel and write shard after shard; its statistics come last."""
    sample = partial(make_sample, raw=raw, settings=params.shard, recipe=params.shard.spectrogram[params.dataset])
    results = fan_out(sample, [clip for _, shard in plan for clip in shard], time_limit=TIME_LIMIT,
                      memory_limit=MEMORY_LIMIT, label=lambda clip: clip.path, tolerant=True)
    rejected = 0
    for name, shard in plan:
        stats = {"samples": 0, "pairs": 0, "rejects": {}, "quality": {}, "spectrogram_sums": [0.0] * 3,
                 "frame_sums": [0.0] * 4}
        with atomic(_tar(folder, name)) as path:
            with wds.TarWriter(str(path), encoder=False, mtime=0, user="", group="") as tar:
                for _, (clip, result) in zip(shard, results, strict=False):
                    if isinstance(result, Rejected):
                        stats["rejects"][clip.key] = [result.reason, explain(result).get("detail", "")]
                        rejected += 1
                    else:
                        tar.write({"__key__": clip.key, **result.members})
                        stats["samples"] += 1
                        stats["pairs"] += result.pairs
                        stats["quality"][clip.key] = list(asdict(result.quality).values())
                        for key in ("spectrogram_sums", "frame_sums"):
                            stats[key] = [a + b for a, b in zip(stats[key], getattr(result, key), strict=True)]
                    bar.set_postfix(rejects=rejected, refresh=False)
                    bar.update()
        stats |= {"bytes": _tar(folder, name).stat().st_size, "sha256": sha256(_tar(folder, name))}
        with atomic(folder / "stats" / f"{name}.json") as path:
            path.write_text(json.dumps(stats))
        yield name, stats


def _index(shards: list[tuple[str, dict]], clips: list[Clip], labels: Labels, params: Params) -> dict:
    splits = {}
    for split in SPLITS:
        stats = [stats for name, stats in shards if name.startswith(f"{split}/")]
        count, total, squares = (sum(s["spectrogram_sums"][i] for s in stats) for i in range(3))
        pixels, *colours = (sum(s["frame_sums"][i] for s in stats) for i in range(4))
        mean = total / max(count, 1)
        absent = Counter(values[MEASURED.index("absent")] for s in stats for values in s["quality"].values())
        samples = sum(s["samples"] for s in stats)
        splits[split] = {
            "samples": samples,
            "pairs": sum(s["pairs"] for s in stats),
            "rejected": sum(clip.split == split for clip in clips) - samples,
            **{f"without_{kind}": absent[kind] for kind in ABSENT[1:]},
            "mean": mean,
            "std": max(squares / max(count, 1) - mean**2, 0.0) ** 0.5,
            "frame_mean": [colour / max(pixels, 1) for colour in colours],
        }
    recipe = params.shard.spectrogram[params.dataset]
    return {
        "dataset": params.dataset,
        **asdict(labels),
        "spectrogram": asdict(recipe),
        "spectrogram_frames": len(spectrograms(np.zeros(recipe.seconds * recipe.sample_rate, np.float32), recipe)),
        "frame_size": params.shard.frame_size,
        "missing": params.shard.missing,
        "splits": splits,
        "shards": {f"{name}.tar": {key: stats[key] for key in ("samples", "pairs", "bytes", "sha256")}
                   for name, stats in shards},
    }


def _rejects(stats: list[dict], clips: list[Clip]) -> list[dict[str, str]]:
    reasons = {key: ("shard", *why) for shard in stats for key, why in shard["rejects"].items()}
    reasons |= {clip.key: ("download", clip.reason, "") for clip in clips if clip.status != "ok"}
    return [
        {"key": clip.key, "split": clip.split, "label": clip.label, "stage": stage, "reason": reason, "detail": detail}
        for clip in clips if clip.key in reasons for stage, reason, detail in [reasons[clip.key]]
    ]


def _quality(stats: list[dict], clips: list[Clip]) -> list[dict]:
    """Rows of quality.csv: of all near-duplicates of a clip, one in another split is named first."""
    measured = {key: values for shard in stats for key, values in shard["quality"].items()}
    clips = [clip for clip in clips if clip.key in measured]
    same = near_duplicates([measured[clip.key][-1] for clip in clips])
    for line in two_labels(clips, same):
        print(line, file=sys.stderr)
    rows = []
    for number, clip in enumerate(clips):
        others = sorted((clips[other] for other in same.get(number, ())), key=lambda other: other.split == clip.split)
        rows.append({"key": clip.key, "split": clip.split, "label": clip.label,
                     **dict(zip(MEASURED, measured[clip.key][:-1], strict=True)),
                     "near_duplicate": others[0].key if others else ""})
    return rows


def two_labels(clips: list[Clip], same: dict[int, list[int]]) -> Iterator[str]:
    """A warning of clips that are nearly the same and have different labels; rows of one file are no copies."""
    found, counted = [], set()
    for number, others in same.items():
        differ = [other for other in others
                  if clips[other].label != clips[number].label and clips[other].path != clips[number].path]
        if differ and number not in counted:
            found.append((clips[number], clips[differ[0]]))
            counted.update([number, *others])
    if found:
        some = ", ".join(f"{one.source} ({one.label}) is {other.source} ({other.label})" for one, other in found[:3])
        yield (f"warning: {len(found)} clips have two labels, for they are there more than once: {some}"
               f"{' ...' if len(found) > 3 else ''}. Leave out the wrong copy of each, or name both labels in a table "
               "(a;b)")


def _tell_of_tracks(quality: list[dict], params: Params) -> None:
    """Tell of clips whose first track of sound is silent, so that a later one was taken."""
    if others := [f"{row['key']} (track {row['sound_track']})" for row in quality if row["sound_track"]]:
        print(f"the first sound track of {len(others)} clips is silent; the next one that sounds was taken: "
              f"{', '.join(others[:3])}{' ...' if len(others) > 3 else ''}. All stand in data/shards/{params.dataset}/"
              "quality.csv, column sound_track")


def _warn_of_leaks(quality: list[dict], params: Params) -> None:
    """Tell of clips that were heard and seen in training, or in validation, under another name."""
    split = {row["key"]: row["split"] for row in quality}
    leaks = [row for row in quality if row["split"] != "train" and row["near_duplicate"]
             and split[row["near_duplicate"]] != row["split"]]
    if leaks:
        some = ", ".join(f"{row['key']} ({row['split']}) is {row['near_duplicate']} ({split[row['near_duplicate']]})"
                         for row in leaks[:3])
        print(f"warning: {len(leaks)} clips of val and test are nearly the same as one in another split, so their "
              f"accuracy is too good: {some}{' ...' if len(leaks) > 3 else ''}. Leave one of each two out, or keep "
              f"both in one split; all stand in data/shards/{params.dataset}/quality.csv", file=sys.stderr)


def _check_coverage(index: dict, rejects: list[dict[str, str]], clips: list[Clip], params: Params) -> None:
    used = sum(split["samples"] for split in index["splits"].values())
    reasons = Counter(f"{reject['stage']}: {reject['reason']}" for reject in rejects).most_common()
    table = "".join(f"\n  {count:6d}  {reason}" for reason, count in reasons)
    counts = ", ".join(f"{split} {s['samples']}" for split, s in index["splits"].items())
    if empty := [split for split, s in index["splits"].items() if not s["samples"]]:
        listed = ", ".join(f"{sum(clip.split == split for clip in clips)} of {split}" for split in empty)
        raise UserError(f"no clip can be used in {' and '.join(empty)} ({counts}); the manifest has {listed}. Expected "
                        "some in every split: add clips, or name the splits yourself"
                        + (f". Why clips dropped out:{table}" if rejects else ""))
    if used < params.shard.min_coverage * len(clips):
        raise UserError(
            f"{used} of {len(clips)} clips can be used ({counts}); expected at least "
            f"{params.shard.min_coverage:.0%}. Mend the clips, or lower shard.min_coverage "
            f"in params.yaml. Why clips dropped out:{table}"
        )


if __name__ == "__main__":
    sys.exit(run(main))
