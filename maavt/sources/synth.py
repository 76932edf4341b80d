"""The made data set: a task that needs both modalities, in the form of AVE, from real MP4 files.

Each clip has 10 seconds and one event. During the event a shape of one kind is in view and a sound of one kind is
heard. Each shape and each sound belongs to two classes, so only both together tell the class. In the background
seconds nothing happens, or something that is no event: the clip's shape with a foreign sound, its sound with a
foreign shape, or both foreign. Shapes move and differ in colour, size and place, sounds in pitch, loudness and noise.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from maavt.clips import SPLITS, Clip, Labels
from maavt.params import Params, Synth
from maavt.progress import progress
from maavt.work import atomic
from maavt.workers import fan_out

SECONDS = 10
SAMPLE_RATE = 16000
ENCODER = {"crf": "20", "preset": "veryfast", "mbtree": "0"}
SHAPES = ("disc", "square", "triangle", "star", "cross", "ring")
SOUNDS = ("tone", "siren", "beeps", "sweeps", "clicks", "buzz")


def labels(params: Params) -> Labels:
    """Class c has shape c // 2 and sound (c + 1) // 2: each shape and each sound is in two classes."""
    return Labels(classes=_names(params.synth.classes), background=True)


def _names(classes: int) -> tuple[str, ...]:
    return tuple(f"{SHAPES[c // 2]}-{SOUNDS[(c + 1) // 2 % (classes // 2)]}" for c in range(classes))


def clips(params: Params, annotations: Path | None = None) -> list[Clip]:
    """The clips that `fetch` makes; there are no published lists."""
    return list(_clips(params.synth, params.seed))


def fetch(params: Params, folder: Path) -> list[Clip]:
    """Make every clip that is not yet in `folder`, in parallel. The same seed makes the same clips."""
    listed = clips(params)
    missing = [clip for clip in listed if not (folder / clip.path).exists()]
    make = partial(_make, synth=params.synth, seed=params.seed, folder=folder)
    with progress(total=len(listed), label="making clips", unit="clip") as bar:
        bar.update(len(listed) - len(missing))
        for _ in fan_out(make, missing):
            bar.update()
    return listed


def _clips(synth: Synth, seed: int) -> Iterator[Clip]:
    names = _names(synth.classes)
    for split in SPLITS:
        for number in range(getattr(synth, split)):
            rng = _rng(seed, split, number)
            length = int(rng.integers(4, 9))
            start = int(rng.integers(0, SECONDS - length + 1))
            key = f"{split}-{number:05d}"
            yield Clip(key=key, path=f"{split}/{key}.mp4", label=names[number % synth.classes], split=split,
                       start=start, end=start + length, source=f"synth seed {seed} {key}")


def _rng(seed: int, split: str, number: int, purpose: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), number, purpose])


def _make(clip: Clip, *, synth: Synth, seed: int, folder: Path) -> None:
    rng = _rng(seed, clip.split, int(clip.key.rpartition("-")[2]), purpose=1)
    shape, sound = clip.label.split("-")
    script = list(_script(clip, shape, sound, rng))
    frames = _frames(synth, [second[0] for second in script], rng)
    waveform = _waveform([second[1] for second in script], rng)
    with atomic(folder / clip.path) as path:
        _write_mp4(path, frames, waveform, synth)


