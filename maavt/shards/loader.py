"""Shards -> batches of pairs, in an order fixed by the seed and the epoch alone, whatever the number of threads.

webdataset reads the tars (reader.py); its own shuffling and splitting depend on the number of workers, and give the
processes that train together different numbers of steps.

B pairs, C classes, S image size, T frames and F bins of a spectrogram.
"""

import io
import json
import math
import os
import random
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, repeat

import numpy as np
import torch
from simplejpeg import decode_jpeg

from maavt.clips import ABSENT, Labels, pair_label
from maavt.errors import UserError
from maavt.shards.reader import Reader
from maavt.work import default_workers

BACKGROUND_LABEL = -1
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random part of a frame: share, and width over height


@dataclass(frozen=True)
class Batch:
    """Pairs on the CPU, pinned where a GPU is near.

    Frames are S x S, or as stored where the whole frame or a part of it is to be scaled on the device: `boxes` are
    these parts as left, top, width and height in pixels. A negative width leads from the right edge to the left: that
    part is to be mirrored. Where sound or picture is `absent`, it is zeros here.
    """

    frames: torch.Tensor  # (B, 3, S, S) uint8, in memory (B, S, S, 3)
    spectrograms: torch.Tensor  # (B, T, F) float16, not normalised
    labels: torch.Tensor  # (B,) int64, -1 is background; of clips with several labels (B, C) float32, 0 or 1
    keys: list[str]
    seconds: list[float]  # where each pair begins in its clip
    boxes: torch.Tensor | None = None  # (B, 4) float32
    absent: torch.Tensor | None = None  # (B,) uint8, places in ABSENT; None where no clip of the data set lacks any
    groups: list[str] | None = None  # what the clip of each pair comes from: a recording, a speaker (Clip.source)


@dataclass(frozen=True)
class _Pair:
    key: str
    second: float
    labels: list[int]
    jpeg: bytes
    spectrogram: np.ndarray  # (T, F)
    absent: str
    group: str = ""


