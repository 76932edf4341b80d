"""Settings and folders that the tests of the sources share."""

import functools
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from maavt.params import Params, parse_params

ROOT = Path(__file__).parents[2]
ANNOTATIONS = ROOT.parent / "shared" / "annotations"
published = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="needs the published lists")


def settings(**changes) -> dict:
    """The committed settings; `changes` are merged over them."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dataset in ("vggsound", "cremad"):
        values["shard"]["spectrogram"].setdefault(dataset, values["shard"]["spectrogram"]["ave"])
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return values


def params(**changes) -> Params:
    return parse_params(settings(**changes))


def write_media(path: Path, *, seconds: float = 6, picture: str | None = "libx264", sound: str | None = "aac",
                mark: int = 0, shade=None) -> Path:
    """A small file with picture and sound, or with either alone; `mark` makes it differ from others, `shade` gives
    the grey level of each of its five frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 16000
    with av.open(str(path), "w") as container:
        streams = []
        if picture:
            video = container.add_stream(picture, rate=5)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            streams.append(video)
        if sound:
            audio = container.add_stream(sound, rate=rate, layout="mono")
            streams.append(audio)
        for number in range(int(seconds * 5) if picture else 0):
            pixels = np.full((32, 32, 3), shade(number) if shade else (number * 3 + mark * 7) % 256, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for begin in range(0, int(seconds * rate) if sound else 0, 1024):
            wave = np.sin(np.arange(begin, begin + 1024) * (0.05 + mark / 100))[None] * 20000
            packed = av.AudioFrame.from_ndarray(wave.astype(np.int16), format="s16p", layout="mono")
            packed.sample_rate, packed.pts = rate, begin
            container.mux(audio.encode(packed))
        for stream in streams:
            container.mux(stream.encode())
    return path


@functools.cache
def media(suffix: str = ".mp4", **options) -> bytes:
    """The bytes of such a file."""
    with tempfile.TemporaryDirectory() as folder:
        return write_media(Path(folder) / f"media{suffix}", **options).read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_project(place: Path, **changes) -> Path:
    """A folder with settings, enough for the download stage."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "dvc.yaml").write_text("stages: {}\n")
    (place / "params.yaml").write_text(yaml.safe_dump(settings(**changes)))
    return place
