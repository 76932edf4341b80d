"""Tiny shards made by hand, of which every value is known."""

import io
import json
from pathlib import Path

import numpy as np
import webdataset as wds
from simplejpeg import encode_jpeg

from maavt.clips import ABSENT
from maavt.work import sha256

CLASSES, SIZE, LENGTH, BINS = ["a", "b", "c"], 20, 4, 3


def picture(clip: int, second: int) -> bytes:
    drawn = np.random.default_rng(100 * clip + second).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return encode_jpeg(drawn, quality=95)


def heard(clip: int, pairs: int, length: int = LENGTH) -> np.ndarray:
    return np.arange(pairs * length * BINS, dtype=np.float16).reshape(pairs, length, BINS) + 200 * clip


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def sample(clip: int, labels: list, absent: str = "", begins: list | None = None, length: int = LENGTH) -> dict:
    """A clip of a second for each label."""
    begins = list(range(len(labels))) if begins is None else begins
    facts = {"labels": labels, "begins": begins} | ({"absent": absent} if absent else {})
    members = {"__key__": f"clip-{clip}", "json": json.dumps(facts).encode()}
    if absent != "sound":
        members["spectrogram.npy"] = npy(heard(clip, len(begins), length))
    if absent != "picture":
        members |= {f"frame-{second:02d}.jpg": picture(clip, second) for second in range(len(labels))}
    return members


def write(folder: Path, samples: list[dict], *, per_shard: int = 2, spectrogram: dict | None = None, **facts
          ) -> Path:
    """Shards of one split, `test`, and their index."""
    (folder / "test").mkdir(parents=True)
    index = {"classes": CLASSES, "background": True, "frame_size": SIZE, "spectrogram_frames": LENGTH, "shards": {},
             "spectrogram": {"seconds": 1, "clip_seconds": 10, "bins": BINS, "n_fft": 6} | (spectrogram or {})}
    for begin in range(0, len(samples), per_shard):
        held, name = samples[begin : begin + per_shard], f"test/{begin // per_shard}.tar"
        with wds.TarWriter(str(folder / name), encoder=False) as tar:
            for one in held:
                tar.write(one)
        index["shards"][name] = {"sha256": sha256(folder / name),
                                 "pairs": sum(len(json.loads(one["json"])["begins"]) for one in held)}
    counts = {f"without_{kind}": sum(json.loads(one["json"]).get("absent") == kind for one in samples)
              for kind in ABSENT[1:]}
    index["splits"] = {"test": counts | {"pairs": sum(shard["pairs"] for shard in index["shards"].values())}}
    (folder / "index.json").write_text(json.dumps(index | facts))
    return folder
