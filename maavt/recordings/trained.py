"""A trained model that is asked about recordings: their classes, events and vectors.

B windows, S image size, C classes.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn

from maavt.clips import ABSENT, BACKGROUND, SEVERAL
from maavt.errors import UsageError, UserError
from maavt.fetch import cached
from maavt.fetch.tree import shown
from maavt.media.rejected import explain
from maavt.models import MODELS
from maavt.recordings.events import events_of
from maavt.recordings.windows import File, Part, parts_of, read_windows
from maavt.shards.loader import BACKGROUND_LABEL, Batch, Loader
from maavt.shards.reader import Reader
from maavt.training.adapter import load_adapter
from maavt.training.runtime import Prediction, pick_device, place, predict
from maavt.work import one_heap, project_root, sha256

BATCH = 32  # windows
WAITING = 3  # batches that the model has before it, while more are read


def folder_of(model: str | os.PathLike) -> Path:
    """The folder of a model: one of this project by its name, or any by its path. Raises UsageError for none, and
    UserError for one of this project that a run has taken away."""
    if model in MODELS:
        folder = (root := project_root()) / "data" / "models" / model
        if not (folder / "config.json").exists() and (why := _taken_away(root, f"data/models/{model}")):
            raise UserError(f"no {folder}: {why}")
        return folder
    if not (Path(model) / "config.json").is_file():
        raise UsageError(f"no model in {os.fspath(model)}; expected {', '.join(MODELS)} (of this project), or the "
                         "folder that maavt export wrote")
    return Path(model)


def _taken_away(root: Path, output: str) -> str | None:
    """Why an output of the project in `root` is not there although it was made, and what brings it back; None where
    it was never made."""
    tmp = root / ".dvc" / "tmp"
    with suppress(OSError, ValueError), open(tmp / "rwlock") as file:
        writers = [owner["pid"] for path, owner in json.load(file)["write"].items() if Path(path) == root / output]
        for process in writers:
            os.kill(process, 0)  # raises OSError where it is gone
            return f"a run that makes it anew is at work (process {process}); wait until it ends, and ask again"
    if (tmp / "before").exists():
        return "an experiment is at work here, or was killed; wait until it ends, or bring the model back: make repro"
    if cached.sums(root, output):
        return (f"DVC's cache has the one that dvc.lock names: dvc checkout {output} brings it back, make repro makes "
                "that of params.yaml")
    return None


class Trained:
    """The model in a folder, on a device, ready to be asked; `classes` are its classes."""

    def __init__(self, model: str | os.PathLike = "maavt", device: str | None = None, *, vectors: bool = False):
        self.folder = folder_of(model)
        self.whole, self.normalise, self.config = load_adapter(self.folder)
        self.device = pick_device(device)
        if self.device.type == "cpu":
            one_heap()  # it is asked in a thread
        place(self.whole, self.device)
        self.model = self._for_vectors() if vectors else self.whole.for_inference()
        self.classes, self.background = self.config["classes"], self.config["background"]

    def predict(self, file: str | os.PathLike, *, top: int = 1, threshold: float = 0.0) -> dict:
        """The windows and events of one recording, or the reason why it has none, as `maavt predict` prints them."""
        return next(self.answers([File(os.fspath(file), named=True)], top=top, threshold=threshold, workers=0))

    def answers(self, files: list[File], *, top: int, threshold: float, workers: int) -> Iterator[dict]:
        """One answer per file, in order. With `top`, that many of the likeliest classes of each window."""
        def rows(batch: Batch) -> list[dict]:
            return [self._row(found, top) for found in predict(self.model, [batch], self.normalise,
                                                               background=self.background)]

        parts = []
        for part, said in self.asked(rows, files, workers=workers):
            parts.append((part, said))
            if part.last:
                yield answer(parts, threshold)
                parts = []

    def _row(self, found: Prediction, top: int) -> dict:
        """What is said of a window: its class, background counted as one, and the likeliest of all."""
        empty = found.predicted == BACKGROUND_LABEL
        row = {"class": BACKGROUND if empty else self.classes[found.predicted],
               "probability": round(found.probability, 4)}
        if top > 1:
            every = dict(zip(self.classes, (found.classes * (1 - found.empty)).tolist(), strict=True))
            every |= {BACKGROUND: found.empty} if self.background else {}
            best = sorted(every, key=every.get, reverse=True)[:top]
            row["top"] = {name: round(every[name], 4) for name in best}
        return row

    @torch.no_grad()
    def attention(self, file: str | os.PathLike, times: list[tuple[float, float]]
                  ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Of each of these windows of a file, its frame (S, S, 3) and its spectrogram (bins, frames), upright, uint8,
        each with where the class prompt attends; nothing of a model without attention to show.

        The windows are read again: what a model has said of a long recording is kept, but not what it saw.
        """
        if not hasattr(self.whole, "attention_map"):
            return [[] for _ in times]
        found = []
        for part in read_windows(os.fspath(file), times, self.config):
            if part.failed:
                found.append([])
                continue
            frames, sound, _ = self.normalise(_batch(part.windows()[:1]), self.device)
            maps = (scores.float().cpu().numpy().reshape(round(scores.numel() ** 0.5), -1)
                    for scores in self.whole.attention_map(frames, sound))
            heard = sound[0].float().cpu().numpy().T[::-1]
            heard = (255 * (heard - heard.min()) / max(np.ptp(heard), 1e-9)).astype(np.uint8)
            found.append([(part.frames[0], next(maps)), (heard, next(maps).T[::-1])])
        return found

    def _for_vectors(self) -> nn.Module:
        try:
            return self.whole.for_vectors()
        except (AttributeError, ValueError) as error:
            why = error if isinstance(error, ValueError) else "this kind has none; expected maavt"
            raise UserError(f"{self.folder}: no vectors of sounds and pictures: {why}") from None

    @property
    def sha256(self) -> str:
        """What tells this training from any other."""
        return sha256(self.folder / "adapter.safetensors")

    def vectors(self, files: list[File], *, workers: int) -> Iterator[list[dict] | dict]:
        """The rows of each part of each file, one per window: file, from, to, class, sound (P,) and picture (P,); of
        what could not be read a dict with the reason instead. For a model made with `vectors`."""
        for part, rows in self.asked(self._compare, files, workers=workers):
            yield {"file": part.path, **explain(part.failed)} if part.failed else [
                {"file": shown(part.path), "from": begin, "to": to, **row}
                for (begin, to), row in zip(part.times, rows, strict=True)]

    def vectors_of_split(self, split: str) -> Iterator[list[dict]]:
        """The same of the clips of one split, a list per batch from the shards, each row with its `label`."""
        loader = Loader(Reader.of(self.config["dataset"]), split, batch=BATCH, image_size=self.config["image_size"],
                        augment=self.config["augment"])
        names = [*self.classes, BACKGROUND]
        for batch in loader.in_order():
            labels = [names[label] for label in batch.labels.tolist()] if batch.labels.dim() == 1 else [
                SEVERAL.join(self.classes[place] for place in row.nonzero()[:, 0]) for row in batch.labels]
            rows = zip(batch.keys, batch.seconds, labels, self._compare(batch), strict=True)
            yield [{"file": key, "from": second, "to": second + loader.recipe["seconds"], "label": label, **row}
                   for key, second, label, row in rows]

    @torch.inference_mode()
    def _compare(self, batch: Batch) -> list[dict]:
        frames, sound, _ = self.normalise(batch, self.device)
        output, picture, sound = self.model(frames, sound)
        predicted = output.predicted() if self.background else output.logits.argmax(-1)
        names = [*self.classes, BACKGROUND]
        return [{"class": names[number], "sound": heard, "picture": seen} for number, heard, seen in zip(
            predicted.tolist(), sound.cpu().numpy(), picture.cpu().numpy(), strict=True)]

    def asked(self, ask: Callable[[Batch], list], files: list[File], *, workers: int) -> Iterator[tuple[Part, list]]:
        """Each part of each file, with what `ask` makes of its windows.

        Batches go across files and parts, to a thread of the model's own, while worker processes read on.
        """
        waiting: deque[Part] = deque()  # parts whose windows are not all answered, in order
        held: list[tuple] = []  # windows that are in no batch yet
        running, rows = deque(), deque()
        with ThreadPoolExecutor(1, thread_name_prefix="model") as pool:
            for part in chain(parts_of(files, self.config, workers=workers), [None]):  # None: there are no more
                if part:
                    held += part.windows()
                    waiting.append(part.without_windows())
                while len(held) >= BATCH or held and not part:
                    running.append(pool.submit(ask, _batch(held[:BATCH])))
                    del held[:BATCH]
                while running and (not part or len(running) > WAITING or running[0].done()):
                    rows += running.popleft().result()
                while waiting and len(rows) >= len(waiting[0].times):
                    yield (done := waiting.popleft()), [rows.popleft() for _ in done.times]


