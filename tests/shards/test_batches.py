"""The loader on tiny shards made by hand, value by value."""

import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from simplejpeg import decode_jpeg

from maavt.shards import loader
from maavt.shards.loader import BACKGROUND_LABEL, Loader, _box
from maavt.shards.reader import Reader
from tests.shards.handmade import BINS, CLASSES, LENGTH, SIZE, heard, npy, picture, sample, write


def load(folder: Path, batch: int = 100, image_size: int = SIZE, **options) -> Loader:
    return Loader(folder, "test", batch=batch, image_size=image_size, **options)


def only(batches) -> loader.Batch:
    (batch,) = batches
    return batch


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> Path:
    """Six clips of 3 seconds, in 3 shards."""
    labels = [["a", "a", None], ["b", None, "b"], ["c", "c", "c"]]
    return write(tmp_path_factory.mktemp("shards"), [sample(clip, labels[clip % 3]) for clip in range(6)])


def pairs(batches) -> list[str]:
    return [f"{key[-1]}.{second}" for batch in batches for key, second in zip(batch.keys, batch.seconds, strict=True)]


ALL = [f"{clip}.{second}" for clip in range(6) for second in range(3)]


def test_a_pair_is_one_frame_one_spectrogram_and_one_label(six):
    batch = only(load(six).in_order())
    assert pairs(Loader(Reader(six), "test", batch=5, image_size=SIZE).in_order()) == ALL
    assert pairs([batch]) == ALL and batch.boxes is None and batch.absent is None
    assert batch.labels.dtype == torch.int64 and batch.labels.tolist() == 2 * [0, 0, -1, 1, -1, 1, 2, 2, 2]
    assert BACKGROUND_LABEL == -1 and batch.frames.dtype == torch.uint8
    for number, (frame, sound) in enumerate(zip(batch.frames, batch.spectrograms, strict=True)):
        clip, second = divmod(number, 3)
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), decode_jpeg(picture(clip, second)))
        assert sound.dtype == torch.float16 and np.array_equal(sound.numpy(), heard(clip, 3)[second])


def test_the_frame_is_cut_at_its_middle_in_evaluation(six):
    batch = only(load(six, image_size=11).in_order())
    assert np.array_equal(batch.frames[0].permute(1, 2, 0).numpy(), decode_jpeg(picture(0, 0))[4:15, 4:15])


def test_in_training_the_frame_is_cut_anywhere_along_and_across(six):
    places = set()
    for epoch in range(10):
        for batch in load(six, image_size=SIZE - 2).shuffled(seed=0, epoch=epoch, held=1):
            for pair, frame in zip(pairs([batch]), batch.frames, strict=True):
                whole = decode_jpeg(picture(*map(int, pair.split("."))))
                places |= {(x, y) for x in range(3) for y in range(3)
                           if np.array_equal(frame.permute(1, 2, 0).numpy(), whole[y : y + 18, x : x + 18])}
    assert places == {(x, y) for x in range(3) for y in range(3)}


@pytest.mark.parametrize("batch, sizes", [(1, [1] * 18), (7, [7, 7, 4]), (18, [18]), (30, [18])])
def test_batches_in_order_are_full_but_for_the_last(six, batch, sizes):
    assert [len(found.keys) for found in load(six, batch).in_order()] == sizes and len(load(six, batch)) == len(sizes)