def _script(clip: Clip, shape: str, sound: str, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """What is in view and what is heard in each second; background never shows the pair itself."""
    background = ((shape, "foreign"), ("foreign", sound), ("foreign", "foreign"), ("nothing", "nothing"))
    for second in range(SECONDS):
        inside = clip.start <= second < clip.end
        yield (shape, sound) if inside else background[rng.choice(4, p=(0.35, 0.35, 0.15, 0.15))]


def _frames(synth: Synth, kinds: list[str], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Frames (size, size, 3) uint8: one shape that moves, turns and bounces over a shaded ground with specks."""
    size, scale = synth.size, 2  # drawn at twice the size, for smooth edges
    ground = rng.integers(0, 256, (2, 1, 3))
    colour = rng.integers(0, 256, 3)
    while np.abs(colour - ground).sum(axis=-1).min() < 220:  # in sight against both ends of the ground
        colour = rng.integers(0, 256, 3)
    ramp = np.linspace(0, 1, size * scale)[:, None]
    shaded = (ground[0] * (1 - ramp) + ground[1] * ramp).astype(np.uint8)
    canvas = Image.fromarray(np.broadcast_to(shaded[:, None], (size * scale, size * scale, 3)).copy())
    draw = ImageDraw.Draw(canvas)
    for x, y, radius in rng.uniform((0, 0, 0.005), (1, 1, 0.02), (6, 3)) * size * scale:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(0, 256, 3).tolist()))
    radius = rng.uniform(0.18, 0.3)
    place, speed = rng.uniform(radius, 1 - radius, 2), rng.uniform(-0.25, 0.25, 2)
    turn, spin = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.5)
    for frame in range(SECONDS * synth.fps):
        time = frame / synth.fps
        picture = canvas.copy()
        span = 1 - 2 * radius
        bounced = radius + np.abs((place - radius + speed * time + span) % (2 * span) - span)
        _draw(picture, kinds[frame // synth.fps], bounced * size * scale, radius * size * scale,
              turn + spin * time, tuple(colour.tolist()))
        yield np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def _draw(picture: Image.Image, kind: str, centre, radius: float, angle: float, colour: tuple) -> None:
    """One shape of `kind` into the picture; the foreign one is three parallel bars."""
    draw = ImageDraw.Draw(picture)
    (x, y), box = centre, (*(centre - radius), *(centre + radius))

    def polygon(points):  # polar (fraction of the radius, angle in turns)
        draw.polygon([(x + radius * r * math.cos(angle + 2 * math.pi * t),
                       y + radius * r * math.sin(angle + 2 * math.pi * t)) for r, t in points], fill=colour)

    def bar(across: float, length: float, width: float, lean: float = 0.0):
        corners = [(length, across - width), (length, across + width), (-length, across + width),
                   (-length, across - width)]
        polygon([(math.hypot(a, b), math.atan2(b, a) / (2 * math.pi) + lean) for a, b in corners])

    if kind == "disc":
        draw.ellipse(box, fill=colour)
    elif kind == "ring":
        draw.ellipse(box, outline=colour, width=int(radius * 0.35))
    elif kind == "square":
        polygon([(1, (k + 0.5) / 4) for k in range(4)])
    elif kind == "triangle":
        polygon([(1, k / 3) for k in range(3)])
    elif kind == "star":
        polygon([(1 if k % 2 == 0 else 0.4, k / 10) for k in range(10)])
    elif kind == "cross":
        bar(0, 1, 0.22)
        bar(0, 1, 0.22, lean=0.25)
    elif kind == "foreign":
        for across in (-0.6, 0, 0.6):
            bar(across, 0.75, 0.16)


def _waveform(kinds: list[str], rng: np.random.Generator) -> np.ndarray:
    """Sound (10 s at 16 kHz,) float32 within -1 to 1: the kind of each second over a floor of noise."""
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    pitch, rate, loudness = rng.uniform(300, 900), rng.uniform(0.8, 1.25), 10 ** rng.uniform(-0.9, -0.35)
    sounds = {kind: _sound(kind, time, pitch, rate, rng) for kind in sorted(set(kinds))}
    waveform = np.concatenate([
        sounds[kind][second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE] for second, kind in enumerate(kinds)
    ])
    noise = rng.standard_normal(time.size) * loudness * 10 ** rng.uniform(-1.6, -0.9)
    return np.clip(waveform * loudness + noise, -1, 1).astype(np.float32)


def _sound(kind: str, time: np.ndarray, pitch: float, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Ten seconds of one kind, about -1 to 1; the foreign one is bursts of deep, rough noise."""

    def voice(frequency):  # three harmonics of a frequency in Hz that may change over time
        phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, time.shape)) / SAMPLE_RATE
        return (np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.25 * np.sin(3 * phase)) / 1.75

    if kind == "tone":
        return voice(pitch)
    if kind == "siren":
        return voice(pitch * 2 ** np.sin(2 * np.pi * 2.5 * rate * time))
    if kind == "beeps":
        return voice(2 * pitch) * ((time * 5 * rate) % 1 < 0.5)
    if kind == "sweeps":
        return voice(pitch * 4 ** ((time * 3 * rate) % 1)) * ((time * 3 * rate) % 1 < 0.85)
    if kind == "clicks":
        return np.clip(rng.standard_normal(time.size), -1, 1) * (((time * 10 * rate) % 1) < 0.08)
    if kind == "buzz":
        return 1.6 * ((time * pitch / 6) % 1) - 0.8
    if kind == "foreign":
        deep = np.convolve(rng.standard_normal(time.size), np.hanning(48) / 6, mode="same")
        return np.clip(deep * (0.6 + 0.4 * np.sin(2 * np.pi * 7 * rate * time)), -1, 1)
    return np.zeros_like(time)


def _write_mp4(path: Path, frames: Iterator[np.ndarray], waveform: np.ndarray, synth: Synth) -> None:
    """H.264 and AAC. With one thread and without its macroblock tree, x264 makes the same bytes of the same frames."""
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=synth.fps, options=ENCODER)
        video.width = video.height = synth.size
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.gop_size = 5 * synth.fps  # a keyframe every 5 s, as clips in the wild have
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64000
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        for begin in range(0, waveform.size, 1024):
            piece = av.AudioFrame.from_ndarray(waveform[None, begin : begin + 1024], format="fltp", layout="mono")
            piece.sample_rate, piece.pts = SAMPLE_RATE, begin
            container.mux(audio.encode(piece))
        container.mux(audio.encode())
