"""What decode() makes of real files of many makes, of exact files written here, and of broken ones."""

import math
import os
import pickle
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from maavt.media import decode as media
from maavt.media import picture, sound
from maavt.media.decode import REASONS, Media, Rejected, decode
from maavt.workers import fan_out

CLIPS = Path(__file__).parents[3] / "shared" / "clips"
FAULTS = CLIPS.parent / "faults"
RATE = 16000  # samples per second of the sound in the files written here, and of what is asked
SIZE = 32

# (seconds of picture, seconds of sound) of the first ten, or the reason
VERDICTS = {
    "pancake.mkv": (10, 10),
    "nasa.mp4": (10, 10),
    "rabbit.mp4": (7.8, 7.78),
    "duck.mp4": (6.97, 7.04),
    "surround_rotated.mp4": (1.96, 2.005),
    "rotated_90.mov": "no audio stream",
    "odd_dimensions.webm": "no audio stream",
    "shorter_audio.mp4": (1.2, 0.766),
    "video_starts_late.mp4": (10, 10),
    "large_offset.ts": "no audio stream",
    "fps_1000.flv": (1.0, 1.09),
    "silent_black.mp4": (10, 10),
    "video_only.mp4": "no audio stream",
    "audio_only.mp4": "no video stream",
    "no_audio_decoder.mp4": "no audio decoder",
    "fails_mid_stream.mp4": "no audio stream",
    "corrupted.mp4": "no audio stream",
    "invalid_bitstream.webm": "no audio stream",
    "claims_231_seconds.mp4": "no frame decoded",
    "non_utf8_tags.wav": "no video stream",
    "README.md": "not media",
}


def grey(value: int, width: int = SIZE, height: int = SIZE) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def write_clip(path: Path, pictures, sound=None, *, times=None, fps=10, sound_at=0.0, codec="mpeg4", acodec="pcm_s16le",
               fmt="s16", layout="mono", rate=RATE, gop=10, setup=None, options=None) -> Path:
    """A small file: RGB pictures at `times` (seconds; default: by fps), and sound (channels, samples) in [-1, 1]."""
    if sound is None:
        sound = tone(len(pictures) / fps, rate)[None]
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(codec, rate=fps, options={"qmin": "1", "qmax": "2"} if codec == "mpeg4" else {})
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
        video.codec_context.gop_size = gop
        audio = container.add_stream(acodec, rate=rate)
        audio.layout = layout
        audio.format = fmt
        if setup:
            setup(video, audio)
        packets = []
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            if times:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            packets += video.encode(frame)
        packets += video.encode(None)
        for begin in range(0, sound.shape[1], 1024):
            chunk = sound[:, begin:begin + 1024]
            packets += audio.encode(_audio_frame(chunk, fmt, layout, rate, begin + sound_at * rate))
        packets += audio.encode(None)
        container.start_encoding()
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def _audio_frame(samples: np.ndarray, fmt: str, layout: str, rate: int, pts: float) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).astype(np.float64), "dbl", layout)
    frame.sample_rate = rate
    (frame,) = av.AudioResampler(fmt, layout, rate).resample(frame)
    frame.pts, frame.time_base = round(pts), Fraction(1, rate)
    return frame


def tone(seconds: float, rate: int = RATE, pitch: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def ask(path, seconds: int, **options) -> Media:
    return decode(path, **{"seconds": seconds, "frame_size": SIZE, "sample_rate": RATE} | options)


def levels(clip: Media) -> list[int]:
    """The brightness of each frame."""
    return [round(float(frame.mean())) for frame in clip.frames]


def near(values, expected, tolerance=3) -> bool:
    return len(values) == len(expected) and all(abs(v - e) <= tolerance for v, e in zip(values, expected, strict=True))


def reason(path, seconds: int = 4, **options) -> str:
    with pytest.raises(Rejected) as caught:
        ask(path, seconds, **options)
    assert caught.value.reason in REASONS
    return caught.value.reason


# Real files


@pytest.mark.parametrize("name", VERDICTS)
def test_real_clip_gets_its_expected_verdict(name, capfd):
    if not (CLIPS / name).exists():
        pytest.skip("the real clips are not here")
    if isinstance(VERDICTS[name], str):
        assert reason(CLIPS / name, pad="tile") == VERDICTS[name]
    else:
        clip = ask(CLIPS / name, 10, pad="tile")
        assert (clip.video_seconds, clip.audio_seconds) == pytest.approx(VERDICTS[name], abs=0.01)
        assert clip.frames.shape == (10, SIZE, SIZE, 3) and clip.frames.dtype == np.uint8
        assert clip.waveform.shape == (10 * RATE,) and clip.waveform.dtype == np.float32
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name, frames", {"fails_mid_stream.mp4": 1, "corrupted.mp4": 5, "odd_dimensions.webm": 1,
                                          "large_offset.ts": 1, "invalid_bitstream.webm": 0}.items())
