"""`maavt bench data`: sharding and loading beside the usual way, on the same clips -> data/bench/data.csv.

Usual sharding: ffmpeg writes JPEG files at 1 fps and a WAV file, torchaudio makes the filter banks from that. Usual
loading: ten JPEG files, the WAV file and ten filter banks for every sample, as the authors' loader does. Each way
works in one process on one thread; the ways take turns, and medians over the rounds are kept. `cpu_ms` is what a clip
costs one core, with the processes started for it: it hardly depends on what else the machine does.
"""

import argparse
import hashlib
import io
import os
import re
import resource
import statistics
import subprocess
import tarfile
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np

from maavt.clips import Clip, Labels
from maavt.errors import UserError
from maavt.media.sample import make_sample
from maavt.params import Params, load_params
from maavt.progress import progress
from maavt.work import project_root, write_table
from maavt.workers import fan_out

SECONDS, FPS, WIDTH, HEIGHT, RATE = 10, 25, 640, 360, 44100  # of the made clips
SIZE = 224  # pixels
PASSES = 5  # of the loaders over the clips, in each round


def main(arguments: list[str] | None = None) -> None:
    """Make clips, run every way in turn, and write the table."""
    parser = argparse.ArgumentParser("maavt bench", description=__doc__)
    parser.add_argument("what", choices=["data"])
    parser.add_argument("--clips", type=int, default=8, help="10 s clips of 360p to make (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    ffmpeg = find_ffmpeg()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), load_params(), ffmpeg, clips=options.clips, rounds=options.rounds)
    write_table(project_root() / "data" / "bench" / "data.csv", rows[0], rows)
    for row in rows:
        print(f"{row['task']:8} {row['way']:18} {row['workers']} worker(s): {row['clips_per_second']} clips/s, "
              f"{row['cpu_ms']} ms of CPU a clip, ratio {row['ratio']}, peak {row['peak_memory_mb']} MB")


def find_ffmpeg() -> str:
    """The ffmpeg of the package imageio-ffmpeg; raises UserError when it is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(f"the usual way needs {error.name}; pip install 'maavt[bench]'") from None
    return imageio_ffmpeg.get_ffmpeg_exe()


def measure(folder: Path, params: Params, ffmpeg: str, *, clips: int, rounds: int) -> list[dict]:
    """The rows of data.csv."""
    from maavt.stages.shard import shard_clips

    paths = [path for path, _ in fan_out(make_clip, [folder / f"{number}.mp4" for number in range(clips)])]
    recipe = params.shard.spectrogram["ave"]
    settings = replace(params.shard, frame_size=SIZE, min_coverage=0.0, spectrogram={params.dataset: recipe})
    manifest = [Clip(key=path.stem, path=path.name, label="a", split=("train", "val", "test")[min(number, 2)], start=0,
                     end=SECONDS, source="") for number, path in enumerate(paths * 3)]
    manifest = [replace(clip, key=f"{clip.key}-{number}") for number, clip in enumerate(manifest)]
    shard_clips(manifest, Labels(classes=("a",), background=True), raw=folder, folder=folder,
                params=replace(params, shard=settings))
    shard = partial(shard_our_way, settings=settings, recipe=recipe)
    usual = partial(shard_usual_way, ffmpeg=ffmpeg, folder=folder, bins=recipe.bins, shift_ms=recipe.shift_ms)
    ways = {
        ("sharding", "usual, files only", 1): (usual, paths),
        ("sharding", "usual", 1): (partial(usual, quality=settings.jpeg_quality), paths),
        ("sharding", "maavt", 1): (shard, paths),
        ("sharding", "maavt", 2): (shard, paths * 2),
        ("loading", "usual", 1): (partial(load_usual_way, bins=recipe.bins, shift_ms=recipe.shift_ms), paths),
        ("loading", "maavt", 1): (load_our_way, [folder / "shards"]),
    }
    found: dict[tuple, list] = {way: [] for way in ways}
    for _ in progress(range(rounds), label="measuring", unit="round"):
        for way, (function, items) in ways.items():
            found[way].append(_run(function, items, workers=way[2]))
    middle = {way: [statistics.median(column) for column in zip(*runs, strict=True)] for way, runs in found.items()}
    rows = []
    for (task, name, workers), (cpu, wall, peak) in middle.items():
        reference = middle[task, "usual", 1] if workers == 1 else middle[task, name, 1]
        ratio = reference[0] / cpu if workers == 1 else reference[1] / wall
        rows.append({"task": task, "way": name, "workers": workers, "clips_per_second": f"{1 / wall:.2f}",
                     "cpu_ms": f"{1000 * cpu:.1f}", "ratio": f"{ratio:.2f}", "ratio_to":
                     "usual, by CPU time" if workers == 1 else "1 worker, by the clock",
                     "peak_memory_mb": f"{peak:.0f}"})
    return rows


def _run(function: Callable, items: list[Path], workers: int) -> tuple[float, float, float]:
    """CPU seconds and seconds per clip, and the peak memory of a worker in MB; the first items only warm up."""
    results = fan_out(partial(_timed, function), items[:1] * workers + items, workers=workers)
    for _ in range(workers):
        next(results)
    begin = time.perf_counter()
    costs = [result for _, result in results]
    wall = time.perf_counter() - begin
    count = sum(clips for clips, *_ in costs)
    return sum(cpu for _, cpu, _ in costs) / count, wall / count, max(peak for *_, peak in costs)


def _timed(function: Callable, item: Path) -> tuple[int, float, float]:
    """(clips, CPU seconds of this process and those it started, peak memory so far in MB)."""
    begin = time.process_time(), _children()
    clips = function(item)
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return clips, time.process_time() - begin[0] + _children() - begin[1], peak


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def shard_our_way(path: Path, *, settings, recipe) -> int:
    """A clip as the shard stage makes it, in a tar, hashed."""
    clip = Clip(key=path.stem, path=path.name, label="a", split="train", start=0, end=SECONDS, source="")
    sample = make_sample(clip, raw=path.parent, settings=settings, recipe=recipe)
    _pack(clip.key, sample.members)
    return 1


def _pack(key: str, members: dict[str, bytes]) -> None:
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in members.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        hashlib.sha256(buffer.getbuffer())


def _scaled(path: Path):
    from PIL import Image

    return Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def shard_usual_way(path: Path, *, ffmpeg: str, folder: Path, bins: int, shift_ms: float, quality: int = 0) -> int:
    """A clip as ten JPEG files and a WAV file, and from these ten filter banks and, with a JPEG `quality`, a tar of
    scaled frames and filter banks: what our way ends with."""
    files = folder / "usual" / path.stem
    files.mkdir(parents=True, exist_ok=True)
    quiet = [ffmpeg, "-v", "error", "-nostdin", "-y", "-threads", "1", "-i", str(path)]
    subprocess.run([*quiet, "-vf", "fps=1", "-q:v", "2", "-threads", "1", str(files / "%04d.jpg")], check=True)
    subprocess.run([*quiet, "-ac", "1", "-ar", "16000", str(files / "sound.wav")], check=True)
    with io.BytesIO() as buffer:
        np.save(buffer, np.stack(_banks(files / "sound.wav", bins, shift_ms)))
        members = {"spectrogram.npy": buffer.getvalue()}
    if quality:
        for second in range(SECONDS):
            with io.BytesIO() as buffer:
                _scaled(files / f"{second + 1:04d}.jpg").save(buffer, "JPEG", quality=quality)
                members[f"frame-{second:02d}.jpg"] = buffer.getvalue()
    _pack(path.stem, members)
    return 1


def load_usual_way(path: Path, *, bins: int, shift_ms: float) -> int:
    """A sample of ten pairs from the files that the usual way of sharding leaves."""
    import torch

    files = path.parent / "usual" / path.stem
    mean, std = (np.array(values, np.float32) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for _ in range(PASSES):
        frames = [_scaled(files / f"{second + 1:04d}.jpg") for second in range(SECONDS)]
        torch.from_numpy((np.stack([np.asarray(frame, np.float32) / 255 for frame in frames]) - mean) / std)
        torch.from_numpy(np.stack(_banks(files / "sound.wav", bins, shift_ms)))
    return PASSES


def load_our_way(folder: Path) -> int:
    """All samples of one split, shuffled, from shards to batches."""
    from maavt.shards.loader import Loader

    os.environ["MAAVT_WORKERS"] = "1"
    loader = Loader(folder, "test", batch=32, image_size=SIZE)
    for epoch in range(PASSES):
        for _ in loader.shuffled(seed=0, epoch=epoch, held=100):
            pass
    return PASSES * min(loader.steps() * 32, loader.pairs) // SECONDS


def _banks(path: Path, bins: int, shift_ms: float) -> list[np.ndarray]:
    import torch
    from torchaudio.compliance import kaldi

    torch.set_num_threads(1)
    with wave.open(str(path)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15
    sound = torch.from_numpy(np.resize(sound, SECONDS * 16000)).view(SECONDS, 16000)
    return [kaldi.fbank((second - second.mean())[None], htk_compat=True, sample_frequency=16000, use_energy=False,
                        window_type="hanning", num_mel_bins=bins, dither=0.0, frame_shift=shift_ms).numpy()
            for second in sound]


def make_clip(path: Path) -> None:
    """An MP4 file of 360p as the web has them: H.264 with B-frames, a keyframe every 10 s, AAC in stereo."""
    rng = np.random.default_rng(int(path.stem))
    ground = rng.integers(0, 256, (HEIGHT // 8 + 26, WIDTH // 8 + 51, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    time = np.arange(SECONDS * RATE) / RATE
    sound = (0.3 * np.sin(2 * np.pi * (300 + 50 * np.sin(time)) * time) + 0.1 * rng.standard_normal(len(time)))
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "medium"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="stereo")
        for number in range(SECONDS * FPS):
            x, y = int(200 + 150 * np.sin(number / 40)), int(100 + 80 * np.cos(number / 30))
            noise = rng.integers(-3, 4, (HEIGHT, WIDTH, 3), np.int16)
            picture = (ground[y : y + HEIGHT, x : x + WIDTH] + noise).clip(0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode())
        for begin in range(0, len(sound), 1024):
            piece = np.stack([sound[begin : begin + 1024]] * 2).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, "fltp", "stereo")
            frame.sample_rate, frame.pts = RATE, begin
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
