"""`maavt probe FILE...`: whether each file can be used as a clip, as one JSON line per file."""

import argparse
import json
from collections.abc import Iterator, Sequence

from maavt.media.decode import MIN_COVERAGE, Rejected, decode
from maavt.work import default_workers
from maavt.workers import fan_out

SECONDS = 10  # of each file, at most
TIME_LIMIT = 60.0  # seconds for one file
MEMORY_LIMIT = 600 * 2**20  # bytes for one file


def main(arguments: list[str] | None = None) -> None:
    """Print the verdicts in the order of the files, each as soon as it is known."""
    parser = argparse.ArgumentParser("maavt probe", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a video file with sound")
    parser.add_argument("--workers", type=_positive(int), help="files looked at at a time (default: MAAVT_WORKERS, "
                        "or the number of CPU cores)")
    parser.add_argument("--time-limit", type=_positive(float), default=TIME_LIMIT, metavar="SECONDS",
                        help="for one file (default: %(default)g)")
    options = parser.parse_args(arguments)
    for verdict in probe(options.files, workers=options.workers, time_limit=options.time_limit):
        print(json.dumps(verdict), flush=True)


def probe(paths: Sequence[str], *, workers: int | None = None, time_limit: float = TIME_LIMIT) -> Iterator[dict]:
    """A verdict for each file, in order: {file, ok, frames, audio_seconds, reason}.

    Each file is judged as a clip of 1 to SECONDS seconds, as long as its picture goes: `frames` at one per second,
    and `audio_seconds` of sound in the first SECONDS. `reason` is "" or one of media.REASONS. Files are
    decoded in worker processes, so a file that hangs or crashes the decoder costs only itself.
    """
    workers = min(workers or default_workers(), max(len(paths), 1))
    for path, result in fan_out(_measure, map(str, paths), workers=workers, time_limit=time_limit,
                                memory_limit=MEMORY_LIMIT, tolerant=True):
        rejected = isinstance(result, Rejected)
        frames, audio_seconds = (0, 0.0) if rejected else result
        yield {"file": path, "ok": not rejected, "frames": frames, "audio_seconds": round(audio_seconds, 3),
               "reason": result.reason if rejected else ""}


def _measure(path: str) -> tuple[int, float]:
    """(frames at one per second, seconds of sound) of a file; raises Rejected."""
    media = decode(path, seconds=SECONDS, frame_size=32, sample_rate=16000, pad="tile")
    frames = max(int(media.video_seconds + 0.5), 1)
    if min(media.video_seconds, media.audio_seconds) < MIN_COVERAGE * frames:
        raise Rejected("too short", f"{media.video_seconds:.2f} s of picture, {media.audio_seconds:.2f} s of sound")
    return frames, media.audio_seconds


def _positive(kind: type):
    def convert(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a positive number")
        return value

    convert.__name__ = kind.__name__  # argparse names it in its message
    return convert
