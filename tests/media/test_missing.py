"""What decode() and a sample make of files without sound or without picture, where such clips are kept."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest

from maavt.clips import Clip
from maavt.media.sample import make_sample, read_clip
from maavt.media.spectrogram import nothing_heard
from maavt.params import parse_params
from tests.conftest import tiny_settings
from tests.media import test_spectrogram
from tests.media.test_decode import CLIPS, RATE, ask, grey, reason, tone, write_clip
from tests.sources.common import write_media

SETTINGS = replace(parse_params(tiny_settings()).shard, missing="keep")
FOLDER = replace(test_spectrogram.RECIPES["folder"], seconds=2)
MOVING = [grey(value) for value in range(0, 240, 6)]  # 4 s
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def test_a_file_of_sound_alone_has_its_sound_and_no_picture(tmp_path):
    path = write_media(tmp_path / "a.mp3", seconds=4, picture=None, sound="mp3")
    assert reason(path) == "no video stream"
    clip = ask(path, 4, keep=True)
    assert (clip.absent, clip.video_seconds, clip.seconds) == ("picture", 0, pytest.approx(4, abs=0.1))
    assert clip.frames.shape == (4, 32, 32, 3) and not clip.frames.any() and np.abs(clip.waveform).mean() > 0.1


def test_a_file_of_picture_alone_has_its_frames_and_no_sound(tmp_path):
    path = write_media(tmp_path / "a.mp4", seconds=4, sound=None)
    assert reason(path) == "no audio stream"
    clip = ask(path, 4, keep=True)
    assert (clip.absent, clip.audio_seconds, clip.seconds) == ("sound", 0, 4)
    assert clip.waveform.shape == (4 * RATE,) and not clip.waveform.any() and np.ptp(clip.frames.mean((1, 2, 3))) > 20


@pytest.mark.parametrize("sound, absent", [(tone(4), ""), (np.zeros(4 * RATE), "sound"), (tone(4) * 1e-3, "sound"),
                                           (np.append(np.zeros(3 * RATE), tone(1)), "")])
def test_silence_from_end_to_end_is_no_sound_and_a_pause_is(tmp_path, sound, absent):
    path = write_clip(tmp_path / "a.mkv", MOVING, sound[None])
    assert ask(path, 4, keep=True).absent == absent and ask(path, 4).absent == ""


@pytest.mark.parametrize("pictures, absent", [([grey(0)] * 40, "picture"), ([grey(90)] * 40, "picture"),
                                              ([PHOTOGRAPH] * 40, ""), ([grey(90)] * 20 + [grey(110)] * 20, "")])
def test_one_colour_from_end_to_end_is_no_picture_and_a_photograph_is(tmp_path, pictures, absent):
    path = write_clip(tmp_path / "a.mkv", pictures)
    assert ask(path, 4, keep=True).absent == absent and ask(path, 4).absent == ""


def test_neither_picture_nor_sound_is_no_clip(tmp_path):
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 40, np.zeros((1, 4 * RATE)))
    assert reason(path, keep=True) == "nothing to see or hear" and ask(path, 4).absent == ""
    beyond = write_media(tmp_path / "b.wav", picture=None, sound="pcm_s16le")
    assert reason(beyond, keep=True, start=9) == "too short"


def test_what_is_there_must_be_long_enough_and_what_is_silent_need_not(tmp_path):
    brief = write_clip(tmp_path / "a.mkv", MOVING, np.zeros((1, RATE)))
    assert reason(brief) == "too short" and ask(brief, 4, keep=True).absent == "sound"
    assert reason(write_media(tmp_path / "b.mp3", seconds=1, picture=None, sound="mp3"), keep=True) == "too short"


def test_a_cover_is_no_picture(tmp_path):
    with av.open(str(tmp_path / "a.mp3"), "w") as container:
        audio, cover = container.add_stream("mp3", rate=RATE, layout="mono"), container.add_stream("png")
        cover.width = cover.height = 32
        cover.pix_fmt, cover.disposition = "rgb24", av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(PHOTOGRAPH, "rgb24")))
        for begin in range(0, 4 * RATE, 1024):
            frame = av.AudioFrame.from_ndarray(tone(0.064)[None].astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, begin
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    assert ask(tmp_path / "a.mp3", 4, keep=True).absent == "picture"


@pytest.mark.parametrize("name, absent", [
    ("rotated_90.mov", "sound"), ("odd_dimensions.webm", "sound"), ("large_offset.ts", "sound"),
    ("no_audio_decoder.mp4", "sound"), ("non_utf8_tags.wav", "picture"), ("nasa.mp4", ""),
    ("silent_black.mp4", "nothing to see or hear"), ("audio_only.mp4", "nothing to see or hear"),  # but silence
    ("claims_231_seconds.mp4", "no frame decoded"), ("README.md", "not media")])
def test_real_files_are_kept_for_what_they_have(name, absent):
    if not CLIPS.exists():
        pytest.skip("the real clips are not here")
    if " " in absent:
        assert reason(CLIPS / name, pad="tile", keep=True) == absent
    else:
        assert ask(CLIPS / name, 4, pad="tile", keep=True).absent == absent


@pytest.mark.parametrize("suffix, codec", [(".mp3", "mp3"), (".ts", "aac"), (".wav", "pcm_s16le")])
def test_a_part_of_a_long_recording_of_sound_alone_is_sought(tmp_path, suffix, codec):
    """Every second is louder than the one before."""
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        audio = container.add_stream(codec, rate=RATE, layout="mono")
        wave = (tone(40) * np.repeat(np.arange(40) / 40, RATE) * 32767).astype(np.int16)[None]
        for begin in range(0, 40 * RATE, 1000):
            packed = av.AudioFrame.from_ndarray(wave[:, begin : begin + 1000], "s16", "mono")
            packed.sample_rate, packed.pts = RATE, begin
            for frame in av.AudioResampler(audio.format.name, "mono", RATE).resample(packed):
                container.mux(audio.encode(frame))
        container.mux(audio.encode())
    clip, whole = (ask(tmp_path / f"a{suffix}", seconds, start=start, keep=True)
                   for seconds, start in ((4, 30), (34, 0)))
    loud, expected = (np.square(one.waveform[-4 * RATE :].reshape(8, -1)).mean(1) for one in (clip, whole))
    assert clip.absent == "picture" and loud == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("dataset", ["folder", "synth", "vggsound"])
@pytest.mark.parametrize("absent", ["sound", "picture"])
def test_a_sample_leaves_out_what_is_absent_and_its_sums_do_as_well(tmp_path, dataset, absent):
    recipe = FOLDER if dataset == "folder" else test_spectrogram.RECIPES[dataset]
    options = {"sound": None} if absent == "sound" else {"picture": None}
    path = write_media(tmp_path / "a.mp4", seconds=10, **options)
    clip = Clip(key="a", path=path.name, label="x", split="train", start=0, end=10, source="")
    made = make_sample(clip, raw=tmp_path, settings=SETTINGS, recipe=recipe)
    facts = json.loads(made.members["json"])
    assert facts["absent"] == made.quality.absent == absent and len(facts["begins"]) == made.pairs
    assert ("spectrogram.npy" in made.members) == (absent == "picture") == (made.spectrogram_sums[0] > 0)
    assert any(name.endswith("jpg") for name in made.members) == (absent == "sound") == (made.frame_sums[0] > 0)
    assert not made.quality.fingerprint and made.quality.seconds == pytest.approx(10, abs=0.1)


def test_a_clip_read_for_prediction_has_no_frames_or_no_spectrograms(tmp_path):
    frames, sound, begins = read_clip(write_media(tmp_path / "a.mp3", picture=None, sound="mp3"), FOLDER, frame_size=32,
                                      keep=True)
    assert frames == {} and len(sound) == len(begins) == 3
    assert nothing_heard(3, FOLDER).shape == sound.shape and nothing_heard(3, FOLDER).dtype == sound.dtype
    frames, sound, begins = read_clip(write_media(tmp_path / "b.mp4", sound=None), FOLDER, frame_size=32, keep=True)
    assert sound is None and list(frames) == [1, 3, 5] and begins == [0, 2, 4]
