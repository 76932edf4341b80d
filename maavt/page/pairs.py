"""Test pairs to look at and listen to, chosen by stated rules, with the model's attention and the whole clip."""

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maavt.clips import Clip, read_manifest
from maavt.errors import UserError
from maavt.media.decode import Rejected, decode
from maavt.page.draw import SOUND_RATE, jpeg, mp3, png
from maavt.page.results import Result
from maavt.page.scored import most_confused
from maavt.params import Params, Spectrogram
from maavt.shards.loader import Batch, Loader
from maavt.shards.reader import Reader
from maavt.training.adapter import load_adapter
from maavt.training.runtime import Normaliser, pick_device, place

EACH = 9  # pairs by each rule
LARGEST, SMALL = 224, 56  # pixels of a picture, and of one in the row of a clip's seconds
ATTENTION = (255, 176, 0)  # its colour; how strong it is shows in how opaque it is
OPAQUE = 0.85
MEL_FLOOR = 20.0  # hertz: where the filter banks begin


@dataclass(frozen=True)
class Rule:
    """Which pairs are shown, in words, and their numbers in the order of the predictions."""

    title: str
    why: str
    chosen: list[int]


def choose(result: Result, seed: int) -> list[Rule]:
    """Numbers of pairs by four rules: no pair twice, and by each of the first three one of a clip at most."""
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

    surest = sorted(range(len(rows)), key=lambda number: (-float(rows[number]["probability"]), number))
    right = [number for number in surest if result.is_right(rows[number])]
    wrong = [number for number in surest if not result.is_right(rows[number])]
    confused = {(pair["label"], pair["predicted"]): [] for pair in most_confused(result, EACH)}
    for number in wrong:
        for label in result.labels(rows[number]):
            confused.get((label, rows[number]["predicted"]), []).append(number)
    drawn = random.Random(f"{seed} pairs").sample(range(len(rows)), len(rows))
    return [
        Rule("At random", f"drawn by the seed {seed}: these alone are a fair sample", take(drawn)),
        Rule("Best", "right with the greatest probability, one of each class at most", take(right, "label")),
        Rule("Worst", "wrong with the greatest probability, one of each class at most", take(wrong, "label")),
        Rule("Most confused", "of each of the most frequent confusions the one with the greatest probability",
             [number for numbers in confused.values() for number in take(numbers, "label", "predicted")]),
    ]


class Gallery:
    """Makes what is shown of a pair. Frames come from the shards, sound from the clips where they are at hand."""

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

    def _load(self) -> tuple[nn.Module | None, Normaliser | None, torch.device]:
        """The model where it can say where it looks."""
        device = pick_device()
        model, normalise, _ = load_adapter(self.data / "models" / self.result.name)
        if not hasattr(model, "attention_map"):
            return None, None, device
        return place(model, device).eval(), normalise, device

    def card(self, number: int) -> dict:
        """All that is shown of the test pair with this number."""
        rows = self.result.predictions
        row, first = rows[number], number
        while first and rows[first - 1]["key"] == row["key"]:
            first -= 1
        last = next((other for other in range(number, len(rows)) if rows[other]["key"] != row["key"]), len(rows))
        (batch,) = self.loader.stretch(first, last - first)
        if batch.keys[0] != row["key"] or len(batch.keys) != last - first:
            raise UserError(f"data/eval/{self.result.name}: its pairs are not those of the shards; run the evaluate "
                            "stage again (dvc repro)")
        place_in_clip = number - first
        frame = _picture(batch.frames[place_in_clip])
        sound = batch.spectrograms[place_in_clip].float().numpy().T[::-1]  # pitch upwards, time to the right
        clip = self.clips.get(row["key"])
        return {
            **row, "right": self.result.is_right(row), "absent": row.get("absent", ""),
            "differ": row["audio_only"] != row["visual_only"],
            "likeliest": json.loads(row.get("likeliest") or "[]"),
            "others": [(other.name, other.predictions[number]) for other in self.others
                       if other.keys == self.result.keys],
            "frame": jpeg(frame), "spectrogram": jpeg(_grey(sound)),
            "attention": self._attention(batch, place_in_clip),
            "player": self._sound(clip, float(row["second"])) if clip else None,
            "path": clip.path if clip else "",
            "clip": [{**rows[first + place], "frame": jpeg(_small(_picture(batch.frames[place])), 75),
                      "right": self.result.is_right(rows[first + place]),
                      "shown": place == place_in_clip}
                     for place in range(last - first)] if last - first > 1 else [],
        }

    @torch.no_grad()
    def _attention(self, batch: Batch, number: int) -> list[dict]:
        """Where the prompts look, as pictures to be laid over frame and spectrogram."""
        if self.model is None:
            return []
        frames, sound, _ = self.normalise(batch, self.device)
        pair = frames[number : number + 1], sound[number : number + 1]
        shown = []
        for background in (False, True)[: 1 + self.model.config.background]:
            seen, heard = self.model.attention_map(*pair, background=background)
            shown.append({"prompt": "background" if background else "foreground",
                          "frame": _heat(_square(seen)), "spectrogram": _heat(_square(heard).T[::-1])})
        return shown

    def _sound(self, clip: Clip, second: float) -> str | None:
        """What is heard in a pair, as the shards have it: beyond the clip's end silence, or the clip once more."""
        span = self.recipe.clip_seconds if clip.begin is None else min(clip.seconds, self.recipe.clip_seconds)
        try:
            media = decode(self.data / "raw" / self.params.dataset / clip.path, seconds=math.ceil(span), frame_size=16,
                           sample_rate=SOUND_RATE, start=clip.begin or 0.0, pad=self.recipe.pad, wanted=range(1))
        except Rejected:
            return None
        heard = media.waveform[: round(min(span, media.audio_seconds) * SOUND_RATE)]
        begin, size = round(second * SOUND_RATE), self.recipe.seconds * SOUND_RATE
        heard = np.resize(heard, begin + size) if self.recipe.pad == "tile" else \
            np.pad(heard, (0, max(begin + size - len(heard), 0)))
        return mp3(heard[begin : begin + size])


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


def _picture(frame: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3), not larger than LARGEST."""
    pixels = frame.permute(1, 2, 0).numpy()
    return pixels if len(pixels) <= LARGEST else np.asarray(Image.fromarray(pixels).resize((LARGEST, LARGEST)))


def _small(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((SMALL, SMALL)))


def _grey(values: np.ndarray) -> np.ndarray:
    """Numbers to 0 to 255, but for the faintest and loudest hundredth; not larger than LARGEST."""
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
    spread = attention - attention.min()
    alpha = (spread / max(spread.max(), 1e-9) * OPAQUE * 255).astype(np.uint8)
    colour = np.broadcast_to(np.array(ATTENTION, np.uint8), (*alpha.shape, 3))
    return png(np.dstack([colour, alpha]))
