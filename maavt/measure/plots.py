"""Pictures of what the benchmark and the ablations found. Every function draws rows of a table on a figure."""

import statistics
from collections.abc import Callable
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from maavt.work import atomic

# A model has one colour everywhere, in pictures and on the report page; no other thing has it.
HUES = {"maavt": "#2a6f97", "maavt_merge16": "#1b4a66", "maavt_depth75": "#1b4a66", "maavt_depth75_merge16": "#1b4a66",
        "maavt_paper": "#7fb2d1", "paper": "#7fb2d1", "linear": "#8d6b94", "lavish": "#b8860b",
        "lavish_deep": "#dcb85a", "mbt": "#4c956c"}
INK, GREY = "#1c2b33", "#9aa5ab"


def save(path: Path, draw: Callable, *arguments) -> None:
    """What `draw(figure, ...)` draws, as an SVG file that is the same to the byte for the same numbers."""
    figure = Figure(layout="constrained")
    draw(figure, *arguments)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def throughput(figure: Figure, rows: list[dict]) -> None:
    """Samples per second of every model: a panel per backbone and mode, the largest batch, whiskers over rounds."""
    panels = list(dict.fromkeys((row["backbone"], row["mode"]) for row in rows))
    figure.set_size_inches(4.4, 0.4 + 2.1 * len(panels))
    for axes, (backbone, mode) in zip(np.ravel(figure.subplots(len(panels), 1)), panels, strict=True):
        held = [row for row in rows if (row["backbone"], row["mode"]) == (backbone, mode)]
        largest = max(int(row["batch"]) for row in held)
        held = [row for row in held if int(row["batch"]) == largest][::-1]
        rates = [float(row["samples_per_second"]) for row in held]
        spread = [[rate - float(row["slowest"]) for rate, row in zip(rates, held, strict=True)],
                  [float(row["fastest"]) - rate for rate, row in zip(rates, held, strict=True)]]
        bars = axes.barh([row["model"] for row in held], rates, xerr=spread, ecolor=INK, error_kw={"elinewidth": 0.8},
                         color=[HUES.get(row["model"].removesuffix("_int8"), GREY) for row in held])
        axes.bar_label(bars, fmt="%.1f", padding=6, fontsize=8)
        first = held[-1]
        axes.set_title(f"{mode}, {backbone}\n{first['image_size']} px, batch {largest}, {first['dtype']}, "
                       f"{first['device']}", fontsize=9, loc="left")
        axes.margins(x=0.2)
    axes.set_xlabel("samples per second")


def parameters(figure: Figure, rows: list[dict]) -> None:
    """Trained parameters of every model and backbone, and what the paper says (ring)."""
    figure.set_size_inches(4.4, 3.4)
    axes = figure.subplots()
    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    for place, model in enumerate(models):
        held = [row for row in rows if row["model"] == model]
        at = [backbones.index(row["backbone"]) + (place - (len(models) - 1) / 2) * 0.8 / len(models) for row in held]
        axes.bar(at, [float(row["trainable"]) / 1e6 for row in held], 0.75 / len(models), label=model,
                 color=HUES.get(model, GREY))
        paper = [(x, float(row["paper_trainable_m"])) for x, row in zip(at, held, strict=True)
                 if row["paper_trainable_m"]]
        axes.plot(*zip(*paper, strict=True) if paper else ((), ()), "o", mfc="none", color=INK, markersize=5)
    axes.set(xticks=range(len(backbones)), yscale="log", ylabel="trained parameters, millions")
    axes.set_xticklabels([name.removesuffix("_patch16_224") for name in backbones], fontsize=8)
    figure.legend(frameon=False, ncols=3, fontsize=8, loc="outside upper center")


def ablation(figure: Figure, rows: list[dict], metric: str) -> None:
    """Mean and standard deviation over seeds of every setting of an ablation, named by what not all of them share."""
    named = [row["setting"].split("+") for row in rows]
    shared = set.intersection(*map(set, named)) if len({row["setting"] for row in rows}) > 1 else set()
    labels = [fill("+".join([part for part in one if part not in shared] or one), 40) for one in named]
    lines = sum(1 + label.count("\n") / 2 for label in labels)
    figure.set_size_inches(3.4 + 0.08 * max(len(line) for label in labels for line in label.splitlines()),
                           1 + 0.35 * lines)
    axes = figure.subplots()
    at = list(range(len(rows)))[::-1]
    means, deviations = ([float(row.get(f"{metric}_{kind}", 0)) for row in rows] for kind in ("mean", "std"))
    axes.errorbar(means, at, xerr=deviations, fmt="o", color=HUES["maavt"], capsize=3)
    axes.set(yticks=at, yticklabels=labels, xlabel=f"{metric}, mean ± std over seeds")
    axes.margins(y=0.5 / max(len(rows), 1))
    axes.axvline(statistics.fmean(means), color=GREY, linewidth=0.6)


def comparison(figure: Figure, rows: list[dict]) -> None:
    """Accuracy of every model, mean and deviation over seeds: with both modalities (dot), with sound alone (square) and
    picture alone (triangle)."""
    figure.set_size_inches(6.4, 1.3 + 0.45 * len(rows))
    axes, at = figure.subplots(), list(range(len(rows)))[::-1]
    for number, mark, label in (("accuracy", "o", "both"), ("accuracy_audio_only", "s", "sound alone"),
                                ("accuracy_visual_only", "^", "picture alone")):
        full = number == "accuracy"
        for y, row in zip(at, rows, strict=True):
            axes.errorbar(float(row[f"{number}_mean"]), y, xerr=float(row.get(f"{number}_std", 0)), fmt=mark, capsize=3,
                          color=HUES.get(row["model"], GREY), alpha=1 if full else 0.5,
                          label=label if y == at[0] else None)
    axes.set(yticks=at, yticklabels=[row["model"] for row in rows],
             xlabel="accuracy on the test split, mean ± std over seeds")
    axes.margins(y=0.5 / max(len(rows), 1))
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
