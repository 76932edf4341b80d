import itertools
from collections import Counter

import av
import numpy as np
import pytest

from maavt.media.decode import decode
from maavt.params import Synth, parse_params
from maavt.sources import synth
from tests.conftest import tiny_settings

TINY = Synth(classes=8, train=24, val=8, test=8, size=64, fps=4)


def make(tmp_path, clip, seed=0, **changes):
    synth._make(clip, synth=TINY, seed=seed, folder=tmp_path)
    return tmp_path / clip.path


@pytest.mark.parametrize("classes", [4, 8, 12])
def test_each_shape_and_each_sound_belongs_to_two_classes(classes):
    names = synth.labels(parse_params(tiny_settings(synth={"classes": classes}))).classes
    assert len(set(names)) == classes
    for kinds in zip(*(name.split("-") for name in names), strict=True):
        assert set(Counter(kinds).values()) == {2}


def test_background_seconds_never_show_the_pair_that_makes_the_event():
    kinds = Counter()
    for clip in synth._clips(TINY, seed=3):
        shape, sound = clip.label.split("-")
        script = list(synth._script(clip, shape, sound, np.random.default_rng(1)))
        for second, pair in enumerate(script):
            inside = clip.start <= second < clip.end
            assert (pair == (shape, sound)) == inside
            kinds[pair[0] == shape, pair[1] == sound] += 1
    assert len(kinds) == 4, "own shape with foreign sound, the reverse, neither, and events"


def test_splits_have_the_asked_sizes_and_all_classes_and_no_clip_twice():
    clips = list(synth._clips(TINY, seed=0))
    assert Counter(clip.split for clip in clips) == {"train": 24, "val": 8, "test": 8}
    assert len({clip.key for clip in clips}) == len(clips)
    for split, own in itertools.groupby(clips, key=lambda clip: clip.split):
        assert len({clip.label for clip in own}) == 8, split


def test_a_clip_is_a_real_mp4_of_ten_seconds_with_h264_and_aac(tmp_path):
    path = make(tmp_path, next(synth._clips(TINY, seed=0)))
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
    media = decode(path, seconds=10, frame_size=64, sample_rate=16000)
    assert media.video_seconds == pytest.approx(10, abs=0.3) and media.audio_seconds == pytest.approx(10, abs=0.3)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(tmp_path):
    clip = next(synth._clips(TINY, seed=0))
    first, second, other = (make(tmp_path / name, clip, seed).read_bytes()
                            for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == second != other


def test_the_shape_moves_and_the_sound_is_heard(tmp_path):
    clip = next(synth._clips(TINY, seed=0))
    media = decode(make(tmp_path, clip), seconds=10, frame_size=64, sample_rate=16000)
    start, end = int(clip.start), int(clip.end)
    event = media.frames[start:end].astype(float)
    assert np.abs(np.diff(event, axis=0)).max(axis=(1, 2, 3)).min() > 40
    assert media.waveform[start * 16000 : end * 16000].std() > 0.01