def _batch(windows: list[tuple]) -> Batch:
    """Windows (path, second, frame, spectrogram) as the model's batches are."""
    paths, seconds, frames, sound, absent = zip(*windows, strict=True)
    return Batch(frames=torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2),
                 spectrograms=torch.from_numpy(np.stack(sound)),
                 labels=torch.full((len(paths),), BACKGROUND_LABEL), keys=list(paths), seconds=list(seconds),
                 absent=torch.tensor([ABSENT.index(kind) for kind in absent], dtype=torch.uint8))


def answer(file: list[tuple[Part, list[dict]]], threshold: float) -> dict:
    """What is said of one recording: its windows and events, the parts that could not be read (`unread`); of one
    without any window the reason alone."""
    first = file[0][0]
    windows = [{"from": begin, "to": to, **row} for part, rows in file
               for (begin, to), row in zip(part.times, rows, strict=True)]
    if not windows:
        return {"file": first.path, **explain(first.failed)}
    unread = [{"from": part.begin, **({"to": part.begin + part.length} if part.length else {}), **explain(part.failed)}
              for part, _ in file if part.failed]
    absent = {part.absent for part, _ in file if part.times}
    lacking = {"absent": absent.pop()} if len(absent) == 1 and "" not in absent else {}
    if track := max(part.sound_track for part, _ in file):
        lacking |= {"sound_track": track}
    return {"file": first.path, "seconds": first.total or windows[-1]["to"], **lacking, "windows": windows,
            "events": list(events_of(windows, threshold)), **({"unread": unread} if unread else {})}
