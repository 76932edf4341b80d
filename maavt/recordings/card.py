"""The model card of an exported model: what it is, how to use it, how right it is, and where it comes from."""

import json
from pathlib import Path

import jinja2
from torch import Tensor

from maavt.models.backbone import read_origin
from maavt.work import project_root


def write_card(folder: Path, name: str, config: dict, example: tuple[Tensor, Tensor], differences: dict[str, float]
               ) -> None:
    """README.md, with the numbers of the project's evaluation where that was of this model."""
    frames, spectrograms = (f"(B, {', '.join(map(str, tensor.shape[1:]))})" for tensor in example)
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        (Path(__file__).parent / "card.md").read_text())
    (folder / "README.md").write_text(template.render(
        name=name, config=config, frames=frames, spectrograms=spectrograms, differences=differences,
        onnx="model.onnx" in differences, aligned=config["settings"].get("contrastive", "off") != "off",
        origin=read_origin(config["backbone"], folder / "backbone"), metrics=_metrics(name, config)))


def _metrics(name: str, config: dict) -> dict:
    """metrics.json of the evaluation; nothing where that is missing, or of another training."""
    try:
        metrics = json.loads((project_root() / "data" / "eval" / name / "metrics.json").read_text())
    except FileNotFoundError:
        return {}
    same = all(metrics.get(key) == config[own] for key, own in (("trained", "trainable"), ("epoch", "epoch"),
                                                                ("val_accuracy", "val_accuracy")))
    return metrics if same else {}
