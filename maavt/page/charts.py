"""The report's charts. Every function draws on a figure; a model has the same colour in all of them.

No chart contains the names of classes: those are text, in tables.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maavt.measure.plots import GREY, HUES, INK, tip

WIDTH = 3.3  # inches: as wide as a phone, so that letters keep their size there
Line = tuple[str, str, Sequence[float], Sequence[float]]  # model, style, x and y


def lines(figure: Figure, drawn: Sequence[Line], x: str, y: str, bounds: tuple[float, float] | None = None) -> None:
    """Lines over whole numbers. The model "" is grey."""
    axes = _axes(figure, x, y)
    axes.xaxis.get_major_locator().set_params(integer=True)
    for model, style, at, values in drawn:
        (line,) = axes.plot(at, values, style, marker=".", color=HUES.get(model, GREY), linewidth=1.3)
        tip(line, model or "chance level")
    axes.set(ylim=bounds)


def curves(figure: Figure, steps: dict[str, np.ndarray], validation: dict[str, np.ndarray],
           chance: dict[str, np.ndarray], y: str) -> None:
    """Training within epochs of each model (faint; solid: its moving average), validation after each epoch (points)
    and the chance level (dotted). Arrays are (2, N): epochs and values."""
    axes = _axes(figure, "epoch", y)
    for model, (epochs, values) in steps.items():
        color, mean = HUES.get(model, GREY), _moving_average(values)
        axes.plot(epochs, values, color=color, linewidth=0.6, alpha=0.3)
        (line,) = axes.plot(epochs, mean, color=color, linewidth=1.5)
        tip(line, f"{model}, training: {mean[-1]:.3g} at the end")
    for model, (epochs, values) in chance.items():
        (line,) = axes.plot(epochs, _moving_average(values), ":", color=HUES.get(model, GREY), linewidth=1.2)
        tip(line, f"{model}, chance level")
    for model, (epochs, values) in validation.items():
        axes.plot(epochs, values, "--", color=HUES.get(model, GREY), linewidth=1)
        for epoch, value in zip(epochs, values, strict=True):
            (point,) = axes.plot(epoch, value, "o", color=HUES.get(model, GREY), markersize=5)
            tip(point, f"{model}, validation after epoch {epoch:g}: {value:.3f}")
    axes.set_xlim(0)
    if not chance:
        axes.set_ylim(0, 1.05 if validation else None)


def reliability(figure: Figure, bins: dict[str, Sequence[tuple[float, float, int]]]) -> None:
    """Accuracy over the predicted probability; a ring's area is the number of samples."""
    axes = _axes(figure, "predicted probability", "accuracy", 3.2)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for model, own in bins.items():
        predicted, accuracy, count = np.array(own).T
        color = HUES.get(model, GREY)
        axes.plot(predicted, accuracy, color=color, linewidth=1.3)
        for x, y, number in own:
            ring = axes.scatter([x], [y], s=6 + 120 * number / count.sum(), facecolors="none", color=color)
            tip(ring, f"{model}: probability {x:.2f}, accuracy {y:.2f}, {number} samples")
    axes.set(xlim=(0, 1.03), ylim=(0, 1.05))


def confusion(figure: Figure, shares: np.ndarray) -> None:
    """Shares (label, predicted) of many classes, as an image with its scale."""
    axes = _axes(figure, "predicted, number of the class", "label, number of the class", WIDTH)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of the label's samples")
    bar.outline.set_edgecolor(INK)


def _moving_average(values: np.ndarray) -> np.ndarray:
    """The mean over a twentieth of the values around each."""
    window = np.ones(max(1, len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _axes(figure: Figure, x: str, y: str, height: float = 2.4) -> Axes:
    figure.set_size_inches(WIDTH, height)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return axes
