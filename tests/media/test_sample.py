"""What becomes of a clip by the recipe of each data set, and what the loader and the normaliser make of it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from simplejpeg import decode_jpeg

from maavt.clips import Clip, Labels
from maavt.media.rejected import Rejected
from maavt.media.sample import frames_of_pairs, make_sample, read_clip
from maavt.media.spectrogram import spectrograms
from maavt.params import parse_params
from maavt.shards.loader import Batch, Loader
from maavt.stages.shard import shard_clips
from maavt.training.runtime import Normaliser
from tests.conftest import tiny_settings
from tests.media.test_decode import grey, tone, write_clip
from tests.media.test_spectrogram import GOLDEN, RECIPES

SIZE = 48  # of the stored frames
FOLDER = replace(RECIPES["folder"], seconds=2)


def clip(path: Path, waveform: np.ndarray, rate: int) -> Path:
    """A film of as many seconds as its sound, the brightness of second s being 20 + 20 s."""
    seconds = len(waveform) / rate
    return write_clip(path, [grey(20 + 20 * min(i // 4, 11)) for i in range(round(seconds * 4))], waveform[None], fps=4,
                      rate=rate, acodec="pcm_f32le", fmt="flt")


@pytest.mark.parametrize("dataset, key, pair", [("ave", "fbank", 3), ("vggsound", "log_stft", 0),
                                                ("cremad", "log_stft", 0)])
def test_spectrogram_in_a_sample_is_the_published_one(tmp_path, dataset, key, pair):
    recipe = RECIPES[dataset]
    waveform = GOLDEN[f"{dataset}/waveform_{recipe.sample_rate // 1000}k"]
    before = np.zeros((recipe.offset + pair) * recipe.sample_rate, np.float32)
    path = clip(tmp_path / "a.mkv", np.concatenate([before, waveform]), recipe.sample_rate)
    if dataset == "ave":  # its pairs are filled with silence, and half of them must be there
        path = clip(path, np.concatenate([before, waveform, np.zeros(80000, np.float32)]), recipe.sample_rate)
    _, sound, _ = read_clip(path, recipe, frame_size=SIZE)
    expected = GOLDEN[f"{dataset}/{key}"]
    expected = expected if recipe.kind == "fbank" else expected.T
    assert sound.dtype == np.float16 and sound.shape[1:] == (224, 224)
    np.testing.assert_allclose(sound[pair][: len(expected)].astype(np.float32), expected, atol=0.02)
    if recipe.scaling == "sample":
        normalise = Normaliser(image_size=224, image_mean=(0,) * 3, image_std=(1,) * 3, spectrogram_mean=0,
                               spectrogram_std=1, scaling="sample")
        batch = Batch(torch.zeros(1, 3, 224, 224, dtype=torch.uint8), torch.from_numpy(sound[pair : pair + 1]),
                      torch.zeros(1), ["a"], [0])
        made = normalise(batch, torch.device("cpu"))[1][0].numpy()
        np.testing.assert_allclose(made, GOLDEN[f"{dataset}/normalised"].T, atol=0.01)


def test_each_pair_has_the_frame_at_its_middle(tmp_path):
    assert {name: list(frames_of_pairs(recipe)) for name, recipe in (RECIPES | {"folder": FOLDER}).items()} == {
        "synth": list(range(10)), "ave": list(range(10)), "vggsound": [5], "cremad": [1], "folder": [1, 3, 5, 7, 9]}
    assert list(frames_of_pairs(RECIPES["vggsound"], whole=True)) == [2, 3, 4, 5, 6, 7]
    frames, *_ = read_clip(clip(tmp_path / "a.mkv", tone(10), 16000), RECIPES["vggsound"], frame_size=SIZE)
    assert {second: round(frame.mean(), -1) for second, frame in frames.items()} == {5: 120}


@pytest.mark.parametrize("seconds, expected", [
    (0.5, [0]), (2, [0]), (3, [0, 1]), (3.5, [0, 1.5]), (7, [0, 2, 4, 5]), (9.75, [0, 2, 4, 6, 7.75]),
    (14, [0, 2, 4, 6, 8])])
def test_pairs_cover_a_clip_of_any_length_and_the_last_ends_where_it_ends(tmp_path, seconds, expected):
    frames, sound, begins = read_clip(clip(tmp_path / "a.mkv", tone(seconds), 16000), FOLDER, frame_size=SIZE)
    assert begins == expected and sound.shape == (len(expected), 198, 98)
    assert list(frames) == [int(begin + 1) for begin in expected]


@pytest.mark.parametrize("begin, length", [(0, 3), (2, 4), (2.5, 2.25), (13, 10), (21.5, 0.75)])
def test_clip_cut_out_of_a_recording_has_its_pictures_and_its_sound(tmp_path, begin, length):
    steps = np.concatenate([tone(1, 16000, 400 * 2 ** (second / 12)) for second in range(24)])
    write_clip(tmp_path / "a.mkv", [grey(20 + 8 * (i // 4)) for i in range(96)], steps[None], fps=4, rate=16000,
               acodec="pcm_f32le", fmt="flt")
    facts = Clip(key="a", path="a.mkv", label="a", split="test", start=0, end=3600, source="", begin=begin,
                 seconds=length)
    made = make_sample(facts, raw=tmp_path, settings=parse_params(tiny_settings()).shard, recipe=FOLDER)
    sound = np.load(io.BytesIO(made.members["spectrogram.npy"])).astype(np.float32)
    begins = json.loads(made.members["json"])["begins"]
    assert begins[-1] + 2 == pytest.approx(max(length, 2))
    for at, spectrogram in zip(begins, sound, strict=True):
        middle = int(at + 1)
        shown = decode_jpeg(made.members[f"frame-{middle:02d}.jpg"]).mean()
        seen = begin + (middle + 0.5 if middle + 0.5 < length else 0.5)
        assert shown == pytest.approx(20 + 8 * int(seen), abs=2)
        piece = steps[round((begin + at) * 16000) :][: 32000 if length >= 2 else round(length * 16000)]
        expected = spectrograms(np.resize(piece, 32000)[None], FOLDER)[0]
        assert np.abs(spectrogram - expected).mean() < 0.1


def test_clip_that_is_too_short_names_what_would_do(tmp_path):
    path = clip(tmp_path / "a.mkv", tone(4), 16000)
    for name, limit in (("ave", "5 s"), ("synth", "5 s")):
        with pytest.raises(Rejected, match=f"too short.*expected {limit} at least"):
            read_clip(path, RECIPES[name], frame_size=SIZE)
    with pytest.raises(Rejected, match="too short: 0.25 s of picture.*expected 0.5 s at least"):
        read_clip(clip(tmp_path / "b.mkv", tone(0.25), 16000), FOLDER, frame_size=SIZE)


def test_short_clip_is_repeated_to_its_length(tmp_path):
    path = clip(tmp_path / "a.mkv", tone(1.2, 22050), 22050)
    frames, sound, _ = read_clip(path, RECIPES["cremad"], frame_size=SIZE)
    assert round(frames[1].mean(), -1) == 20  # its only second, once more
    assert sound[0, 200].max() > 0  # in the third second


@pytest.fixture(scope="module")
def windowed(tmp_path_factory) -> Path:
    """Shards by VGGSound's recipe of clips whose sound rises by a semitone each second."""
    folder = tmp_path_factory.mktemp("windowed")
    clips = []
    for number in range(7):
        split = ("train", "train", "train", "train", "train", "val", "test")[number]
        steps = np.concatenate([tone(1, 16000, 400 * 2 ** (second / 12)) for second in range(10)])
        clip(folder / f"{number}.mkv", steps, 16000)
        clips.append(Clip(key=f"clip-{number}", path=f"{number}.mkv", label="a", split=split, start=0, end=3600,
                          source=""))
    params = parse_params(tiny_settings(shard={"spectrogram": {"synth": vars(RECIPES["vggsound"])},
                                               "frame_size": SIZE, "clips_per_shard": 2}))
    shard_clips(clips, Labels(classes=("a", "b"), background=False), raw=folder, folder=folder, params=params)
    return folder / "shards"


