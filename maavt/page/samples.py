"""Test samples to look at and listen to, with the model's attention and the whole clip, and a map of them."""

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maavt.clips import Clip, read_manifest
from maavt.errors import UserError
from maavt.media.decode import Rejected, decode
from maavt.page.draw import SAMPLE_RATE, jpeg, mp3, png
from maavt.page.results import Result
from maavt.page.scored import most_confused
from maavt.params import Params, Spectrogram
from maavt.shards.loader import Batch, Loader
from maavt.shards.reader import Reader
from maavt.training.adapter import load_adapter
from maavt.training.runtime import Normaliser, pick_device, place

EACH = 9  # samples by each rule
LARGEST, SMALL = 224, 56  # pixels of an image, and of one in the row of a clip's seconds
ATTENTION = (255, 176, 0)  # its colour; the stronger, the more opaque
OPAQUE = 0.85
MEL_FLOOR = 20.0  # hertz: where the filter banks begin
POINTS, AUDIO_SECONDS = 200, 600  # of the map at most, so that the page stays small
FLOOR = 1e-3  # probability of a class that is not among the most probable three
NAMED = 16  # classes whose names the map shows


@dataclass(frozen=True)
class Rule:
    """A rule for choosing samples, in words, and the numbers of its samples in the order of the predictions."""

    title: str
    why: str
    chosen: list[int]


def choose(result: Result, seed: int) -> list[Rule]:
    """Samples by four rules: none twice, and by each of the first three one of a clip at most."""
    rows, taken = result.predictions, set()

    def take(numbers: Iterable[int], *columns: str) -> list[int]:
        """The first of these with values of their own in the columns."""
        chosen, seen = [], {column: set() for column in ("key", *columns)}
        for number in numbers:
            if len(chosen) < EACH and number not in taken and not any(
                    rows[number][column] in values for column, values in seen.items()):
                chosen.append(number)
                taken.add(number)
                for column, values in seen.items():
                    values.add(rows[number][column])
        return chosen

    by_probability = sorted(range(len(rows)), key=lambda number: (-float(rows[number]["probability"]), number))
    right = [number for number in by_probability if result.is_right(rows[number])]
    wrong = [number for number in by_probability if not result.is_right(rows[number])]
    confused = {(one["label"], one["predicted"]): [] for one in most_confused(result, EACH)}
    for number in wrong:
        for label in result.labels(rows[number]):
            confused.get((label, rows[number]["predicted"]), []).append(number)
    drawn = random.Random(f"{seed} pairs").sample(range(len(rows)), len(rows))
    return [
        Rule("At random", f"Drawn by seed {seed}: only these are a fair selection", take(drawn)),
        Rule("Best", "Correct with the greatest probability, one of each class at most", take(right, "label")),
        Rule("Worst", "Wrong with the greatest probability, one of each class at most", take(wrong, "label")),
        Rule("Most confused", "Of each of the most frequent confusions the one with the greatest probability",
             [number for numbers in confused.values() for number in take(numbers, "label", "predicted")]),
    ]


def positions(result: Result) -> np.ndarray:
    """Places (N, 2) of the test samples on the map, as shares of its width and height: the first two principal
    components of the logarithms of the class probabilities."""
    number = {row["class"]: place for place, row in enumerate(result.classes)}
    values = np.full((len(result.predictions), len(number)), math.log(FLOOR))
    for row, prediction in zip(values, result.predictions, strict=True):
        for label, probability in json.loads(prediction["likeliest"]):
            row[number[label]] = math.log(max(probability, FLOOR))
    values -= values.mean(0)
    _, _, axes = np.linalg.svd(values, full_matrices=False)
    axes = np.resize(axes[:2], (2, len(number)))
    axes *= np.sign(axes[range(2), np.abs(axes).argmax(1)])[:, None]  # else the sign is the machine's choice
    found = values @ axes.T
    return 0.04 + 0.92 * (found - found.min(0)) / np.maximum(np.ptp(found, 0), 1e-9)


