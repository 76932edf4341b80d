"""What clips are said to be like, and which are found to be the same."""

from base64 import b64encode
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from maavt.clips import Clip
from maavt.media import quality
from maavt.media.quality import NEAR, PICTURE, TABLES, near_duplicates
from maavt.media.sample import make_sample
from maavt.params import parse_params
from maavt.workers import fan_out
from tests.conftest import tiny_settings
from tests.media import test_spectrogram
from tests.media.test_decode import grey, tone, write_clip

REAL = Path(__file__).parents[3] / "shared" / "lrwar"
RECIPES = test_spectrogram.RECIPES | {"folder": replace(test_spectrogram.RECIPES["folder"], seconds=2)}
SETTINGS = parse_params(tiny_settings()).shard


def measured(path: Path, dataset: str = "synth", split: str = "train") -> quality.Quality:
    clip = Clip(key="a", path=path.name, label="x", split=split, start=0, end=10, source="")
    return make_sample(clip, raw=path.parent, settings=SETTINGS, recipe=RECIPES[dataset]).quality


def scene(seed: int, frames: int, speed: float = 4) -> list[np.ndarray]:
    """A picture of its own, of soft colours, that moves to the right."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 12, 3), np.uint8)
    picture = np.asarray(Image.fromarray(colours).resize((192, 96), Image.Resampling.BICUBIC))
    return [np.roll(picture, round(speed * number), axis=1)[:, :128] for number in range(frames)]


def voice(seed: int, seconds: float) -> np.ndarray:
    """Tones that change every tenth of a second, over a little noise."""
    rng = np.random.default_rng(seed)
    notes = [tone(0.1, pitch=200 * 2 ** rng.uniform(0, 4)) * rng.uniform(0.05, 1) for _ in range(round(seconds * 10))]
    return np.concatenate(notes) + 0.01 * rng.standard_normal(round(seconds * 16000))


def film(path: Path, seed: int, seconds: float = 10, **changes) -> Path:
    return write_clip(path, scene(seed, round(seconds * 10)), voice(seed, seconds)[None], **changes)


def recoded(source: Path, target: Path, share: float = 0.6, bits: int = 32000) -> Path:
    """The clip once more, smaller, at another rate of its sound, and as coarse as people can bear."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        video, audio = old.streams.video[0], old.streams.audio[0]
        pictures = new.add_stream("libx264", rate=video.average_rate, options={"crf": "30", "preset": "veryfast"})
        pictures.width, pictures.height = (round(side * share / 2) * 2 for side in (video.width, video.height))
        pictures.pix_fmt, pictures.codec_context.time_base = "yuv420p", video.time_base
        sound = new.add_stream("aac", rate=32000, layout="mono")
        sound.bit_rate = bits
        resampler = av.AudioResampler("fltp", "mono", 32000)
        for packet in old.demux(video, audio):
            for frame in packet.decode():
                if packet.stream is audio:
                    for piece in resampler.resample(frame):
                        new.mux(sound.encode(piece))
                    continue
                small = frame.reformat(pictures.width, pictures.height, "yuv420p")
                small.pts, small.time_base = frame.pts, frame.time_base
                new.mux(pictures.encode(small))
        for piece in resampler.resample(None):
            new.mux(sound.encode(piece))
        new.mux(pictures.encode())
        new.mux(sound.encode())
    return target


def test_a_clip_is_described(tmp_path):
    found = measured(film(tmp_path / "a.mkv", 1))
    assert (found.width, found.height, found.frame_rate, found.seconds) == (128, 96, 10, 10)
    assert found.silent_share == found.still_share == found.clipped_share == 0 and found.fingerprint


def test_a_stretch_of_digital_silence_is_a_share_and_not_in_the_loudness(tmp_path):
    sound = tone(10)
    loud = measured(write_clip(tmp_path / "a.mkv", scene(0, 100), sound[None]))
    sound[32000:80000] = 0
    found = measured(write_clip(tmp_path / "b.mkv", scene(0, 100), sound[None]))
    assert (loud.silent_share, found.silent_share) == (0, pytest.approx(0.3, abs=0.01))
    assert found.loudness_dbfs == loud.loudness_dbfs == pytest.approx(-9, abs=0.1)  # a tone of amplitude 0.5


def test_sound_that_ends_before_the_clip_is_followed_by_silence(tmp_path):
    found = measured(write_clip(tmp_path / "a.mkv", scene(0, 100), tone(6)[None]))
    assert (found.seconds, found.silent_share) == (6, pytest.approx(0.4, abs=0.01))