def windows(folder: Path, split: str = "train", epoch: int | None = None, **changes) -> dict[str, tuple]:
    """Of each clip: second, brightness of the frame, and the pitch (bin) at the window's beginning and end."""
    loader = Loader(folder, split, **{"batch": 1, "image_size": 32, "augment": "resized_crop"} | changes)
    batches = loader.in_order() if epoch is None else loader.shuffled(seed=0, epoch=epoch, held=3)
    return {
        key: (second, round(frame.float().mean().item()), *sound[[4, -5]].argmax(1).tolist())
        for batch in batches
        for key, second, frame, sound in zip(batch.keys, batch.seconds, batch.frames, batch.spectrograms, strict=True)
    }


def test_training_takes_a_window_of_sound_anywhere_and_the_frame_at_its_middle(windowed):
    found = [window for epoch in range(8) for window in windows(windowed, epoch=epoch).values()]
    assert len(found) == 40 and len({second for second, *_ in found}) >= 4
    for second, brightness, first, last in found:
        assert abs(brightness - (20 + 20 * (second + 2))) <= 23  # the middle lies 2 or 3 seconds after `second`
        begin = 12 * np.log2(first * 16000 / 446 / 400)  # of the window, in seconds
        end = 12 * np.log2(last * 16000 / 446 / 400)
        assert second - 1 <= begin <= second + 2 and 3 <= end - begin <= 7  # a bin is more than a semitone wide


def test_windows_are_fixed_by_seed_and_epoch(windowed):
    assert windows(windowed, epoch=1) == windows(windowed, epoch=1) != windows(windowed, epoch=2)