class Gallery:
    """Makes what is shown of a sample. Frames come from the shards, audio from the clips, where they exist."""

    def __init__(self, params: Params, results: list[Result], data: Path):
        self.result, self.others = results[0], results[1:]
        self.params, self.data = params, data
        self.model, self.normalise, self.device = self._load()
        self.loader = Loader(Reader.of(params.dataset), "test", batch=64, image_size=params.image_size,
                             augment=self.result.config["augment"])
        self.recipe = Spectrogram(**self.loader.index["spectrogram"])
        try:
            self.clips = {clip.key: clip for clip in read_manifest(data / "raw" / params.dataset)[0]}
        except UserError:
            self.clips = {}
        self._waveform = lru_cache(1)(self._waveform)

    def _load(self) -> tuple[nn.Module | None, Normaliser | None, torch.device]:
        """The model, where it has an attention map."""
        device = pick_device()
        model, normalise, _ = load_adapter(self.data / "models" / self.result.name)
        if not hasattr(model, "attention_map"):
            return None, None, device
        return place(model, device).eval(), normalise, device

    def card(self, number: int) -> dict:
        """All that is shown of a test sample."""
        rows = self.result.predictions
        row, first = rows[number], number
        while first and rows[first - 1]["key"] == row["key"]:
            first -= 1
        last = next((other for other in range(number, len(rows)) if rows[other]["key"] != row["key"]), len(rows))
        batch = self._stretch(first, last - first)
        place_in_clip = number - first
        spectrogram = batch.spectrograms[place_in_clip].float().numpy().T[::-1]  # pitch upwards, time to the right
        missing = {"sound": "audio", "picture": "visual"}.get(row.get("absent"), row.get("absent"))
        return {
            **self._facts(row), "missing": missing, "differ": row["audio_only"] != row["visual_only"],
            "likeliest": json.loads(row["likeliest"]),
            "others": [(other.name, other.predictions[number]) for other in self.others
                       if other.keys == self.result.keys],
            "frame": jpeg(_image(batch.frames[place_in_clip])), "spectrogram": jpeg(_grey(spectrogram)),
            "attention": self._attention(batch, place_in_clip),
            "clip": [{**rows[first + place], "frame": jpeg(_small(_image(batch.frames[place])), 75),
                      "right": self.result.is_right(rows[first + place]),
                      "shown": place == place_in_clip}
                     for place in range(last - first)] if last - first > 1 else [],
        }

    def map(self) -> dict:
        """Some samples as `points`, and the `names` of the classes at their medians."""
        rows, at = self.result.predictions, positions(self.result)
        count = min(POINTS, AUDIO_SECONDS // self.recipe.seconds, len(rows))
        drawn = sorted(random.Random(f"{self.params.seed} map").sample(range(len(rows)), count))
        points = [{**self._facts(rows[number]), "x": at[number, 0], "y": at[number, 1],
                   "frame": jpeg(_image(self._stretch(number, 1).frames[0]), 70)} for number in drawn]
        of_label: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            of_label.setdefault(row["label"], []).append(number)
        names: list[tuple[str, float, float]] = []
        if len(of_label) <= NAMED:
            for y, x, label in sorted((*np.median(at[own], 0)[::-1], label) for label, own in of_label.items()):
                beside = [other for _, left, other in names if abs(left - x) < 0.2]  # names must not overlap
                names.append((label, x, max([y, *(other + 0.06 for other in beside)])))
        return {"points": points, "names": names, "of": len(rows)}

    def _facts(self, row: dict) -> dict:
        """A row of the predictions, whether it is right, its audio, and its clip's path and address."""
        clip = self.clips.get(row["key"])
        return {**row, "right": self.result.is_right(row), "path": clip.path if clip else "",
                "player": self._audio(clip, float(row["second"])) if clip else None,
                "link": quote(str(Path("../raw") / self.params.dataset / clip.path)) if clip else ""}

    def _stretch(self, first: int, count: int) -> Batch:
        """The samples of one clip with these numbers."""
        (batch,) = self.loader.stretch(first, count)
        if list(batch.keys) != [row["key"] for row in self.result.predictions[first : first + count]]:
            raise UserError(f"data/eval/{self.result.name} has other samples than the shards; run the evaluate stage "
                            "again (dvc repro)")
        return batch

    @torch.no_grad()
    def _attention(self, batch: Batch, number: int) -> list[dict]:
        """Attention of the prompts, as images to lay over frame and spectrogram."""
        if self.model is None:
            return []
        frames, spectrograms, _ = self.normalise(batch, self.device)
        sample = frames[number : number + 1], spectrograms[number : number + 1]
        shown = []
        for background in (False, True)[: 1 + self.model.config.background]:
            visual, audio = self.model.attention_map(*sample, background=background)
            shown.append({"prompt": "background" if background else "foreground",
                          "frame": _heat(_square(visual)), "spectrogram": _heat(_square(audio).T[::-1])})
        return shown

    def _audio(self, clip: Clip, second: float) -> str | None:
        """A sample's audio as the shards have it: beyond the clip's end silence, or the clip repeated."""
        if (waveform := self._waveform(clip)) is None:
            return None
        begin, size = round(second * SAMPLE_RATE), self.recipe.seconds * SAMPLE_RATE
        waveform = np.resize(waveform, begin + size) if self.recipe.pad == "tile" else \
            np.pad(waveform, (0, max(begin + size - len(waveform), 0)))
        return mp3(waveform[begin : begin + size])

    def _waveform(self, clip: Clip) -> np.ndarray | None:
        span = self.recipe.clip_seconds if clip.begin is None else min(clip.seconds, self.recipe.clip_seconds)
        try:
            media = decode(self.data / "raw" / self.params.dataset / clip.path, seconds=math.ceil(span), frame_size=16,
                           sample_rate=SAMPLE_RATE, start=clip.begin or 0.0, pad=self.recipe.pad, wanted=range(1))
        except Rejected:
            return None
        return media.waveform[: round(min(span, media.audio_seconds) * SAMPLE_RATE)]


def axes(recipe: Spectrogram) -> dict:
    """Ticks of a spectrogram: (share of the height, text) of pitch, and the seconds that it is wide."""
    top = recipe.sample_rate / 2
    if recipe.kind == "stft":
        step = 2000 if top <= 12000 else 5000
        return {"hertz": [(hertz / top, f"{hertz // 1000} kHz") for hertz in range(step, int(top), step)],
                "seconds": recipe.seconds}
    mel = lambda hertz: 1127 * math.log(1 + hertz / 700)  # noqa: E731  HTK's
    span = mel(top) - mel(MEL_FLOOR)
    return {"hertz": [((mel(hertz) - mel(MEL_FLOOR)) / span, f"{hertz / 1000:g} kHz")
                      for hertz in (500, 1000, 2000, 4000, 8000) if hertz < 0.9 * top], "seconds": recipe.seconds}


def _image(frame: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3), not larger than LARGEST."""
    pixels = frame.permute(1, 2, 0).numpy()
    return pixels if len(pixels) <= LARGEST else np.asarray(Image.fromarray(pixels).resize((LARGEST, LARGEST)))


def _small(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((SMALL, SMALL)))


def _grey(values: np.ndarray) -> np.ndarray:
    """Values scaled to 0 to 255, without the lowest and highest hundredth; not larger than LARGEST."""
    low, high = np.quantile(values, (0.01, 0.99))
    pixels = (np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    if max(pixels.shape) > LARGEST:
        pixels = np.asarray(Image.fromarray(pixels).resize((LARGEST, LARGEST)))
    return pixels


def _square(attention: Tensor) -> np.ndarray:
    """(1, patches) -> (rows, columns)."""
    edge = math.isqrt(attention.shape[1])
    return attention[0].cpu().numpy().reshape(edge, edge)


def _heat(attention: np.ndarray) -> str:
    """One colour, the more opaque the more of the attention lies on a patch."""
    above = attention - attention.min()
    alpha = (above / max(above.max(), 1e-9) * OPAQUE * 255).astype(np.uint8)
    colour = np.broadcast_to(np.array(ATTENTION, np.uint8), (*alpha.shape, 3))
    return png(np.dstack([colour, alpha]))
