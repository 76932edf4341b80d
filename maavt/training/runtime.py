"""Where a model runs, in which number type, and how batches reach it.

B pairs, S image size, T frames and F bins of a spectrogram.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maavt.clips import ABSENT
from maavt.errors import UserError
from maavt.models.choice import choice, multiplies_int8, use_int8
from maavt.models.output import Output
from maavt.models.vit import streams
from maavt.shards.loader import Batch
from maavt.training import machine
from maavt.training.losses import foreground_of
from maavt.work import keep_freed

MOST = 1000  # pairs of a split that are looked at where some are enough
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.float32}


def device_name() -> str:
    """MAAVT_DEVICE (cpu, cuda, cuda:1 ...), else cuda where there is a GPU, else cpu."""
    return os.environ.get("MAAVT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def pick_device(asked: str | None = None) -> torch.device:
    """The device of that name, by default device_name(), made ready for use. Raises UserError for what is not there."""
    name = asked or device_name()
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        what = "device " if asked else "MAAVT_DEVICE="
        raise UserError(f"{what}{name}: {str(error).splitlines()[0]}; expected cpu, cuda or such as cuda:1"
                        ) from None
    device = torch.device(name)
    if device.type == "cpu":
        keep_freed(spare=2**31 - 1, largest=2**30)
        machine.calibrated()
    return device


def compute_type(device: torch.device, *, training: bool = False) -> torch.dtype:
    """MAAVT_DTYPE (bfloat16 or float32; int8: float32, and int8 in the products of inference), else what was measured
    to be faster on this CPU, and on a GPU bf16 where its hardware multiplies it. In training nothing
    runs in int8. Raises UserError for another name."""
    named = os.environ.get("MAAVT_DTYPE", "").strip()
    if named == "int8" and not (device.type == "cpu" and multiplies_int8()):
        here = machine.cpu() if device.type == "cpu" else device
        raise UserError(f"MAAVT_DTYPE=int8 is for a CPU with VNNI, not for {here}; set it to bfloat16 or float32, or "
                        "unset it")
    if device.type == "cpu":
        machine.calibrated()  # which chooses among the ways that are the same
        use_int8(named == "int8" and not training)
    if named:
        if named not in TYPES:
            raise UserError(f"MAAVT_DTYPE={named!r}: expected {', '.join(TYPES)}; set it to one, or unset it")
        return TYPES[named]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return machine.calibrated()[0]


def in_int8() -> bool:
    """Whether forms for inference multiply in int8: MAAVT_DTYPE=int8, on a CPU."""
    return choice(torch.float32, torch.device("cpu")).int8


def place(model: nn.Module, device: torch.device, *, training: bool = False) -> nn.Module:
    """Put a model on the device and have it multiply in the compute type; frozen weights are kept in it."""
    model.to(device).set_compute_type(compute_type(device, training=training))
    return model


@dataclass(frozen=True)
class Normaliser:
    """Batches -> what a model reads. `image_mean` and `image_std` are the backbone's own, for pixels of 0 to 1;
    spectrograms are standardised by the training set's mean and twice its standard deviation (NOTES, AVE), or with
    the scaling `sample` each by its own mean and deviation (VGGSound, CREMA-D). Where sound or picture is absent, the
    mean stands in: of a picture `frame_mean`, the training set's mean colour of 0 to 255."""

    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    spectrogram_mean: float
    spectrogram_std: float
    scaling: str = "dataset"
    frame_mean: tuple[float, ...] = (127.5, 127.5, 127.5)

    def __call__(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B, 3, S, S), spectrograms (B, S, S) and labels (B,) on the device; copies do not block."""
        frames, spectrograms, labels = (
            tensor.to(device, non_blocking=True) for tensor in (batch.frames, batch.spectrograms, batch.labels)
        )
        mean, std = (_pixel(tuple(values), device) for values in (self.image_mean, self.image_std))
        sound = spectrograms.float()
        if self.scaling == "sample":
            deviation, middle = torch.std_mean(sound, (1, 2), correction=0, keepdim=True)
            sound = (sound - middle) / (deviation + 1e-9)
        else:
            sound = (sound - self.spectrogram_mean) / (2 * self.spectrogram_std)
        if sound.shape[1:] != (self.image_size, self.image_size):
            sound = F.interpolate(sound[:, None], (self.image_size, self.image_size), mode="bilinear",
                                  antialias=True, align_corners=False)[:, 0]
        if batch.boxes is not None:
            frames = cut(frames.float(), batch.boxes.to(device, non_blocking=True), self.image_size)
        elif frames.shape[-1] != self.image_size:
            frames = F.interpolate(frames.float(), (self.image_size, self.image_size), mode="bilinear", antialias=True,
                                   align_corners=False)
        frames = (frames - mean) / std
        if batch.absent is not None:
            frames, sound = self.fill(frames, sound, batch.absent.to(device, non_blocking=True))
        return frames, sound, labels

    def fill(self, frames: Tensor, sound: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised frames (B, 3, S, S) and sound (B, S, S) with the mean where `absent` (B,) says so."""
        mean, std, colour = (_pixel(tuple(values), frames.device) for values in (
            self.image_mean, self.image_std, [value / 255 for value in self.frame_mean]))
        unseen, unheard = ((absent == ABSENT.index(kind))[:, None, None] for kind in ("picture", "sound"))
        return torch.where(unseen[:, None], (colour - mean) / std, frames), sound.masked_fill(unheard, 0)

    def nothing(self, frames: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        """What stands in for absent ones of as many frames and as much sound."""
        gone = {kind: torch.full((len(frames),), number, device=frames.device) for number, kind in enumerate(ABSENT)}
        return self.fill(frames, sound, gone["picture"])[0], self.fill(frames, sound, gone["sound"])[1]


@lru_cache
def _pixel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(3, 1, 1): a colour of 0 to 1 as one of 0 to 255, brought to the device once and not for every batch."""
    return torch.tensor(values).mul_(255).to(device)[:, None, None]


def cut(frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Parts of frames (B, C, F, F), each scaled to (B, C, size, size); boxes as in Batch, and where they reach beyond a
    frame, its edge goes on."""
    left, top, width, height = (boxes / frames.shape[-1]).unbind(1)
    zero = torch.zeros_like(left)
    rows = [torch.stack([width, zero, 2 * left + width - 1], 1), torch.stack([zero, height, 2 * top + height - 1], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [*frames.shape[:2], size, size], align_corners=False)
    return F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)


def whole_pairs(batches: Iterable[Batch], normalise: Normaliser, device: torch.device
                ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Frames, spectrograms and labels of the first MOST pairs, up to the end of a batch, and (B,) which of them have
    both modalities and are no background."""
    pairs = 0
    for batch in batches:
        frames, sound, labels = normalise(batch, device)
        kept = foreground_of(labels)
        if batch.absent is not None:
            kept &= (batch.absent == 0).to(device)
        yield frames, sound, labels, kept
        pairs += len(batch.keys)
        if pairs >= MOST:
            return


@dataclass(frozen=True)
class Prediction:
    """Of one pair: classes are numbers, -1 is background; probabilities are of the class head and of background,
    `classes` (C,) those of the class head alone. Where clips have several labels, `label` holds all of them, and the
    strongest class is predicted. Pairs of one `group` (a recording, a speaker) are alike."""

    key: str
    second: float
    label: int | tuple[int, ...]
    predicted: int
    best_class: int
    probability: float
    classes: np.ndarray | None = field(default=None, repr=False, compare=False)
    absent: str = ""
    group: str = ""

    @property
    def empty(self) -> float:
        """The probability that the pair is background, by a model that says so; `classes` are given that it is not."""
        strongest = max(self.classes.max().item(), 1e-9)
        return self.probability if self.predicted < 0 else max(1 - self.probability / strongest, 0.0)

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels, be it one."""
        return self.label if isinstance(self.label, tuple) else (self.label,)

    @property
    def right(self) -> bool:
        """Whether what is predicted, background included, is the label, or one of several."""
        return self.predicted in self.labels


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable[Batch], normalise: Normaliser, *, background: bool
            ) -> Iterator[Prediction]:
    """What the model says of every pair, in order. With `background`, a pair is background where the model says so,
    else it is the best class."""
    device = next(model.parameters()).device
    model.eval()
    for batch in batches:
        yield from _said(batch, model(*normalise(batch, device)[:2]), background)


@torch.inference_mode()
def predict_alone(model: nn.Module, batches: Iterable[Batch], normalise: Normaliser, *, background: bool
                  ) -> Iterator[tuple[Prediction, Prediction, Prediction]]:
    """The same, with what it says of the sound alone and of the picture alone, where the mean stands in for the other.

    A model whose streams meet in its head alone (it has `encode` and `decide`) runs once for all three.
    """
    device = next(model.parameters()).device
    model.eval()
    constant = None
    for batch in batches:
        frames, sound, _ = normalise(batch, device)
        unseen, unheard = normalise.nothing(frames, sound)
        if hasattr(model, "encode"):
            if constant is None:
                constant = streams(model.encode(unseen[:1], unheard[:1]))
            visual, audio = streams(model.encode(frames, sound))
            nothing, silence = (stream.expand_as(visual) for stream in constant)
            outputs = [model.decide(torch.cat(pair)) for pair in ((visual, audio), (nothing, audio), (visual, silence))]
        else:
            outputs = [model(*pair) for pair in ((frames, sound), (unseen, sound), (frames, unheard))]
        yield from zip(*(_said(batch, output, background) for output in outputs), strict=True)


def _said(batch: Batch, output: Output, background: bool) -> Iterator[Prediction]:
    """The predictions of a batch."""
    classes, empty = output.probabilities()
    chance, best = classes.max(-1)
    predicted = best
    if background:
        predicted = output.predicted()
        chance = torch.where(predicted < 0, empty, chance * (1 - empty))
    absent = [0] * len(batch.keys) if batch.absent is None else batch.absent.tolist()
    labels = batch.labels.tolist() if batch.labels.dim() == 1 else [
        tuple(row.nonzero()[:, 0].tolist()) for row in batch.labels]
    rows = zip(batch.keys, batch.seconds, labels, predicted.tolist(), best.tolist(),
               chance.tolist(), classes.float().cpu().numpy(), map(ABSENT.__getitem__, absent),
               batch.groups or batch.keys, strict=True)
    yield from (Prediction(*row) for row in rows)


def accuracy(predictions: Iterable[Prediction]) -> float:
    """The strict accuracy: the share of pairs whose final prediction, background included, is right."""
    right = [prediction.right for prediction in predictions]
    return sum(right) / max(len(right), 1)