class Loader:
    """The batches of one split of `shards`: a Reader, or the path or URL of a folder of them.

    `augment` is what training does to the frames: `crop` (S x S anywhere in the frame) or `resized_crop`. Raises
    UserError when a shard is missing, or differs from what the index says.
    """

    def __init__(self, shards: Reader | str | os.PathLike, split: str, *, batch: int, image_size: int,
                 augment: str = "crop"):
        self.reader = shards if isinstance(shards, Reader) else Reader(shards)
        self.split, self.batch, self.image_size, self.augment = split, batch, image_size, augment
        self.index = self.reader.index
        self.recipe = self.index["spectrogram"]
        self.shards = [name for name in self.index["shards"] if name.startswith(f"{split}/")]
        self.classes = {label: number for number, label in enumerate(self.index["classes"])}
        self.multilabel = self.index.get("multilabel", False)
        self.labels = Labels(classes=tuple(self.classes), background=self.index["background"],
                             multilabel=self.multilabel)
        self.pairs = self.index["splits"][split]["pairs"]
        self.lacking = any(counts.get(f"without_{kind}") for counts in self.index["splits"].values()
                           for kind in ABSENT[1:])

    def __len__(self) -> int:
        """Batches of one pass in order."""
        return -(-self.pairs // self.batch)

    def in_order(self, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Every pair once, in the order of the shards, without augmentation; of several processes each gets its
        share, which may be none."""
        first, end = (self.pairs * number // ranks for number in (rank, rank + 1))
        yield from self._batches(self._read(self.shards, rng=None, first=first, count=end - first), rng=None)

    def stretch(self, first: int, count: int) -> Iterator[Batch]:
        """Pairs number `first` to `first + count` in the order of in_order(); shards of others are not opened."""
        yield from self._batches(self._read(self.shards, rng=None, first=first, count=count), rng=None)

    def share(self, ranks: int = 1) -> int:
        """Pairs that each of `ranks` processes gets of one shuffled pass."""
        return -(-self.pairs // ranks)

    def steps(self, ranks: int = 1) -> int:
        """Batches that each of `ranks` processes gets of one shuffled pass."""
        return -(-self.share(ranks) // self.batch)

    def shuffled(self, *, seed: int, epoch: int, held: int, rank: int = 0, ranks: int = 1, skip: int = 0
                 ) -> Iterator[Batch]:
        """Every pair once, shuffled anew for each epoch, and augmented.

        `held` pairs are kept in memory to draw the next one from. The pairs are spread evenly over as few batches as
        hold them. Of several processes that train together each gets steps(ranks) batches of pairs of its own, as
        large as those of the others: where the pairs do not divide, one process and the one before it share a few.
        The first `skip` batches are left out, and nothing of them is decoded.
        """
        share, steps = self.share(ranks), self.steps(ranks)
        if self.pairs < ranks:
            raise UserError(f"{self.split}: {self.pairs} pairs for {ranks} processes; expected one for each at least")
        names = random.Random(f"{seed} {epoch}").sample(self.shards, len(self.shards))
        rng = random.Random(f"{seed} {epoch} {rank}")
        pairs = self._read(names, rng, first=min(rank * share, self.pairs - share), count=share)
        sizes = [share * (step + 1) // steps - share * step // steps for step in range(steps)]
        yield from self._batches(_shuffle(pairs, held, rng), rng, sizes, skip)

    def _read(self, names: list[str], rng: random.Random | None, first: int = 0, count: int | None = None
              ) -> Iterator[_Pair]:
        """Pairs number `first` to `first + count` of these shards; others are not even opened."""
        names = list(names)
        while names and first >= (skipped := self.index["shards"][names[0]]["pairs"]):
            first -= skipped
            del names[0]
        reach, needed = 0, []
        for name in names:
            if count is None or reach < first + count:
                needed.append(name)
                reach += self.index["shards"][name]["pairs"]
        pairs = (pair for sample in self.reader.samples(needed) for pair in self._pairs(sample, rng))
        return islice(pairs, first, None if count is None else first + count)

    def _pairs(self, sample: dict, rng: random.Random | None) -> Iterator[_Pair]:
        facts = json.loads(sample["json"])
        length, absent = self.index["spectrogram_frames"], facts.get("absent", "")
        if absent == "sound":
            bins = self.recipe["bins"] or self.recipe["n_fft"] // 2 + 1
            spectrograms = np.zeros((len(facts["begins"]), length, bins), np.float16)
        else:
            spectrograms = _read_array(sample["spectrogram.npy"])  # (pairs, frames, bins)
        for begin, spectrogram in zip(facts["begins"], spectrograms, strict=True):
            spare = len(spectrogram) - length
            if spare > 0:  # of all the clip's sound: the window is drawn here
                seconds = self.recipe["clip_seconds"] - self.recipe["seconds"]
                place = rng.randint(0, spare) if rng else round(begin / seconds * spare)
                spectrogram = spectrogram[place : place + length]
                begin = int(exact := place / spare * seconds)
            else:
                exact = begin
            middle = int(exact + self.recipe["seconds"] / 2)
            label = pair_label(facts["labels"], exact, self.recipe["seconds"], facts.get("events", ()))
            labels = [BACKGROUND_LABEL] if label is None else [self.classes[name] for name in self.labels.of(label)]
            yield _Pair(sample["__key__"], begin, labels,
                        b"" if absent == "picture" else sample[f"frame-{middle:02d}.jpg"], spectrogram, absent,
                        facts.get("source") or sample["__key__"])

    def _batches(self, pairs: Iterator[_Pair], rng: random.Random | None, sizes: Iterable[int] = (),
                 skip: int = 0) -> Iterator[Batch]:
        """Decode in threads, a few batches ahead; the order stays. The batches are whole ones behind `sizes`."""
        sizes = chain(sizes, repeat(self.batch))
        threads = default_workers()
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            ahead = deque()
            try:
                while chunk := list(islice(pairs, next(sizes))):
                    places = [self._place(rng) for _ in chunk]  # drawn for those that are left out, too
                    if (skip := skip - 1) < 0:
                        ahead.append(pool.submit(self._decode, chunk, places))
                    if len(ahead) > 2 * threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _place(self, rng: random.Random | None) -> tuple[int, ...] | None:
        """Where to cut a frame: left and top of a crop, or a box to be scaled; None is the whole frame."""
        size = self.index["frame_size"]
        spare = size - self.image_size
        if self.augment == "resized_crop":
            return _box(size, rng) if rng else None
        return (rng.randint(0, spare), rng.randint(0, spare)) if rng else (spare // 2, spare // 2)

    def _decode(self, pairs: list[_Pair], places: list[tuple[int, ...] | None]) -> Batch:
        size = self.image_size if self.augment == "crop" else self.index["frame_size"]
        frames = np.empty((len(pairs), size, size, 3), np.uint8)
        for target, pair, place in zip(frames, pairs, places, strict=True):
            left, top = place if self.augment == "crop" else (0, 0)
            target[:] = decode_jpeg(pair.jpeg)[top : top + size, left : left + size] if pair.jpeg else 0
        tensors = [torch.from_numpy(frames).permute(0, 3, 1, 2),
                   torch.from_numpy(np.stack([pair.spectrogram for pair in pairs])),
                   torch.tensor([pair.labels[0] for pair in pairs])]
        if self.multilabel:
            tensors[2] = torch.stack([torch.zeros(len(self.classes)).index_fill_(0, torch.tensor(pair.labels), 1)
                                      for pair in pairs])
        tensors.append(torch.tensor(places, dtype=torch.float32) if self.augment == "resized_crop" and places[0]
                       else None)
        tensors.append(torch.tensor([ABSENT.index(pair.absent) for pair in pairs], dtype=torch.uint8) if self.lacking
                       else None)
        if torch.cuda.is_available():
            tensors = [tensor if tensor is None else tensor.pin_memory() for tensor in tensors]
        return Batch(*tensors[:3], [pair.key for pair in pairs], [pair.second for pair in pairs], *tensors[3:],
                     groups=[pair.group for pair in pairs])


def _box(size: int, rng: random.Random) -> tuple[int, int, int, int]:
    """A random part of a frame, mirrored or not, as torchvision's RandomResizedCrop draws it."""
    left, top, width, height = 0, 0, size, size
    for _ in range(10):
        area, ratio = size**2 * rng.uniform(*AREA), math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= size and 0 < h <= size:
            left, top, width, height = rng.randint(0, size - w), rng.randint(0, size - h), w, h
            break
    return (left + width, top, -width, height) if rng.random() < 0.5 else (left, top, width, height)


def _read_array(data: bytes) -> np.ndarray:
    """A .npy file of numbers, never a pickle."""
    end = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _read_header(data[:end])
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


@lru_cache
def _read_header(data: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """Parsing it takes longer than reading the array, and all are alike."""
    with io.BytesIO(data) as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise ValueError("a spectrogram of Python objects; expected numbers")
    return dtype, shape


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