def test_a_clip_of_silence_only_says_so_and_is_like_no_other(tmp_path):
    found = measured(write_clip(tmp_path / "a.mkv", scene(0, 100), np.zeros((1, 160000))))
    assert (found.loudness_dbfs, found.silent_share, found.fingerprint) == (-120, 1, "")
    assert near_duplicates([found.fingerprint] * 3) == {}


def test_a_picture_of_one_colour_is_like_no_other(tmp_path):
    assert not measured(write_clip(tmp_path / "a.mkv", [grey(16)] * 100, voice(0, 10)[None])).fingerprint


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_still_picture_is_told_from_a_small_thing_that_moves(tmp_path, codec):
    write = partial(write_clip, sound=tone(10)[None], codec=codec)
    pictures = [grey(90, 128, 96) for _ in range(100)]
    for number, picture in enumerate(pictures):
        picture[20:80, 20:80] = scene(3, 1)[0][20:80, 20:80]
        picture[5:13, number : number + 8] = 200  # pixels
    still = measured(write(tmp_path / "still.mkv", pictures[:1] * 100)), measured(
        write(tmp_path / "half.mkv", pictures[:50] + pictures[50:51] * 50)), measured(
        write(tmp_path / "moving.mkv", pictures))
    assert [found.still_share for found in still] == [1, pytest.approx(4 / 9, abs=0.001), 0]


def test_one_frame_is_neither_still_nor_moving(tmp_path):
    assert measured(film(tmp_path / "a.mkv", 1, 3), "cremad").still_share is None


def test_clipped_sound_is_a_share(tmp_path):
    found = measured(write_clip(tmp_path / "a.mkv", scene(0, 100), (4 * tone(10)).clip(-1, 1)[None]))
    assert found.clipped_share == pytest.approx(2 / 3, abs=0.01)  # where the sine is above 1/2


@pytest.mark.parametrize("dataset, seconds", [("synth", 10), ("folder", 10), ("folder", 1.2), ("folder", 1),
                                              ("vggsound", 10), ("cremad", 2.3), ("cremad", 1.2)])
def test_a_coarse_copy_is_found_and_others_are_not(tmp_path, dataset, seconds):
    films = [film(tmp_path / f"{number}.mkv", number, seconds) for number in range(12)]
    prints = [measured(path, dataset).fingerprint for path in films]
    for number in (3, 8):  # of VGGSound the splits keep other parts of the sound
        copy = recoded(films[number], tmp_path / f"copy{number}.mp4")
        prints.append(measured(copy, dataset, "test").fingerprint)
    assert near_duplicates(prints) == {3: [12], 8: [13], 12: [3], 13: [8]}


def test_the_same_picture_with_another_sound_and_the_same_sound_with_another_picture_are_other_clips(tmp_path):
    made = [write_clip(tmp_path / f"{picture}{sound}.mkv", scene(picture, 100), voice(sound, 10)[None])
            for picture, sound in ((1, 1), (1, 2), (2, 1))]
    assert near_duplicates([measured(path).fingerprint for path in made]) == {}


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/lrwar")
def test_real_speakers_before_one_camera_are_not_taken_for_one_another(tmp_path):
    paths = sorted(REAL.glob("*/*.mp4"))[::5]
    copies = [recoded(path, tmp_path / f"{number}.mp4") for number, path in enumerate(paths[::20])]
    prints = [found.fingerprint for _, found in fan_out(partial(measured, dataset="folder"), [*paths, *copies])]
    found = near_duplicates(prints)
    assert found == {one: [other] for a, b in zip(range(0, len(paths), 20), range(len(paths), len(prints)), strict=True)
                     for one, other in ((a, b), (b, a))}


@pytest.mark.parametrize("kinds", [1, 3, 4000])
def test_the_search_is_bounded_and_finds_copies_among_clips_of_few_kinds(monkeypatch, kinds):
    length = PICTURE + quality.TIMES * quality.BANDS
    rng, count = np.random.default_rng(0), 4000
    kind = rng.normal(0, 24, (kinds, length))[rng.integers(kinds, size=count)]
    points = 0.9 * kind + 0.43 * rng.normal(0, 24, (count, length))
    points[-200:] = points[:200] + rng.normal(0, 2.4, (200, length))
    compared = []
    real = quality._differ
    monkeypatch.setattr(quality, "_differ", lambda one, other: compared.append(len(one)) or real(one, other))
    prints = [b64encode(row.tobytes()).decode() for row in points.round().clip(-127, 127).astype(np.int8)]
    found = near_duplicates(prints)
    assert sum(count - 200 + number in found.get(number, ()) for number in range(200)) >= 196
    assert sum(compared) <= 2 * TABLES * NEAR * count
    assert found == near_duplicates(prints)