def test_damaged_or_odd_picture_is_used_as_far_as_it_decodes(name, frames, tmp_path):
    if not (CLIPS / name).exists():
        pytest.skip("the real clips are not here")
    path = _with_sound(CLIPS / name, tmp_path / "sounding.mkv")
    if not frames:
        assert reason(path, pad="tile") == "no frame decoded"
    else:
        clip = ask(path, frames, pad="tile")
        assert clip.frames.std() > 1
        assert not np.array_equal(clip.frames[0], clip.frames[-1]) or frames == 1


def _with_sound(source: Path, target: Path) -> Path:
    """The picture of a file as it is, with five seconds of sound beside it."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        video = old.streams.video[0]
        copy = new.add_stream_from_template(video)
        audio = new.add_stream("pcm_s16le", rate=RATE)
        audio.layout = "mono"
        begin = (old.start_time or 0) / av.time_base
        for packet in audio.encode(_audio_frame(tone(5)[None], "s16", "mono", RATE, begin * RATE)):
            new.mux(packet)
        for packet in old.demux(video):
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    return target


# Frames


def test_frame_is_the_last_one_not_later_than_the_middle_of_its_second(tmp_path):
    path = write_clip(tmp_path / "a.mp4", [grey(20 * i) for i in range(8)], tone(4)[None], fps=2)
    assert near(levels(ask(path, 4)), [20, 60, 100, 140])  # those at exactly 0.5, 1.5, ...
    assert near(levels(ask(path, 2, start=1.25)), [60, 100])  # at 1.75 and 2.75
    assert near(levels(ask(path, 2, start=1)), [60, 100])


def test_frames_of_a_variable_rate_go_by_their_own_times(tmp_path):
    times = [0, 0.45, 0.55, 1.6, 2.4, 2.51, 3.9]
    path = write_clip(tmp_path / "a.mkv", [grey(30 * i) for i in range(7)], tone(4)[None], times=times, fps=1000)
    assert near(levels(ask(path, 4)), [30, 60, 120, 150])


@pytest.mark.parametrize("options", [{}, {"bf": "0"}, {"bf": "16", "b-pyramid": "none"}, {"bf": "8", "refs": "8"}])
@pytest.mark.parametrize("suffix, fps", [("mp4", 25), ("mkv", 3), ("ts", 30)])
def test_frames_are_the_same_as_when_every_packet_is_decoded(tmp_path, monkeypatch, options, suffix, fps):
    rng = np.random.default_rng(fps)
    times = np.cumsum(rng.choice([0.5, 1, 1, 1, 2], 5 * fps)) / fps
    pictures = [np.roll(_quadrants(), number, axis=number % 2) for number in range(len(times))]
    path = write_clip(tmp_path / f"a.{suffix}", pictures, tone(times[-1])[None], codec="libx264", acodec="mp2", fps=fps,
                      gop=2 * fps, times=[float(time) for time in times], setup=lambda video, _: setattr(
                          video, "options", {"crf": "20", **options}))
    seconds = math.ceil(times[-1])
    chosen = ask(path, seconds).frames
    monkeypatch.setattr(picture.Picture, "_on_view", lambda *_: True)
    assert np.array_equal(chosen, ask(path, seconds).frames)


def test_picture_that_starts_late_shows_its_first_frame_before(tmp_path):
    path = write_clip(tmp_path / "a.mkv", [grey(100), grey(200)], tone(4)[None], times=[1.2, 3.2])
    assert near(levels(ask(path, 4)), [100, 100, 100, 200])


def test_picture_that_ends_early_is_held(tmp_path):
    path = write_clip(tmp_path / "a.mkv", [grey(10 * i) for i in range(25)], tone(4)[None])
    clip = ask(path, 4)
    assert near(levels(clip), [50, 150, 240, 240])
    assert clip.video_seconds == pytest.approx(2.5)


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_clock_begins_at_the_start_of_the_container(tmp_path, suffix):
    path = write_clip(tmp_path / f"a.{suffix}", [grey(10 * i) for i in range(20)], sound_at=50.5,
                      times=[50 + i / 10 for i in range(20)], acodec="mp2" if suffix == "ts" else "pcm_s16le")
    clip = ask(path, 2)
    assert near(levels(clip), [50, 150])
    onset = np.flatnonzero(np.abs(clip.waveform) > 0.1)[0] / RATE
    assert onset == pytest.approx(0.5, abs=0.05)


def test_clock_that_runs_backwards_goes_on_from_where_it_was(tmp_path):
    parts = [write_clip(tmp_path / f"{i}.ts", [grey(100 * i + 5 * j) for j in range(20)], acodec="mp2") for i in (0, 1)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = ask(path, 4)
    assert near(levels(clip), [25, 75, 125, 175], tolerance=6)
    assert clip.audio_seconds == pytest.approx(4, abs=0.1)


def test_frames_without_times_of_their_own_are_in_order(tmp_path):
    def with_b_frames(video, audio):
        video.codec_context.options = video.codec_context.options | {"bf": "2"}

    path = write_clip(tmp_path / "a.avi", [grey(6 * i) for i in range(40)], setup=with_b_frames)
    assert near(levels(ask(path, 4)), [30, 90, 150, 210], tolerance=7)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "mov"])
@pytest.mark.parametrize("fps", [5, 10, 24])
def test_frames_that_are_stored_out_of_order_are_shown_in_order(tmp_path, suffix, fps):
    def with_b_frames(video, audio):
        video.options = {"preset": "ultrafast", "bf": "3", "crf": "10"}

    path = write_clip(tmp_path / f"a.{suffix}", [grey(20 + 50 * i // fps) for i in range(4 * fps)], tone(4)[None],
                      fps=fps, gop=2 * fps, codec="libx264", acodec="mp2", setup=with_b_frames)
    early = 2 if fps == 24 else 50 / fps  # a container may begin a moment before its picture
    assert all(-early - 3 <= level - (45 + 50 * s) <= 3 for s, level in enumerate(levels(ask(path, 4))))


def _quadrants(width: int = SIZE, height: int = SIZE) -> np.ndarray:
    image = grey(20, width, height)
    image[:height // 2, width // 2:], image[height // 2:, :width // 2], image[height // 2:, width // 2:] = 90, 160, 230
    return image


def _corners(clip: Media) -> list[int]:
    near_edge, far_edge = SIZE // 4, 3 * SIZE // 4
    return [int(clip.frames[0][y, x].mean()) for y in (near_edge, far_edge) for x in (near_edge, far_edge)]


@pytest.mark.parametrize("degrees, hflip, vflip, expected", [
    (0, False, False, (20, 90, 160, 230)),
    (90, False, False, (90, 230, 20, 160)),  # counterclockwise
    (180, False, False, (230, 160, 90, 20)),
    (-90, False, False, (160, 20, 230, 90)),
    (0, True, False, (90, 20, 230, 160)),
    (0, False, True, (160, 230, 20, 90)),
    (90, True, False, (230, 90, 160, 20)),
    (-90, True, False, (20, 160, 90, 230)),
])
def test_picture_is_turned_and_mirrored_as_its_display_matrix_says(tmp_path, degrees, hflip, vflip, expected):
    def turn(video, audio):
        video.set_display_rotation(degrees, hflip, vflip)

    path = write_clip(tmp_path / "a.mp4", [_quadrants()] * 10, setup=turn, acodec="aac", fmt="fltp")
    assert near(_corners(ask(path, 1)), expected, tolerance=4)


def test_picture_of_oblong_pixels_is_shown_in_its_true_shape(tmp_path):
    def oblong(video, audio):
        video.codec_context.sample_aspect_ratio = Fraction(4, 1)

    path = write_clip(tmp_path / "a.mkv", [_quadrants(32, 128)] * 10, setup=oblong)
    image = ask(path, 1).frames[0]
    assert near([int(image[y, x].mean()) for y in (3, 28) for x in (3, 28)], [20, 90, 160, 230], tolerance=4)


def test_centre_square_of_a_wide_picture_is_kept(tmp_path):
    picture = grey(0, 192, 64)
    picture[:, 64:128] = 200
    path = write_clip(tmp_path / "a.mkv", [picture] * 10)
    assert ask(path, 1).frames[0][:, 2:-2].min() > 190


def test_picture_as_odd_as_can_be_is_refused_before_it_costs_memory(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "strip.mkv", [grey(0, 1024, 16)] * 10)
    assert reason(path) == "unusable dimensions"
    path = write_clip(tmp_path / "a.mkv", [grey(0, 64, 64)] * 10)
    monkeypatch.setattr(picture, "MAX_PIXELS", 64 * 64 - 1)
    assert reason(path) == "unusable dimensions"


def test_white_is_white_and_colours_stay(tmp_path):
    for number, (codec, tolerance) in enumerate([("mpeg4", 3), ("mjpeg", 3)]):
        colours = np.array([[255, 255, 255], [200, 30, 30], [30, 200, 30], [0, 0, 0]], np.uint8)
        pictures = [np.broadcast_to(colour, (SIZE, SIZE, 3)) for colour in colours]
        clip = ask(write_clip(tmp_path / f"{number}.mkv", pictures, tone(4)[None], fps=1, codec=codec), 4)
        assert np.abs(clip.frames.mean((1, 2)) - colours).max() <= tolerance


def test_picture_with_an_unknown_colour_matrix_is_shown_all_the_same(tmp_path):
    def unknown(video, audio):
        video.codec_context.options = {"x264-params": "colormatrix=YCgCo"}

    path = write_clip(tmp_path / "a.mp4", [grey(130)] * 10, codec="libx264", acodec="aac", fmt="fltp", setup=unknown)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 8
    assert near(levels(ask(path, 1)), [130])


# Sound


@pytest.mark.parametrize("acodec, fmt", [("pcm_u8", "u8"), ("pcm_s16le", "s16"), ("pcm_s32le", "s32"),
                                         ("pcm_s64le", "s64"), ("pcm_f32le", "flt"), ("pcm_f64le", "dbl"),
                                         ("pcm_s16le_planar", "s16p"), ("flac", "s16"), ("aac", "fltp")])
def test_waveform_is_the_same_from_every_sample_format(tmp_path, acodec, fmt):
    suffix = "mkv" if acodec == "flac" else "nut"
    path = write_clip(tmp_path / f"a.{suffix}", [grey(0)] * 10, tone(1)[None], acodec=acodec, fmt=fmt)
    waveform = ask(path, 1).waveform
    if acodec == "aac":  # NUT does not say how many samples the encoder has put in front
        waveform = np.roll(waveform, -1024)
    assert np.abs(waveform - tone(1))[2000:-2000].max() < (0.03 if acodec == "aac" else 0.01)


@pytest.mark.parametrize("suffix, acodec, fmt, layout", [
    ("mov", "pcm_s16le", "s16", "stereo"), ("mov", "pcm_s16le", "s16", "5.1"), ("mov", "pcm_s16le", "s16", "3.0"),
    ("mov", "pcm_s16le", "s16", "7.1"), ("mkv", "wavpack", "s16p", "7.1"),
])
def test_mono_mix_is_that_of_ffmpeg(tmp_path, suffix, acodec, fmt, layout):
    channels = av.AudioLayout(layout).nb_channels
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, (channels, 1024))
    path = write_clip(tmp_path / f"a.{suffix}", [grey(0)], sound, fps=16, layout=layout, acodec=acodec, fmt=fmt)
    frame = _audio_frame(sound, "s16", layout, RATE, 0)
    (expected,) = av.AudioResampler("s16", "mono", RATE).resample(frame)
    assert np.abs(ask(path, 1, pad="tile").waveform[:1024] - expected.to_ndarray()[0] / 2**15).max() < 2 / 2**15


def test_channels_of_unknown_places_are_averaged(tmp_path):
    sound = np.stack([np.full(RATE, level) for level in (0.1, 0.2, 0.6)])
    path = write_clip(tmp_path / "a.nut", [grey(0)] * 10, sound, layout="3 channels")
    assert ask(path, 1).waveform == pytest.approx(0.3, abs=0.001)


@pytest.mark.parametrize("acodec, fmt", [("pcm_s16le", "s16"), ("aac", "fltp")])
@pytest.mark.parametrize("seconds", [0.2, 4])
def test_of_channels_that_cancel_each_other_out_one_is_taken(tmp_path, acodec, fmt, seconds):
    sound = np.random.default_rng(0).normal(0, 0.01, (2, round(seconds * RATE))) * 0.01  # as of two converters
    sound += np.outer([0.95, -1], tone(seconds))
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 40, sound, acodec=acodec, fmt=fmt, layout="stereo")
    waveform = ask(path, 4, pad="tile").waveform[:round(seconds * RATE)]
    assert 0.9 < np.abs(waveform[RATE // 20:-RATE // 20]).max() / 0.5 < 1.1
    assert np.corrcoef(waveform, sound[1])[0, 1] > 0.95 or acodec == "aac"  # which shifts the tone


def test_channels_that_differ_are_mixed(tmp_path):
    for number, gains in enumerate([(1, 0), (0, 1), (1, -0.5)]):
        path = write_clip(tmp_path / f"{number}.mkv", [grey(0)] * 10, np.outer(gains, tone(1)), layout="stereo")
        assert np.abs(ask(path, 1).waveform - sum(gains) / 2 * tone(1)).max() < 0.001


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 96000])
def test_sound_of_any_rate_is_resampled_in_place(tmp_path, rate):
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 20, tone(2, rate)[None], rate=rate)
    error = np.abs(ask(path, 2).waveform - tone(2))
    assert error[100:-100].max() < 0.01


def test_sound_that_begins_late_follows_silence(tmp_path):
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 40, 0.5 + tone(2.5)[None] / 2, sound_at=1.25)
    clip = ask(path, 4)
    begin, end = round(1.25 * RATE), round(3.75 * RATE)
    assert not clip.waveform[:begin].any() and not clip.waveform[end:].any()
    assert np.abs(clip.waveform[begin:end] - 0.5 - tone(2.5) / 2).max() < 0.001
    assert clip.audio_seconds == pytest.approx(3.75)


def test_sound_with_a_hole_keeps_its_times(tmp_path):
    def hole(path):
        with av.open(str(path)) as old, av.open(str(tmp_path / "hole.mkv"), "w") as new:
            copies = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
            for packet in old.demux():
                if packet.dts is not None and not (packet.stream.type == "audio" and 1 <= packet.pts / 1000 < 2):
                    packet.stream = copies[packet.stream.index]
                    new.mux(packet)
        return tmp_path / "hole.mkv"

    clip = ask(hole(write_clip(tmp_path / "a.mkv", [grey(0)] * 30, np.full((1, 3 * RATE), 0.5))), 3)
    silent = np.flatnonzero(clip.waveform == 0) / RATE
    assert silent[0] == pytest.approx(1, abs=0.07) and silent[-1] == pytest.approx(2, abs=0.07)
    assert len(silent) == pytest.approx(RATE, rel=0.05)


def test_sound_that_is_no_number_does_not_spoil_the_waveform(tmp_path):
    sound = tone(1)[None]
    sound[0, 100:110] = np.nan
    sound[0, 200:210] = np.inf
    sound[0, 300:310] = -1e300
    sound = np.concatenate([sound, -sound])
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 10, sound, acodec="pcm_f64le", fmt="dbl", layout="stereo",
                      rate=48000)
    waveform = ask(path, 1, pad="tile").waveform
    assert np.isfinite(waveform).all() and np.abs(waveform).max() <= 1


# Length


def test_short_clip_is_tiled_when_asked(tmp_path):
    path = write_clip(tmp_path / "a.mkv", [grey(10 * i) for i in range(20)], tone(1.75)[None])
    clip = ask(path, 5, pad="tile")
    assert near(levels(clip), [50, 150, 50, 150, 50])
    period = round(1.75 * RATE)
    assert np.array_equal(clip.waveform, np.resize(clip.waveform[:period], 5 * RATE))
    assert np.abs(clip.waveform[:period] - tone(1.75)).max() < 0.001


def test_one_frame_and_some_sound_are_enough_for_tiling(tmp_path):
    clip = ask(write_clip(tmp_path / "a.mkv", [grey(70)], tone(0.1)[None]), 3, pad="tile")
    assert near(levels(clip), [70, 70, 70])
    assert clip.waveform[-RATE:].std() > 0.1


def test_clip_that_covers_less_than_half_is_too_short(tmp_path):
    pictures = [grey(0)] * 40
    assert reason(write_clip(tmp_path / "a.mkv", pictures[:19], tone(4)[None])) == "too short"
    assert reason(write_clip(tmp_path / "b.mkv", pictures, tone(1.9)[None])) == "too short"
    assert ask(write_clip(tmp_path / "c.mkv", pictures[:21], tone(2.1)[None]), 4).frames.shape[0] == 4
    assert reason(tmp_path / "c.mkv", 2, start=50) == "too short"
    assert reason(tmp_path / "c.mkv", 2, start=50, pad="tile") == "too short"


@pytest.mark.parametrize("suffix, codec, acodec, fmt, rate", [
    ("mp4", "mpeg4", "aac", "fltp", RATE), ("mov", "libx264", "pcm_s16le", "s16", RATE),
    ("mkv", "libx264", "pcm_s16le", "s16", RATE), ("ts", "libx264", "mp2", "s16", RATE),
    ("avi", "mpeg4", "pcm_s16le", "s16", RATE), ("flv", "flv1", "aac", "fltp", 22050),
])
def test_part_of_a_long_file_is_the_same_with_and_without_seeking(
    tmp_path, monkeypatch, suffix, codec, acodec, fmt, rate
):
    pictures = [grey(30 + 2 * (i % 97)) for i in range(600)]
    sound = np.sin(2 * np.pi * np.cumsum(np.linspace(100, 2000, 120 * rate)) / rate)[None] / 2
    path = write_clip(tmp_path / f"a.{suffix}", pictures, sound, fps=5, codec=codec, acodec=acodec, fmt=fmt, gop=60,
                      rate=rate)
    sought = ask(path, 3, start=77.35, sample_rate=rate)
    monkeypatch.setattr(media, "SEEK_FROM", math.inf)
    read = ask(path, 3, start=77.35, sample_rate=rate)
    assert np.array_equal(sought.frames, read.frames)
    assert near(levels(read), [30 + 2 * (i % 97) for i in (389, 394, 399)], tolerance=4)
    slack = rate // 1000 if suffix in ("flv", "ts") else 0  # these give times in whole ms, or as far as that off
    shifts = range(-slack, slack + 1)
    assert min(np.abs(np.roll(sought.waveform, i) - read.waveform)[slack:-slack or None].max() for i in shifts) < 0.05


def test_file_is_read_no_further_than_needed(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 600, fps=5)
    seen = []
    packets = media._packets
    monkeypatch.setattr(media, "_packets", lambda *args: (seen.append(p) or p for p in packets(*args)))
    ask(path, 2)
    assert 0 < len(seen) < 80  # of 2,475


def test_stream_that_ends_early_does_not_cost_the_reading_of_the_whole_file(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 1200, tone(2)[None], fps=5)
    seen = []
    packets = media._packets
    monkeypatch.setattr(media, "_packets", lambda *args: (seen.append(p) or p for p in packets(*args)))
    ask(path, 4)
    assert 0 < len(seen) < 400  # of 1,232


def test_picture_that_stands_still_for_long_is_not_taken_for_its_end(tmp_path):
    path = write_clip(tmp_path / "a.mkv", [grey(50), grey(100), grey(150)], tone(62)[None], times=[0, 30, 60])
    assert near(levels(ask(path, 4, start=5)), [50, 50, 50, 50])
    assert near(levels(ask(path, 4, start=28)), [50, 50, 100, 100])


def peak_memory(work) -> float:
    """MB that work has added to a fresh process at most (getrusage would begin with the peak of its parent)."""

    def peak() -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

    before = peak()
    work()
    return peak() - before


def _peak_of_decoding(task) -> float:
    return peak_memory(lambda: [ask(task["path"], 4, start=task["start"], pad="tile") for _ in range(task["times"])])


def test_memory_grows_neither_with_length_nor_with_the_number_of_clips(tmp_path, monkeypatch):
    long = write_clip(tmp_path / "long.avi", [grey(i % 256, 320, 240) for i in range(3000)], tone(600, 8000)[None],
                      fps=5, rate=8000)
    huge = write_clip(tmp_path / "8k.mkv", [grey(90, 7680, 4320)], codec="mjpeg", fps=1)
    tasks = [{"path": long, "start": 0, "times": 1}, {"path": long, "start": 590, "times": 1},
             {"path": long, "start": 300, "times": 30}, {"path": huge, "start": 0, "times": 2}]
    peaks = [next(fan_out(_peak_of_decoding, [task], workers=1))[1] for task in tasks]
    assert all(isinstance(peak, float) for peak in peaks), peaks
    assert max(peaks[:3]) < 60 and peaks[3] < 450, peaks


# Tracks


def test_default_track_is_taken_among_several(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        tracks = []
        for number in range(2):
            video = container.add_stream("mpeg4", rate=10)
            video.width = video.height = SIZE
            audio = container.add_stream("pcm_s16le", rate=RATE)
            audio.layout = "mono"
            video.disposition = audio.disposition = av.stream.Disposition.default if number else 0
            tracks.append((video, audio))
        for second in range(20):
            for number, (video, audio) in enumerate(tracks):
                frame = av.VideoFrame.from_ndarray(grey(200 if number else 50), "rgb24")
                frame.pts, frame.time_base = second, Fraction(1, 10)
                sound = np.full((1, RATE // 10), 0.8 if number else 0.2)
                packets = video.encode(frame)
                packets += audio.encode(_audio_frame(sound, "s16", "mono", RATE, second * RATE // 10))
                for packet in packets:
                    container.mux(packet)
    clip = ask(path, 2)
    assert near(levels(clip), [200, 200])
    assert clip.waveform == pytest.approx(0.8, abs=0.001)


def test_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = SIZE
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        audio = container.add_stream("aac", rate=RATE)
        audio.layout = "mono"
        packets = cover.encode(av.VideoFrame.from_ndarray(grey(90), "rgb24"))
        packets += audio.encode(_audio_frame(tone(2)[None, :1024], "fltp", "mono", RATE, 0)) + audio.encode(None)
        for packet in packets:
            container.mux(packet)
    assert reason(path) == "no video stream"


def test_encrypted_file_is_rejected_as_such(tmp_path):
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "01" * 16}
    path = write_clip(tmp_path / "a.mp4", [grey(90)] * 10, codec="libx264", acodec="aac", fmt="fltp", options=key)
    assert reason(path) == "encrypted"


# What is no clip


def test_file_that_cannot_be_opened_is_rejected_with_the_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film\n" * 1000)
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "nulls.mp4").write_bytes(bytes(100_000))
    os.mkfifo(tmp_path / "pipe.mp4")
    expected = {"empty.mp4": "empty file", "text.mp4": "not media", "noise.mp4": "not media", "nulls.mp4": "not media",
                "pipe.mp4": "not media", ".": "not media", "none.mp4": "missing file", "text.mp4/below": "missing file"}
    assert {name: reason(tmp_path / name) for name in expected} == expected
    assert reason("null\0byte") == "missing file"


def test_playlist_is_not_media_even_if_what_it_names_is(tmp_path):
    write_clip(tmp_path / "a.ts", [grey(0)] * 40, acodec="mp2")
    lists = {"a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na.ts\n#EXT-X-ENDLIST\n",
             "a.ffconcat": "ffconcat version 1.0\nfile a.ts\n"}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert reason(tmp_path / name) == "not media"


@pytest.mark.parametrize("name", ["http:colon.mkv", "per%20cent%03d.mkv", "sp ace.mkv", "ü\udcff.mkv", "-dash.mkv"])
def test_name_of_a_file_is_never_taken_for_anything_else(tmp_path, monkeypatch, name):
    write_clip(tmp_path / "a.mkv", [grey(100)] * 10).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert near(levels(ask(name, 1)), [100])


def test_failure_of_any_kind_leaves_as_a_rejection(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mkv", [grey(0)] * 10)
    for error, expected in [(MemoryError(), "out of memory"), (ZeroDivisionError(), "decoder crashed"),
                            (UnicodeDecodeError("utf8", b"", 0, 1, ""), "decoder crashed")]:
        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(sound, "_to_mono", fail)
        assert reason(path, 1) == expected


def test_wrong_argument_is_an_error_of_the_caller(tmp_path):
    for wrong in ({"seconds": 0}, {"frame_size": 0}, {"sample_rate": 0}, {"start": -1}, {"start": math.nan},
                  {"pad": "no"}):
        with pytest.raises(ValueError, match="wrong arguments"):
            ask(tmp_path / "a.mkv", **{"seconds": 1} | wrong)


def test_rejection_survives_pickling():
    copy = pickle.loads(pickle.dumps(Rejected("too short", "1 s of 10")))
    assert (copy.reason, copy.detail, str(copy)) == ("too short", "1 s of 10", "too short: 1 s of 10")


def test_file_cut_short_is_used_as_far_as_it_goes(tmp_path):
    path = write_clip(tmp_path / "a.mkv", [grey(5 * i) for i in range(40)])
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) * 3 // 4])
    assert near(levels(ask(path, 4))[:2], [25, 75])
    path.write_bytes(whole[:len(whole) // 4])
    assert reason(path) == "too short"


# Anything at all


def _mutate(data: bytes, rng: random.Random) -> bytes:
    """Some bits flipped, a cut, blocks swapped, or a field of the headers replaced."""
    data = bytearray(data)
    size = len(data)
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.choice((1, 10, 100, 1000))):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        begin = rng.randrange(size)
        del data[begin:begin + rng.choice((1, 100, 10_000, size))]
    elif kind == 2:
        length = rng.randrange(1, max(size // 4, 2))
        a, b = rng.randrange(size - length), rng.randrange(size - length)
        data[a:a + length], data[b:b + length] = data[b:b + length], data[a:a + length]
    else:
        ends = rng.choice((0, max(size - 4000, 0)))  # headers are at either end
        for _ in range(rng.choice((1, 4, 16))):
            at = min(ends + rng.randrange(4000), size - 4)
            data[at:at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", rng.randbytes(4)))
    return bytes(data)


def _judge(path: Path) -> str:
    clip = ask(path, 4, pad="tile")
    assert clip.frames.shape == (4, SIZE, SIZE, 3) and clip.waveform.shape == (4 * RATE,)
    assert np.isfinite(clip.waveform).all()
    return "ok"


def test_every_mutated_file_gets_a_verdict(tmp_path, capfd):
    sources = [path for path in sorted([*CLIPS.glob("*"), *FAULTS.glob("*.*")]) if path.suffix not in (".md", ".sh")]
    for suffix, codec, acodec, fmt in (("mp4", "libx264", "aac", "fltp"), ("avi", "mpeg4", "pcm_s16le", "s16"),
                                       ("mkv", "mjpeg", "flac", "s16"), ("nut", "mpeg4", "pcm_f32le", "flt"),
                                       ("mov", "libx264", "aac", "fltp")):
        sources.append(write_clip(tmp_path / f"a.{suffix}", [grey(i) for i in range(40)], codec=codec, acodec=acodec,
                                  fmt=fmt))
    rng = random.Random(6)
    count = int(os.environ.get("MAAVT_FUZZ", 150))  # make fuzz

    def mutated():  # few are in flight, and on the disk
        for number in range(count):
            source = sources[number % len(sources)]
            path = tmp_path / f"mutated-{number:05d}{source.suffix}"
            path.write_bytes(_mutate(source.read_bytes(), rng))
            yield path

    verdicts = Counter()
    for path, result in fan_out(_judge, mutated(), workers=2, time_limit=30, memory_limit=600 * 2**20):
        verdicts[result.reason if isinstance(result, Rejected) else result] += 1
        path.unlink()
    assert verdicts.total() == count
    assert set(verdicts) <= {"ok", *REASONS}
    assert 0.2 < verdicts["ok"] / count < 0.8 and verdicts["decoder crashed"] < 0.01 * count + 1, verdicts
    assert capfd.readouterr() == ("", "")
