"""One clip of the user's own -> its classes, second by second, as a line of JSON."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from maavt.clips import BACKGROUND
from maavt.errors import UserError
from maavt.media.rejected import Rejected, explain
from maavt.media.sample import frame_second, read_clip
from maavt.models import MODELS
from maavt.params import Spectrogram
from maavt.shards.loader import BACKGROUND_LABEL, Batch
from maavt.training.adapter import load_adapter
from maavt.training.runtime import Prediction, pick_device, place, predict
from maavt.work import project_root


def main(arguments: list[str] | None = None) -> None:
    """Print one line of JSON per file: its seconds with their classes, or the reason why there are none.

    Raises UserError, after the last file, when some could not be read.
    """
    parser = argparse.ArgumentParser("maavt predict", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a video with sound")
    parser.add_argument("--model", choices=sorted(MODELS), default="maavt", help="which trained model to ask")
    options = parser.parse_args(arguments)
    model, normalise, config = load_adapter(project_root() / "data" / "models" / options.model)
    model = place(model, pick_device()).for_inference()
    failed = 0
    for file in options.files:
        try:
            batch = read_pairs(Path(file), config)
        except Rejected as rejection:
            failed += 1
            answer = {"file": file, **explain(rejection)}
        else:
            found = predict(model, [batch], normalise, background=config["background"])
            answer = {"file": file, "pairs": [_as_json(prediction, config["classes"]) for prediction in found]}
        print(json.dumps(answer), flush=True)
    if failed:
        raise UserError(f"{failed} of {len(options.files)} files could not be read; their lines say why")


def read_pairs(path: Path, config: dict) -> Batch:
    """The pairs of one media file, made as the shards of the training data were. Raises Rejected."""
    recipe, size = Spectrogram(**config["spectrogram"]), config["image_size"]
    found, sound, begins = read_clip(path, recipe, frame_size=config["frame_size"])
    frames = torch.from_numpy(np.stack([found[frame_second(begin, recipe)] for begin in begins])).permute(0, 3, 1, 2)
    if config["augment"] == "crop":
        edge = (config["frame_size"] - size) // 2
        frames = frames[..., edge : edge + size, edge : edge + size]
    return Batch(
        frames=frames.contiguous(),
        spectrograms=torch.from_numpy(sound),
        labels=torch.full((len(sound),), BACKGROUND_LABEL),
        keys=[path.name] * len(sound),
        seconds=begins,
    )


def _as_json(prediction: Prediction, classes: list[str]) -> dict:
    background = prediction.predicted == BACKGROUND_LABEL
    return {"second": prediction.second, "class": BACKGROUND if background else classes[prediction.predicted],
            "probability": round(prediction.probability, 4)}
