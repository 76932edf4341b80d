"""How training went: losses and accuracy within epochs, validation, and retrieval by block."""

import numpy as np

from maavt.page import charts
from maavt.page.draw import svg
from maavt.page.results import Result

# A title, the column of steps.csv, and the column of its chance level.
PANELS = (("Accuracy", "accuracy", None), ("Class loss", "class_loss", None),
          ("Contrastive loss", "contrastive_loss", "contrastive_chance"),
          ("Background loss", "background_loss", None), ("Learning rate", "learning_rate", None))
RECALLS = {"recall_1": 1, "recall_5": 5}  # in config.json: how many of the nearest are looked at


def curves(results: list[Result]) -> list[tuple[str, str]]:
    """A title and a chart for each quantity that at least one model has."""
    drawn = []
    for title, column, chance in PANELS:
        steps, limits = (_lines(results, name) if name else {} for name in (column, chance))
        validation = {result.name: np.array([[float(row["step"]), float(row["accuracy"])] for row in
                                             result.validation]).T for result in results if result.validation}
        if steps:
            drawn.append((title, svg(charts.curves, steps, validation if column == "accuracy" else {}, limits,
                                     title.lower(), label=f"{title} during training")))
    return drawn


def _lines(results: list[Result], column: str) -> dict[str, np.ndarray]:
    """Epochs and values of each model; without those that are always 0, which the model does not have."""
    found = {result.name: np.array([[float(row["epoch"]), float(row[column])] for row in result.steps]).T
             for result in results if result.steps}
    return {name: line for name, line in found.items() if line[1].any()}


def retrieval(results: list[Result]) -> list[tuple[str, str]]:
    """For each model with a contrastive loss: how often the nearest vectors of the other modality contain the sample's
    own, over the blocks, before training (dashed) and after it, and by chance (grey)."""
    drawn = []
    for result in results:
        found = result.config.get("retrieval") or {}
        for recall, nearest in RECALLS.items() if found else ():
            lines = [(result.name, style, range(1, len(values) + 1), values)
                     for when, style in (("before", "--"), ("after", "-")) for values in [found[when][recall]]]
            blocks = lines[-1][2]
            lines.append(("", ":", blocks, [nearest / found["after"]["pairs"]] * len(blocks)))
            title = f"Recall at {nearest} ({result.name})"
            drawn.append((title, svg(charts.lines, lines, "block", f"recall at {nearest}", label=title)))
    return drawn
