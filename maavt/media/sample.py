"""One clip -> the members of its sample in a shard: JPEG frames, float16 spectrograms, and facts as JSON."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from simplejpeg import encode_jpeg

from maavt.clips import Clip
from maavt.media.decode import Media, decode
from maavt.media.quality import Quality, measure
from maavt.media.spectrogram import spectrograms
from maavt.params import Shard, Spectrogram

REACHED = 0.75  # of its seconds: how far a clip must reach into a pair, where pairs are those that are covered


@dataclass(frozen=True)
class Sample:
    """The members of one clip in a shard, and sums for the statistics: of spectrograms and of RGB, in float64."""

    members: dict[str, bytes]
    pairs: int
    spectrogram_sums: tuple[float, float, float]  # values, sum, sum of squares
    frame_sums: tuple[float, ...]  # pixels, red, green, blue (0 to 255)
    quality: Quality


def make_sample(clip: Clip, *, raw: Path, settings: Shard, recipe: Spectrogram) -> Sample:
    """Decode one clip into the members of a sample; raises Rejected.

    Of a clip to train on, where a window of its sound is drawn anew in each epoch, the whole is kept.
    """
    media, frames, sound = _read(raw / clip.path, recipe, settings.frame_size,
                                 whole=recipe.windowed and clip.split == "train")
    members = {f"frame-{second:02d}.jpg": encode_jpeg(frame, settings.jpeg_quality, colorsubsampling="420")
               for second, frame in frames.items()}
    with io.BytesIO() as buffer:
        np.save(buffer, sound)
        members["spectrogram.npy"] = buffer.getvalue()
    facts = asdict(clip) | {"labels": clip.second_labels(recipe.clip_seconds)}
    members["json"] = json.dumps({key: facts[key] for key in ("label", "labels", "start", "end", "source")}).encode()
    values = sound.astype(np.float64).ravel()
    rows = np.concatenate([frame.reshape(len(frame), -1) for frame in frames.values()])
    colours = rows.sum(0, dtype=np.uint32).reshape(-1, 3).sum(0, dtype=np.float64)  # in two steps: 20 times as fast
    return Sample(members, len(sound), (values.size, values.sum().item(), (values @ values).item()),
                  (rows.size / 3, *colours.tolist()),
                  measure(media, frames, shown=frames_of_pairs(recipe), sample_rate=recipe.sample_rate))


def read_clip(path: Path, recipe: Spectrogram, *, frame_size: int, whole: bool = False
              ) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The frames that a clip's pairs need, (frame_size, frame_size, 3) uint8 by their second, and its spectrograms
    (pairs, frames, bins) float16; one of all its sound and all frames that a window may need when `whole`.

    Raises Rejected.
    """
    return _read(path, recipe, frame_size, whole)[1:]


def _read(path: Path, recipe: Spectrogram, frame_size: int, whole: bool
          ) -> tuple[Media, dict[int, np.ndarray], np.ndarray]:
    wanted = frames_of_pairs(recipe, whole)
    media = decode(path, seconds=recipe.clip_seconds, frame_size=frame_size, sample_rate=recipe.sample_rate,
                   pad=recipe.pad, wanted=wanted)
    waveform = media.waveform
    if whole:
        stretches = waveform[None]
    elif recipe.pairs == "one":
        stretches = waveform[None, recipe.offset * recipe.sample_rate :][:, : recipe.seconds * recipe.sample_rate]
    else:
        stretches = waveform.reshape(-1, recipe.seconds * recipe.sample_rate)[: _covered(media, recipe)]
        wanted = wanted[: len(stretches)]
    frames = dict(zip(wanted, media.frames, strict=False))
    return media, frames, spectrograms(stretches, recipe).astype(np.float16)


def frames_of_pairs(recipe: Spectrogram, whole: bool = False) -> range:
    """The seconds of a clip whose frames its pairs have: each the one at the pair's middle."""
    middle = recipe.seconds // 2
    if whole:
        return range(middle, recipe.clip_seconds - recipe.seconds + middle + 1)
    if recipe.pairs == "one":
        return range(recipe.offset + middle, recipe.offset + middle + 1)
    return range(middle, recipe.clip_seconds, recipe.seconds)


def _covered(media: Media, recipe: Spectrogram) -> int | None:
    """How many pairs a clip has; None is all of them."""
    reach = min(media.video_seconds, media.audio_seconds)
    return max(1, int(reach / recipe.seconds + 1 - REACHED)) if recipe.pairs == "covered" else None
