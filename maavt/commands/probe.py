"""`maavt probe FILE...`: whether each file can be used as a clip, as one JSON line per file."""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from maavt.commands.options import named, number, positive
from maavt.errors import UserError
from maavt.media.length import read_media
from maavt.media.rejected import Rejected, explain
from maavt.params import Spectrogram, load_params
from maavt.work import default_workers
from maavt.workers import fan_out

ANY = Spectrogram(kind="fbank", sample_rate=16000, clip_seconds=10, pad="tile", pairs="covered", seconds=1, bins=98,
                  shift_ms=10.0, scaling="dataset")  # how clips of one's own are read
TIME_LIMIT = 60.0  # seconds for one file
MEMORY_LIMIT = 600 * 2**20  # bytes for one file


def main(arguments: list[str] | None = None) -> None:
    """Print the verdicts in the order of the files, each as soon as it is known.

    Raises UserError, after the last file, when some cannot be used.
    """
    parser = argparse.ArgumentParser("maavt probe", description=__doc__)
    parser.add_argument("files", nargs="+", type=named, metavar="FILE", help="a video file with sound")
    parser.add_argument("--workers", type=number, help="files looked at at a time (default: MAAVT_WORKERS, "
                        "or the number of CPU cores)")
    parser.add_argument("--time-limit", type=positive, default=TIME_LIMIT, metavar="SECONDS",
                        help="for one file (default: %(default)g)")
    parser.add_argument("--dataset", metavar="NAME", help="judge as the shard stage does with the recipe that "
                        "params.yaml has for this data set (default: as clips of your own)")
    parser.add_argument("--missing", choices=("reject", "keep"), help="whether a file without sound, or without "
                        "picture, can be used (default: reject; with --dataset what params.yaml says)")
    options = parser.parse_args(arguments)
    settings = load_params().shard if options.dataset else None
    recipes = settings.spectrogram if settings else {}
    if options.dataset and options.dataset not in recipes:
        parser.error(f"--dataset {options.dataset}: expected one of {', '.join(recipes)}")
    failed = 0
    for verdict in probe(options.files, workers=options.workers, time_limit=options.time_limit,
                         recipe=recipes.get(options.dataset, ANY),
                         keep=(options.missing or (settings.missing if settings else "reject")) == "keep"):
        print(json.dumps(verdict), flush=True)
        failed += not verdict["ok"]
    if failed:
        raise UserError(f"{failed} of {len(options.files)} files cannot be used; their lines say why")


def probe(paths: Sequence[str], *, workers: int | None = None, time_limit: float = TIME_LIMIT,
          recipe: Spectrogram = ANY, keep: bool = False) -> Iterator[dict]:
    """A verdict for each file, in order: {file, ok, frames, audio_seconds, reason}.

    Each file is judged as the shard stage judges a clip by this recipe: `frames` at one per second of its picture,
    and `audio_seconds` of sound in the first clip_seconds. `reason` is "" or one of media.REASONS, with a `detail`
    where it is `too short`; with `keep` picture or sound alone is enough, and the other one is named as `absent`.
    `sound_track` is the number of the sound track that is taken where those before it are silent. Files are decoded in
    worker processes, so a file that hangs or crashes the decoder costs only itself.
    """
    workers = min(workers or default_workers(), max(len(paths), 1))
    measure = partial(_measure, recipe=recipe, keep=keep)
    for path, result in fan_out(measure, map(str, paths), workers=workers, time_limit=time_limit,
                                memory_limit=MEMORY_LIMIT, tolerant=True):
        rejected = isinstance(result, Rejected)
        frames, audio_seconds, absent, track = (0, 0.0, "", 0) if rejected else result
        yield {"file": path, "ok": not rejected, "frames": frames, "audio_seconds": round(audio_seconds, 3),
               **(explain(result) if rejected else {"reason": ""}), **({"absent": absent} if absent else {}),
               **({"sound_track": track} if track else {})}


def _measure(path: str, recipe: Spectrogram, keep: bool) -> tuple[int, float, str, int]:
    """(frames at one per second, seconds of sound, what is absent, Media.sound_track) of a file; raises Rejected."""
    media = read_media(Path(path), recipe, frame_size=32, keep=keep)
    return (max(int(media.video_seconds + 0.5), media.absent != "picture"), media.audio_seconds, media.absent,
            media.sound_track)
