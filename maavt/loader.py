"""Shards -> batches of pairs, in an order fixed by the seed and the epoch alone, whatever the number of threads.

B pairs, S image size, T frames and F bins of a spectrogram.
"""

import io
import json
import random
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from maavt.clips import BACKGROUND
from maavt.errors import UserError
from maavt.work import default_workers, sha256

BACKGROUND_LABEL = -1


@dataclass(frozen=True)
class Batch:
    """Pairs on the CPU, pinned where a GPU is near."""

    frames: torch.Tensor  # (B, 3, S, S) uint8
    spectrograms: torch.Tensor  # (B, T, F) float16, not normalised
    labels: torch.Tensor  # (B,) int64, -1 is background
    keys: list[str]
    seconds: list[int]


@dataclass(frozen=True)
class _Pair:
    key: str
    second: int
    label: int
    jpeg: bytes
    spectrogram: np.ndarray


class Loader:
    """The batches of one split, from the index of the shards in `folder`.

    Raises UserError when a shard is missing, or differs from what the index says.
    """

    def __init__(self, folder: Path, split: str, *, batch: int, image_size: int):
        self.folder, self.split, self.batch, self.image_size = folder, split, batch, image_size
        self.index = read_index(folder)
        self.shards = [name for name in self.index["shards"] if name.startswith(f"{split}/")]
        self.classes = {label: number for number, label in enumerate(self.index["classes"])}
        self.classes[BACKGROUND] = BACKGROUND_LABEL
        self.verified: set[str] = set()
        recipe = self.index["spectrogram"]
        self.pairs = self.index["splits"][split]["samples"] * (recipe["clip_seconds"] // recipe["seconds"])

    def __len__(self) -> int:
        """Batches of one pass in order."""
        return -(-self.pairs // self.batch)

    def in_order(self) -> Iterator[Batch]:
        """Every pair once, in the order of the shards, centre cropped."""
        yield from self._batches(self._read(self.shards), rng=None)

    def shuffled(self, *, seed: int, epoch: int, held: int) -> Iterator[Batch]:
        """Every pair once but for a last short batch, shuffled anew for each epoch, randomly cropped.

        `held` pairs are kept in memory to draw the next one from.
        """
        rng = random.Random(f"{seed} {epoch}")
        names = rng.sample(self.shards, len(self.shards))
        for batch in self._batches(_shuffle(self._read(names), held, rng), rng):
            if len(batch.labels) == self.batch or self.pairs < self.batch:
                yield batch

    def _read(self, names: list[str]) -> Iterator[_Pair]:
        for name in names:
            self._verify(name)
            for sample in read_shard(self.folder / name):
                yield from self._pairs(sample)

    def _verify(self, name: str) -> None:
        """Hash a shard before it is read for the first time: a damaged one is never half used."""
        if name in self.verified:
            return
        path, advice = self.folder / name, "run the shard stage again (dvc repro -f shard)"
        if not path.exists():
            raise UserError(f"no shard {path}, which index.json names; {advice}")
        if sha256(path) != self.index["shards"][name]["sha256"]:
            raise UserError(f"the shard {path} is not the one that index.json describes (damaged or cut); {advice}")
        self.verified.add(name)

    def _pairs(self, sample: dict) -> Iterator[_Pair]:
        spectrograms = np.load(io.BytesIO(sample["spectrogram.npy"]), allow_pickle=False)
        recipe = self.index["spectrogram"]
        seconds = range(0, recipe["clip_seconds"], recipe["seconds"])
        labels = json.loads(sample["json"])["labels"]
        for second, spectrogram in zip(seconds, spectrograms, strict=True):
            middle = second + recipe["seconds"] // 2
            yield _Pair(sample["__key__"], second, self.classes[labels[middle]],
                        sample[f"frame-{middle:02d}.jpg"], spectrogram)

    def _batches(self, pairs: Iterator[_Pair], rng: random.Random | None) -> Iterator[Batch]:
        """Decode in threads, a few batches ahead; the order stays."""
        threads = default_workers()
        spare = self.index["frame_size"] - self.image_size
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            ahead = deque()
            for chunk in _chunks(pairs, self.batch):
                corners = [(rng.randint(0, spare), rng.randint(0, spare)) if rng else (spare // 2, spare // 2)
                           for _ in chunk]
                ahead.append(pool.submit(self._decode, chunk, corners))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _decode(self, pairs: list[_Pair], corners: list[tuple[int, int]]) -> Batch:
        size = self.image_size
        pixels = np.stack([
            np.asarray(Image.open(io.BytesIO(pair.jpeg)).convert("RGB"))[y : y + size, x : x + size]
            for pair, (y, x) in zip(pairs, corners, strict=True)
        ])
        tensors = (
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(np.stack([pair.spectrogram for pair in pairs])),
            torch.tensor([pair.label for pair in pairs]),
        )
        if torch.cuda.is_available():
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        return Batch(*tensors, [pair.key for pair in pairs], [pair.second for pair in pairs])


def read_index(folder: Path) -> dict:
    """index.json of a folder of shards; raises UserError when there is none."""
    try:
        return json.loads((folder / "index.json").read_text())
    except FileNotFoundError:
        raise UserError(f"no {folder / 'index.json'}; run the shard stage first (dvc repro shard)") from None


def read_shard(path: Path) -> Iterator[dict]:
    """The samples of one shard as raw bytes, {'__key__': ..., 'json': ..., ...}."""
    with open(path, "rb") as file:
        yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": file}], eof_value=None))


def _shuffle(pairs: Iterable[_Pair], held: int, rng: random.Random) -> Iterator[_Pair]:
    pool: list[_Pair] = []
    for pair in pairs:
        pool.append(pair)
        if len(pool) >= held:
            yield _draw(pool, rng)
    while pool:
        yield _draw(pool, rng)


def _draw(pool: list[_Pair], rng: random.Random) -> _Pair:
    place = rng.randrange(len(pool))
    pool[place], pool[-1] = pool[-1], pool[place]
    return pool.pop()


def _chunks(pairs: Iterable[_Pair], size: int) -> Iterator[list[_Pair]]:
    chunk: list[_Pair] = []
    for pair in pairs:
        chunk.append(pair)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