@pytest.mark.parametrize("ranks", [1, 4, 20])
def test_in_order_processes_take_stretches_that_follow_one_another(six, ranks):
    each = [pairs(load(six).in_order(rank, ranks)) for rank in range(ranks)]
    assert sum(each, []) == ALL and {len(own) for own in each} <= {18 // ranks, 18 // ranks + 1}


@pytest.mark.parametrize("batch, ranks, sizes", [
    (7, 1, [6, 6, 6]), (5, 1, [4, 5, 4, 5]), (18, 1, [18]), (4, 2, [3, 3, 3]), (5, 4, [5]), (3, 4, [2, 3])])
def test_shuffled_batches_are_as_even_as_can_be(six, batch, ranks, sizes):
    reading = load(six, batch)
    for rank in range(ranks):
        found = list(reading.shuffled(seed=0, epoch=0, held=4, rank=rank, ranks=ranks))
        assert [len(one.keys) for one in found] == sizes
        assert reading.steps(ranks) == len(sizes) and reading.share(ranks) == sum(sizes)


def test_the_shares_of_processes_overlap_no_more_than_they_must(six):
    """18 pairs for 4 processes, 5 for each: the last begins two pairs earlier."""
    each = [pairs(load(six).shuffled(seed=3, epoch=2, held=1, rank=rank, ranks=4)) for rank in range(4)]
    first = {*each[0], *each[1], *each[2]}
    assert len(first) == 15 and {*each[3]} - first == {*ALL} - first and len({*each[3]} & {*each[2]}) == 2
    assert len(pairs(load(six).shuffled(seed=0, epoch=0, held=1, ranks=18))) == 1  # as many processes as pairs


@pytest.mark.parametrize("count", [0, 1, 6, 7, 18])
def test_a_stretch_is_so_many_pairs_from_there_on_and_opens_no_other_shard(six, monkeypatch, count):
    opened, real = [], Reader.samples
    monkeypatch.setattr(Reader, "samples", lambda reader, names: [opened.append(names), real(reader, names)][1])
    for first in range(19):
        assert pairs(load(six).stretch(first, count)) == ALL[first : first + count]
        assert opened.pop() == [f"test/{shard}.tar" for shard in range(3)
                                if first < 6 * (shard + 1) and 6 * shard < first + count]


def test_the_order_of_a_seed_and_an_epoch_is_what_it_has_always_been(six):
    """Else a run could not be repeated with a later version."""
    assert pairs(load(six).shuffled(seed=0, epoch=1, held=5)) == (
        "1.0 0.0 0.2 4.1 0.1 1.1 4.0 5.0 5.1 2.1 2.2 5.2 3.0 4.2 3.2 3.1 2.0 1.2".split())
    assert pairs(load(six).shuffled(seed=0, epoch=1, held=5, rank=1, ranks=2)) == (
        "2.1 2.0 3.0 2.2 3.2 5.1 5.2 5.0 3.1".split())


def test_a_pair_is_drawn_from_as_many_as_are_held(six):
    for held in (1, 4):
        found = pairs(load(six).shuffled(seed=1, epoch=0, held=held))
        shards = [pair for shard in dict.fromkeys(int(pair[0]) // 2 for pair in found) for pair in ALL[6 * shard :][:6]]
        ahead = [shards.index(pair) - place for place, pair in enumerate(found)]
        assert max(ahead) == held - 1 and sorted(found) == ALL


def test_only_what_is_taken_is_decoded(six, monkeypatch):
    seen = []
    monkeypatch.setattr(loader, "decode_jpeg", lambda data: [seen.append(1), decode_jpeg(data)][1])
    found = list(load(six, 6).shuffled(seed=0, epoch=0, held=3, skip=2))
    assert len(found) == 1 and len(seen) == 6


def test_no_more_than_a_few_batches_are_decoded_ahead(six, monkeypatch):
    taken, real = [], Loader._pairs
    monkeypatch.setattr(Loader, "_pairs", lambda *arguments: (taken.append(pair) or pair for pair in real(*arguments)))
    monkeypatch.setenv("MAAVT_WORKERS", "2")
    batches = load(six, 1).in_order()
    next(batches)
    assert len(taken) == 2 * 2 + 1
    batches.close()


def test_what_waits_to_be_decoded_is_dropped_when_the_batches_are_left(six, monkeypatch):
    begun, real = [], Loader._decode

    def slow(reading, *arguments):
        begun.append(1)
        if len(begun) > 1:
            time.sleep(0.5)
        return real(reading, *arguments)

    monkeypatch.setattr(Loader, "_decode", slow)
    batches = load(six, 1).in_order()
    next(batches)
    batches.close()
    assert len(begun) <= 2  # of three that were asked for


def test_a_clip_with_several_labels_has_a_one_for_each(tmp_path):
    place = write(tmp_path, [sample(0, ["a;c", "b"])], multilabel=True, background=False)
    batch = only(load(place).in_order())
    assert batch.labels.dtype == torch.float32 and batch.labels.tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("augment", ["crop", "resized_crop"])
@pytest.mark.parametrize("bins, n_fft", [(BINS, None), (None, 2 * BINS - 2)])
def test_what_a_clip_lacks_is_zeros_and_is_told(tmp_path, augment, bins, n_fft):
    lacking = [sample(0, ["a", "a"]), sample(1, ["b", "b"], "sound"), sample(2, ["c", "c"], "picture")]
    place = write(tmp_path, lacking, spectrogram={"bins": bins, "n_fft": n_fft})
    assert load(place).lacking
    batch = only(load(place, augment=augment).in_order())
    assert batch.absent.dtype == torch.uint8 and batch.absent.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.frames.flatten(1).any(1).tolist() == [True] * 4 + [False] * 2
    assert batch.spectrograms.flatten(1).any(1).tolist() == [True, True, False, False, True, True]
    assert batch.spectrograms.dtype == torch.float16 and batch.spectrograms.shape == (6, LENGTH, BINS)


@pytest.mark.parametrize("kind", ["sound", "picture"])
def test_a_data_set_lacks_something_where_any_split_does(six, tmp_path, kind):
    assert not load(six).lacking
    place = write(tmp_path, [sample(0, ["a"])], splits={"test": {"pairs": 1}, "train": {f"without_{kind}": 1}})
    assert load(place).lacking and only(load(place).in_order()).absent.tolist() == [0]


WHOLE = {"seconds": 3, "clip_seconds": 9}  # of 9 seconds and 12 frames of sound a window has 3 and 4


def test_of_all_the_sound_evaluation_takes_the_window_at_the_offset(tmp_path):
    place = write(tmp_path, [sample(0, ["a"] * 9, begins=[3], length=12)], spectrogram=WHOLE)
    batch = only(load(place).in_order())
    assert np.array_equal(batch.spectrograms[0].numpy(), heard(0, 1, 12)[0, 4:8]) and batch.seconds == [3]
    assert np.array_equal(batch.frames[0].permute(1, 2, 0).numpy(), decode_jpeg(picture(0, 4)))


def test_where_there_is_a_single_frame_of_sound_more_the_window_is_one_of_two(tmp_path):
    place = write(tmp_path, [sample(0, ["a"] * 9, begins=[3], length=LENGTH + 1)], spectrogram=WHOLE)
    found = {int(only(load(place).shuffled(seed=0, epoch=epoch, held=1)).spectrograms[0, 0, 0]) for epoch in range(9)}
    assert found == {0, BINS} and only(load(place).in_order()).spectrograms.shape == (1, LENGTH, BINS)


def test_of_all_the_sound_training_takes_a_window_anywhere_and_the_frame_and_the_label_at_its_middle(tmp_path):
    labels = list("aabbccaba")
    place, starts = write(tmp_path, [sample(0, labels, begins=[3], length=12)], spectrogram=WHOLE), set()
    for epoch in range(60):
        batch = only(load(place).shuffled(seed=0, epoch=epoch, held=1))
        start = int(batch.spectrograms[0, 0, 0]) // BINS
        starts.add(start)
        assert np.array_equal(batch.spectrograms[0].numpy(), heard(0, 1, 12)[0, start : start + 4])
        begin = start / 8 * 6
        middle = int(begin + 1.5)
        assert batch.seconds == [int(begin)] and CLASSES[batch.labels[0]] == labels[middle]
        assert np.array_equal(batch.frames[0].permute(1, 2, 0).numpy(), decode_jpeg(picture(0, middle)))
    assert starts == set(range(9))


def test_a_part_of_a_frame_to_be_scaled_comes_with_the_whole_frame(six):
    batch = only(load(six, image_size=8, augment="resized_crop").shuffled(seed=0, epoch=0, held=1))
    assert batch.frames.shape == (18, 3, SIZE, SIZE) and batch.boxes.dtype == torch.float32
    assert batch.boxes.shape == (18, 4) and len(batch.boxes.unique(dim=0)) > 15
    single = load(six, 1, image_size=8, augment="resized_crop").shuffled(seed=0, epoch=0, held=1)
    assert all(one.boxes.shape == (1, 4) for one in single)
    whole = only(load(six, image_size=8, augment="resized_crop").in_order())
    assert whole.boxes is None and whole.frames.shape == (18, 3, SIZE, SIZE)


def test_parts_of_frames_have_all_shares_and_shapes_and_places_that_are_asked_for():
    size, rng = 1000, random.Random(0)
    drawn = np.array([_box(size, rng) for _ in range(20_000)])
    mirrored = drawn[:, 2] < 0
    width, height, top = abs(drawn[:, 2]), drawn[:, 3], drawn[:, 1]
    left = np.where(mirrored, drawn[:, 0] - width, drawn[:, 0])
    share, ratio = width * height / size**2, width / height
    assert mirrored.mean() == pytest.approx(0.5, abs=0.02)
    assert share.min() == pytest.approx(0.08, abs=0.005) and share.max() == pytest.approx(1, abs=0.02)
    assert ratio.min() == pytest.approx(3 / 4, abs=0.01) and ratio.max() == pytest.approx(4 / 3, abs=0.01)
    small = share < 0.5  # which fit whatever their shape
    assert np.log(ratio[small]).mean() == pytest.approx(0, abs=0.01)
    assert share[small].mean() == pytest.approx(0.29, abs=0.01)
    for place, side in ((left, width), (top, height)):
        free = size - side
        assert (place >= 0).all() and (place <= free).all()
        assert (place[free > 50] / free[free > 50]).mean() == pytest.approx(0.5, abs=0.02)
        assert place[free > 50].min() == 0 and (free - place)[free > 50].min() == 0


class Drawn(random.Random):
    """One who draws these shares and ratios in turn, and never mirrors."""

    def __init__(self, *drawn: tuple[float, float]):
        super().__init__(0)
        self.drawn = [number for share, ratio in drawn for number in (share, math.log(ratio))]

    def uniform(self, low, high):
        return self.drawn.pop(0)

    def random(self):
        return 0.5


WIDE = (1, 4 / 3)  # wider than the frame


def test_a_part_may_reach_from_edge_to_edge_and_be_a_pixel_wide():
    assert _box(40, Drawn((0.75, 4 / 3)))[::2] == (0, 40) and _box(40, Drawn((0.75, 4 / 3)))[3] == 30
    assert _box(40, Drawn((0.75, 3 / 4)))[1::2] == (0, 40) and _box(40, Drawn((0.75, 3 / 4)))[2] == 30
    assert _box(3, Drawn((0.12, 3 / 4)))[2:] == (1, 1) == _box(3, Drawn((0.12, 4 / 3)))[2:]
    assert _box(1, Drawn(*[(0.08, 1)] * 10)) == (0, 0, 1, 1)


def test_after_ten_shapes_that_do_not_fit_the_frame_is_taken_whole():
    assert _box(100, Drawn(*[WIDE] * 10, (0.25, 1))) == (0, 0, 100, 100)
    assert _box(100, Drawn(*[WIDE] * 9, (0.25, 1)))[2:] == (50, 50)


def test_a_spectrogram_is_read_as_numpy_wrote_it():
    for array in (np.arange(6, dtype=np.float16).reshape(1, 2, 3), np.ones((40, 3), np.float32), np.zeros(0)):
        found = loader._read_array(npy(array))
        assert found.dtype == array.dtype and np.array_equal(found, array)