def test_evaluation_takes_the_window_at_the_offset(windowed):
    for split in ("val", "test", "train"):
        for second, brightness, *_ in windows(windowed, split).values():
            assert (second, brightness) == (3, pytest.approx(120, abs=3))


def test_validation_keeps_one_window_and_training_all_sound(windowed):
    sizes = {split: {sound.shape[1:] for batch in Loader(windowed, split, batch=1, image_size=32).in_order()
                     for sound in batch.spectrograms} for split in ("train", "val", "test")}
    assert set.union(*sizes.values()) == {(224,)}
    index = json.loads((windowed / "index.json").read_text())
    assert index["spectrogram_frames"] == 224
    assert index["splits"]["train"]["pairs"] == index["splits"]["train"]["samples"] == 5
    assert index["shards"]["train/synth-train-000000.tar"]["bytes"] > 2 * index["shards"]["val/synth-val-000000.tar"][
        "bytes"]


def test_parts_of_frames_are_drawn_anew_in_each_epoch_and_none_in_evaluation(windowed):
    def boxes(epoch):
        loader = Loader(windowed, "train", batch=5, image_size=32, augment="resized_crop")
        return next(iter(loader.shuffled(seed=0, epoch=epoch, held=3))).boxes

    assert boxes(1).equal(boxes(1)) and not boxes(1).equal(boxes(2))
    drawn = torch.cat([boxes(epoch) for epoch in range(20)])
    left, top, width, height = drawn.unbind(1)
    assert 0.2 < (width < 0).float().mean() < 0.8  # mirrored
    left, width = torch.minimum(left, left + width), width.abs()
    assert min(left.min(), top.min()) >= 0 and max((left + width).max(), (top + height).max()) <= SIZE
    assert (width * height).min() < 0.3 * SIZE**2 and (width * height).max() > 0.8 * SIZE**2
    (batch,) = Loader(windowed, "test", batch=5, image_size=32, augment="resized_crop").in_order()
    assert batch.boxes is None and batch.frames.shape == (1, 3, SIZE, SIZE)


def normalised(frames: torch.Tensor, size: int, boxes=None) -> torch.Tensor:
    normalise = Normaliser(image_size=size, image_mean=(0,) * 3, image_std=(1 / 255,) * 3, spectrogram_mean=0,
                           spectrogram_std=1)
    boxes = None if boxes is None else torch.tensor(boxes, dtype=torch.float32)
    batch = Batch(frames, torch.zeros(len(frames), size, size).half(), torch.zeros(len(frames)), [], [], boxes)
    return normalise(batch, torch.device("cpu"))[0]


def test_boxes_are_cut_scaled_and_mirrored():
    frames = torch.randint(256, (3, 3, 24, 24), dtype=torch.uint8)
    made = normalised(frames, 12, [[4, 8, 12, 12], [16, 8, -12, 12], [0, 0, 24, 24]])
    torch.testing.assert_close(made[0], frames[0, :, 8:20, 4:16].float(), atol=0.01, rtol=0)
    torch.testing.assert_close(made[1], frames[1, :, 8:20, 4:16].flip(2).float(), atol=0.01, rtol=0)
    halves = torch.nn.functional.avg_pool2d(frames[2].float(), 2)
    torch.testing.assert_close(made[2], halves, atol=0.01, rtol=0)


def test_a_whole_frame_is_scaled():
    smooth = torch.linspace(0, 255, 24).expand(1, 3, 24, 24).byte()
    made = normalised(smooth, 12)
    assert made.shape == (1, 3, 12, 12)
    torch.testing.assert_close(made[..., 1:-1], (smooth[:, :, ::2, ::2] + smooth[:, :, 1::2, 1::2].float())[..., 1:-1]
                               / 2, atol=1.5, rtol=0)


def test_the_same_clip_makes_the_same_bytes(tmp_path):
    clip(tmp_path / "a.mkv", tone(10), 16000)
    facts = Clip(key="a", path="a.mkv", label="a", split="train", start=2, end=5, source="")
    settings = parse_params(tiny_settings()).shard
    one, two = (make_sample(facts, raw=tmp_path, settings=settings, recipe=RECIPES["synth"]) for _ in range(2))
    assert one == two and one.pairs == 10
    assert json.loads(one.members["json"])["labels"] == [None] * 2 + ["a"] * 3 + [None] * 5


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_turned_clip_becomes_a_sample_like_any_other(tmp_path, degrees):
    def turn(video, audio):
        video.set_display_rotation(degrees, False, False)

    path = write_clip(tmp_path / "a.mp4", [grey(20, 64, 48)] * 40, tone(4)[None], acodec="aac", fmt="fltp", setup=turn)
    settings = parse_params(tiny_settings()).shard
    made = make_sample(Clip(key="a", path=path.name, label="x", split="train", start=0, end=4, source="a"),
                       raw=tmp_path, settings=settings, recipe=FOLDER)
    assert decode_jpeg(made.members["frame-01.jpg"]).shape == (SIZE, SIZE, 3)
