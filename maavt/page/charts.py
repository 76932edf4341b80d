"""The page's pictures of numbers. Every function draws on a figure; a model has its one colour in all of them.

No chart has the names of classes in it: those are text, in tables.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from maavt.measure.plots import GREY, HUES, INK

WIDTH = 3.3  # inches: as wide as a phone, so that letters keep their size there
Line = tuple[str, str, Sequence[float], Sequence[float]]  # model, style, x and y


def lines(figure: Figure, drawn: Sequence[Line], x: str, y: str, bounds: tuple[float, float] | None = None) -> None:
    """Lines over whole numbers. A style of "" is a line of points, of the model "" a grey one."""
    figure.set_size_inches(WIDTH, 2.4)
    axes = figure.subplots()
    for model, style, at, values in drawn:
        axes.plot(at, values, style or "-", marker=".", color=HUES.get(model, GREY), linewidth=1.3)
    axes.set(xlabel=x, ylabel=y, ylim=bounds)
    axes.xaxis.get_major_locator().set_params(integer=True)


def reliability(figure: Figure, curves: dict[str, Sequence[tuple[float, float, int]]]) -> None:
    """How often predictions are right beside the probability that they state; a ring's area is the number of pairs."""
    figure.set_size_inches(WIDTH, 3.2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for model, bins in curves.items():
        stated, right, count = np.array(bins).T
        axes.plot(stated, right, color=HUES.get(model, GREY), linewidth=1.3)
        axes.scatter(stated, right, s=6 + 120 * count / count.sum(), facecolors="none", color=HUES.get(model, GREY))
    axes.set(xlabel="probability stated", ylabel="share that is right", xlim=(0, 1.03), ylim=(0, 1.05))


def confusion(figure: Figure, shares: np.ndarray) -> None:
    """Shares (label, predicted) of many classes, as a picture with its scale."""
    figure.set_size_inches(WIDTH + 1.2, WIDTH + 0.6)
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted, number of the class", ylabel="label, number of the class")
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of the label's pairs")
    bar.outline.set_edgecolor(INK)
