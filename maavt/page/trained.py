"""How training went: curves of every part of the loss, of accuracy and rate, and retrieval by block."""

from maavt.page import charts
from maavt.page.draw import svg
from maavt.page.results import Result

# What is drawn: the title, the curve that is a solid line, and the one that is dashed.
PANELS = (
    ("Loss, all parts together", "train/loss", ""),
    ("Loss of the classes", "train/class_loss", ""),
    ("Loss of background or not", "train/background_loss", ""),
    ("Contrastive loss; dashed: its chance level", "train/contrastive_loss", "train/contrastive_chance"),
    ("Accuracy; dashed: on validation pairs", "train/accuracy", "val/accuracy"),
    ("Learning rate at the end of the epoch", "train/learning_rate", ""),
)
FOUND = {"recall_1": 1, "recall_5": 5}  # in config.json, and how many of the nearest are looked at


def curves(results: list[Result]) -> list[tuple[str, str]]:
    """A title and a picture per panel of what at least one model has."""
    drawn = []
    for title, *names in PANELS:
        lines = [(result.name, style, *points) for result in results
                 for name, style in zip(names, ("-", "--"), strict=True) if (points := _points(result, name))]
        if any(any(values) for _, _, _, values in lines):
            drawn.append((title, svg(charts.lines, lines, "epoch", names[0].split("/")[1].replace("_", " "),
                                     label=title)))
    return drawn


def _points(result: Result, name: str) -> tuple[list[int], list[float]] | None:
    """Epochs, from 1 on, and values; None where there are none but zeros, which stand for a part that is not there."""
    rows = result.curves.get(name, [])
    values = [float(row[name.split("/")[1]]) for row in rows]
    return ([int(row["step"]) for row in rows], values) if any(values) else None


def retrieval(results: list[Result]) -> list[tuple[str, str]]:
    """Of each model that was measured so: how often a sound finds its own picture over the blocks, before training
    (dashed) and after, beside chance (grey)."""
    found = []
    for result in results:
        told = result.config.get("retrieval") or {}
        for recall, nearest in FOUND.items() if told else ():
            lines = [(result.name, style, range(1, len(values) + 1), values)
                     for when, style in (("before", "--"), ("after", "-")) for values in [told[when][recall]]]
            blocks = lines[-1][2]
            lines.append(("", ":", blocks, [nearest / told["after"]["pairs"]] * len(blocks)))
            title = f"Own one among the {nearest} nearest" if nearest > 1 else "Own one is the nearest"
            drawn = svg(charts.lines, lines, "block", f"recall at {nearest}", label=f"{result.name}: {title}")
            found.append((f"{title} ({result.name})", drawn))
    return found
