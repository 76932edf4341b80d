"""Predictions as a page that opens from disk: players, a time line of classes, and what the model attends to."""

import base64
import os
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image
from simplejpeg import encode_jpeg

from maavt.fetch.tree import shown
from maavt.recordings.trained import Trained
from maavt.work import atomic

EVENTS = 12  # of a file, the surest ones, whose attention is shown
HUES = 12  # colours of classes, which are taken in turns
PIXELS = 160  # the side of a small picture


class Page:
    """Gathers answers; of each file what the page shows of it."""

    def __init__(self, path: Path, model: Trained):
        self.path, self.model, self.files = path, model, []

    def add(self, answer: dict) -> None:
        """An answer of the model, as predict() gives it."""
        events = answer.get("events", [])
        surest = sorted(events, key=lambda event: -event["probability"])[:EVENTS]
        windows = [max((window for window in answer["windows"] if event["from"] <= window["from"] < event["to"]),
                       key=lambda window: window["probability"] * (window["class"] == event["class"]))
                   for event in surest]
        looks = self.model.attention(answer["file"], [(window["from"], window["to"]) for window in windows])
        rows = dict.fromkeys(event["class"] for event in events)
        self.files.append({
            "name": shown(os.fspath(answer["file"])), "link": _link(answer["file"], self.path.parent),
            "seconds": answer.get("seconds", 0),
            "reason": answer.get("reason", ""), "unread": answer.get("unread", []),
            "rows": [(name, [event for event in events if event["class"] == name]) for name in rows],
            "looks": sorted(((event, [_picture(*part) for part in look])
                             for event, look in zip(surest, looks, strict=True) if look),
                            key=lambda pair: pair[0]["from"]),
        })

    def write(self) -> None:
        """The page of all files."""
        pages = jinja2.Environment(loader=jinja2.PackageLoader("maavt.recordings", ""), autoescape=True)
        hues = {name: 360 * (number % HUES) // HUES for number, name in enumerate(self.model.classes)}
        with atomic(self.path) as path:
            path.write_text(pages.get_template("page.html").render(
                files=self.files, hues=hues, model=shown(os.fspath(self.model.folder.name)), config=self.model.config))


def _link(file: str, home: Path) -> str:
    """The address of a file, as seen from the page."""
    return quote(os.fsencode(os.path.relpath(os.path.abspath(file), os.path.abspath(home))))


def _picture(image: np.ndarray, attention: np.ndarray) -> str:
    """An image (H, W, 3) or (H, W) uint8 under its attention (rows, columns), as a data: address."""
    small = Image.fromarray(image).convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
    heat = attention / max(attention.max(), 1e-9)
    heat = Image.fromarray((heat * 255).astype(np.uint8)).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    share = np.asarray(heat, np.float32)[..., None] / 255 * 0.6
    mixed = np.asarray(small, np.float32) * (1 - share) + np.array([255, 90, 0], np.float32) * share
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(mixed.astype(np.uint8), 85)).decode()
