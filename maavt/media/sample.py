"""One clip -> the members of its sample in a shard: JPEG frames, float16 spectrograms, and facts as JSON."""

import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from simplejpeg import encode_jpeg

from maavt.clips import Clip
from maavt.media.decode import Media
from maavt.media.length import REST, read_media
from maavt.media.quality import Quality, measure
from maavt.media.spectrogram import spectrograms
from maavt.params import Shard, Spectrogram


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

    Of a clip to train on, where a window of its sound is drawn anew in each epoch, the whole is kept. What is absent
    (`missing: keep`) has no member and no part in the sums; the facts name it.
    """
    media, frames, sound, begins = _read(raw / clip.path, recipe, settings.frame_size,
                                         whole=recipe.windowed and clip.split == "train",
                                         begin=clip.begin, length=clip.seconds, keep=settings.missing == "keep")
    members = {f"frame-{second:02d}.jpg": encode_jpeg(frame, settings.jpeg_quality, colorsubsampling="420")
               for second, frame in frames.items()}
    if sound is not None:
        with io.BytesIO() as buffer:
            np.save(buffer, sound)
            members["spectrogram.npy"] = buffer.getvalue()
    facts = {"label": clip.label, "labels": clip.second_labels(recipe.clip_seconds), "begins": begins,
             "start": clip.start, "end": clip.end, "source": clip.source}
    if clip.events:
        facts["events"] = [(clip.label, clip.start, clip.end), *clip.events]
    members["json"] = json.dumps(facts | ({"absent": media.absent} if media.absent else {})).encode()
    values = np.zeros(0) if sound is None else sound.astype(np.float64).ravel()
    rows = np.concatenate([frame.reshape(len(frame), -1) for frame in frames.values()] or [np.zeros((0, 3), np.uint8)])
    colours = rows.sum(0, dtype=np.uint32).reshape(-1, 3).sum(0, dtype=np.float64)  # in two steps: 20 times as fast
    return Sample(members, len(begins), (values.size, values.sum().item(), (values @ values).item()),
                  (rows.size / 3, *colours.tolist()),
                  measure(media, frames, shown=frames_of_pairs(recipe), sample_rate=recipe.sample_rate))


def read_clip(path: Path, recipe: Spectrogram, *, frame_size: int, begin: float | None = None, length: float = 0.0,
              keep: bool = False) -> tuple[dict[int, np.ndarray], np.ndarray | None, list[float]]:
    """The frames that a clip's pairs need, (frame_size, frame_size, 3) uint8 by their second; its spectrograms
    (pairs, frames, bins) float16; and the second at which each pair begins, whose frame is that of frame_second().

    Of the `length` seconds of the file from `begin` on where that is not None. With `keep` there may be no frames (an
    empty dictionary: the picture is absent) or no spectrograms (None: the sound is). Raises Rejected.
    """
    return _read(path, recipe, frame_size, False, begin, length, keep=keep)[1:]


def _read(path: Path, recipe: Spectrogram, frame_size: int, whole: bool, begin: float | None = None,
          length: float = 0.0, keep: bool = False
          ) -> tuple[Media, dict[int, np.ndarray], np.ndarray | None, list[float]]:
    """As read_clip, with what was decoded; of the `length` seconds from `begin` on where that is not None."""
    span = float(recipe.clip_seconds) if begin is None else min(length, recipe.clip_seconds)
    cut = span < recipe.clip_seconds
    wanted = range(math.ceil(span)) if cut else frames_of_pairs(recipe, whole)
    if recipe.pairs == "covered" and not cut:
        wanted = range(wanted[0], recipe.clip_seconds)  # which of them are needed, only its length tells
    media = read_media(path, recipe, frame_size, seconds=math.ceil(span), start=begin or 0.0, wanted=wanted, span=span,
                       keep=keep)
    if cut:
        wanted = frames_of_pairs(recipe, whole) if recipe.pairs != "covered" else range(recipe.clip_seconds)
        media = _stretched(media, span, recipe, wanted)
    rate, size = recipe.sample_rate, recipe.seconds * recipe.sample_rate
    begins = pair_begins(min(media.seconds, span), recipe)
    if whole:
        stretches, needed = media.waveform[None], wanted
    else:
        stretches = np.stack([media.waveform[round(begin * rate) :][:size] for begin in begins])
        needed = dict.fromkeys(frame_second(begin, recipe) for begin in begins)
    frames = dict(zip(wanted, media.frames, strict=True))
    return (media, {} if media.absent == "picture" else {second: frames[second] for second in needed},
            None if media.absent == "sound" else spectrograms(stretches, recipe).astype(np.float16), begins)


def frame_second(begin: float, recipe: Spectrogram) -> int:
    """The second whose frame a pair that begins at `begin` has: the one at its middle."""
    return int(begin + recipe.seconds / 2)


def _stretched(media: Media, span: float, recipe: Spectrogram, wanted: range) -> Media:
    """A clip that was cut off at `span`, as long as others: as `pad` says, from what lies before the cut."""
    picture, sound = (min(seconds, span) for seconds in (media.video_seconds, media.audio_seconds))
    waveform, size = media.waveform[: round(sound * recipe.sample_rate)], recipe.clip_seconds * recipe.sample_rate
    shown = max(math.ceil(picture - 0.5 - 1e-6), 1)  # frames on view before the cut
    if recipe.pad == "tile":
        waveform, places = np.resize(waveform, size), [second % shown for second in wanted]
    else:
        waveform = np.pad(waveform, (0, size - len(waveform)))
        places = [min(second, shown - 1) for second in wanted]
    return replace(media, waveform=waveform, frames=media.frames[places], video_seconds=picture, audio_seconds=sound)


def frames_of_pairs(recipe: Spectrogram, whole: bool = False) -> range:
    """The seconds of a clip whose frames its pairs have: each the one at the pair's middle."""
    middle = recipe.seconds // 2
    if whole:
        return range(middle, recipe.clip_seconds - recipe.seconds + middle + 1)
    if recipe.pairs == "one":
        return range(recipe.offset + middle, recipe.offset + middle + 1)
    return range(middle, recipe.clip_seconds, recipe.seconds)


def pair_begins(reach: float, recipe: Spectrogram) -> list[float]:
    """The seconds at which the pairs begin of a clip that reaches so far."""
    if recipe.pairs == "one":
        return [recipe.offset]
    step = recipe.seconds
    if recipe.pairs == "every":
        return list(range(0, recipe.clip_seconds, step))
    whole = int(reach / step + 1e-6)
    begins: list[float] = list(range(0, max(whole, 1) * step, step))
    if whole and reach - whole * step > REST:  # one more, which ends where the clip ends
        last = math.floor((reach - step) * 1000) / 1000
        begins.append(int(last) if last == int(last) else last)
    return begins
