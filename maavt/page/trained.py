"""How training went: curves of every part of the loss, of accuracy and rate, and retrieval by block."""

from maavt.page import charts
from maavt.page.draw import svg
from maavt.page.results import Result

# What is drawn: the title, the curve that is a solid line, and the one that is dashed.
PANELS = (
    ("loss, all parts together", "train/loss", ""),
    ("loss of the classes", "train/class_loss", ""),
    ("loss of the background", "train/background_loss", ""),
    ("contrastive loss; dashed: by chance", "train/contrastive_loss", "train/contrastive_chance"),
    ("accuracy; dashed: validation", "train/accuracy", "val/accuracy"),
    ("learning rate at the end", "train/learning_rate", ""),
)
RETRIEVAL = {"sound_to_picture": "pictures found by sound", "picture_to_sound": "sounds found by picture"}


def curves(results: list[Result]) -> list[str]:
    """A picture per panel of what at least one model has."""
    drawn = []
    for title, *names in PANELS:
        lines = [(result.name, style, *points) for result in results
                 for name, style in zip(names, ("-", "--"), strict=True) if (points := _points(result, name))]
        if any(any(values) for _, _, _, values in lines):
            drawn.append(svg(charts.lines, lines, "epoch", title, label=title))
    return drawn


def _points(result: Result, name: str) -> tuple[list[int], list[float]] | None:
    """Epochs, from 1 on, and values; None where there are none but zeros, which stand for a part that is not there."""
    rows = result.curves.get(name, [])
    values = [float(row[name.split("/")[1]]) for row in rows]
    return ([int(row["step"]) for row in rows], values) if any(values) else None


def retrieval(results: list[Result]) -> list[tuple[str, str]]:
    """Of each model that was measured so, and each direction: what was found over the blocks, before training
    (dashed) and after, beside chance (grey)."""
    found = []
    for result in (result for result in results if result.retrieval):
        for direction, title in RETRIEVAL.items():
            lines = []
            for when, style in (("before", "--"), ("after", "-")):
                rows = [row for row in result.retrieval if row["when"] == when]
                lines.append((result.name, style, [int(row["block"]) for row in rows],
                              [float(row[direction]) for row in rows]))
            at = lines[-1][2]
            lines.append(("", ":", at, [float(result.retrieval[0]["chance"])] * len(at)))
            found.append((result.name, svg(charts.lines, lines, "block", title, label=f"{result.name}: {title}")))
    return found
