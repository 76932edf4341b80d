"""Charts of the benchmark, the ablations and the comparison. Every function draws rows of a table on a figure."""

import io
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from textwrap import fill

from markupsafe import escape
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from maavt.work import atomic

# A model has one colour in every chart and in the report, and nothing else has it.
HUES = {"maavt": "#2a6f97", "maavt_merge16": "#1b4a66", "maavt_depth75": "#1b4a66", "maavt_depth75_merge16": "#1b4a66",
        "maavt_paper": "#7fb2d1", "paper": "#7fb2d1", "linear": "#8d6b94", "lavish": "#b8860b",
        "lavish_deep": "#dcb85a", "mbt": "#4c956c"}
INK, GREY = "#1c2b33", "#9aa5ab"
INT8 = "_int8"  # ends the name of a benchmark row that is measured in int8
TIP = "tip-"


def tip(artist: Artist, text: str) -> None:
    """Show `text` while the mouse is over a part of a chart."""
    artist.set_gid(TIP + text.encode().hex())


def svg_text(draw: Callable, *arguments, **options) -> str:
    """The SVG that `draw(figure, ...)` draws, equal to the byte for equal numbers; tips become <title> elements."""
    figure = Figure(layout="constrained")
    draw(figure, *arguments)
    with io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
        drawn = buffer.getvalue()
    return re.sub(rf'<g id="{TIP}(\w+)">',
                  lambda found: f"<g><title>{escape(bytes.fromhex(found[1]).decode())}</title>", drawn)


def save(path: Path, draw: Callable, *arguments) -> None:
    """Write the SVG that `draw(figure, ...)` draws."""
    drawn = svg_text(draw, *arguments)
    with atomic(path) as temporary:
        temporary.write_text(drawn)


def throughput(figure: Figure, rows: list[dict]) -> None:
    """Samples per second of every model: a panel per backbone and mode, at the largest batch, whiskers over rounds."""
    panels: dict[tuple, list[dict]] = {}
    for row in rows[::-1]:
        panels.setdefault((row["backbone"], row["mode"]), []).append(row)
    for key, own in panels.items():
        largest = max(int(row["batch"]) for row in own)
        panels[key] = [row for row in own if int(row["batch"]) == largest]
    heights = [len(own) + 1 for own in panels.values()]
    figure.set_size_inches(3.9, 0.19 * sum(heights) + len(panels) + 0.2)
    grid = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[::-1, 0]
    for axes, ((backbone, mode), own) in zip(grid, panels.items(), strict=True):
        for row in own:
            rate, slowest, fastest = (float(row[key]) for key in ("samples_per_second", "slowest", "fastest"))
            bars = axes.barh(row["model"], rate, 0.7, color=HUES.get(row["model"].removesuffix(INT8), GREY))
            tip(bars[0], f"{row['model']}: {rate:g} samples per second ({slowest:g} to {fastest:g}), {row['dtype']}")
            axes.plot([slowest, fastest], [row["model"]] * 2, color=INK, linewidth=0.8)
            axes.annotate(f"{rate:.3g}", (max(rate, fastest), row["model"]), (4, 0), textcoords="offset points",
                          va="center", fontsize=8)
        first = own[-1]
        facts = f"{first['image_size']} px, batch {first['batch']}, {first['dtype']}, {first['device']}"
        axes.set_title(f"{mode}, {backbone}\n{fill(facts, 38)}", fontsize=8, loc="right")
        axes.margins(x=0.15, y=0.5 / len(own))
        axes.set_xlim(0)
        axes.tick_params(axis="y", labelsize=8)
    grid[0].set_xlabel("samples per second")


def parameters(figure: Figure, rows: list[dict]) -> None:
    """Trainable parameters of every model and backbone, and the paper's number (ring)."""
    figure.set_size_inches(3.9, 3.4)
    axes = figure.subplots()
    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    for place, model in enumerate(models):
        for number, row in enumerate(row for row in rows if row["model"] == model):
            at = backbones.index(row["backbone"]) + (place - (len(models) - 1) / 2) * 0.8 / len(models)
            millions, paper = float(row["trainable"]) / 1e6, row["paper_trainable_m"]
            bars = axes.bar(at, millions, 0.75 / len(models), color=HUES.get(model, GREY),
                            label="" if number else model)
            tip(bars[0], f"{model}, {row['backbone']}: {millions:.3g} million trainable parameters"
                         + (f" ({paper} in the paper)" if paper else ""))
            if paper:
                axes.plot(at, float(paper), "o", mfc="none", color=INK, markersize=5)
    axes.set(xticks=range(len(backbones)), yscale="log", ylabel="trainable parameters, millions")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticklabels([name.removesuffix("_patch16_224").removeprefix("vit_") for name in backbones])
    figure.legend(frameon=False, ncols=3, fontsize=8, loc="outside upper center")


def ablation(figure: Figure, rows: list[dict], metric: str) -> None:
    """Mean and standard deviation over seeds of every setting of an ablation; labels omit what all share."""
    named = [row["setting"].split("+") for row in rows]
    shared = set.intersection(*map(set, named)) if len({row["setting"] for row in rows}) > 1 else set()
    labels = [fill("+".join([part for part in one if part not in shared] or one), 40) for one in named]
    lines = sum(1 + label.count("\n") / 2 for label in labels)
    figure.set_size_inches(3.4 + 0.08 * max(len(line) for label in labels for line in label.splitlines()),
                           1 + 0.35 * lines)
    axes = figure.subplots()
    at = list(range(len(rows)))[::-1]
    means, stds = ([float(row.get(f"{metric}_{kind}", 0)) for row in rows] for kind in ("mean", "std"))
    axes.errorbar(means, at, xerr=stds, fmt="o", color=HUES["maavt"], capsize=3)
    axes.set(yticks=at, yticklabels=labels, xlabel=f"{metric}, mean ± standard deviation over seeds")
    axes.margins(y=0.5 / max(len(rows), 1))
    axes.axvline(statistics.fmean(means), color=GREY, linewidth=0.6)


def comparison(figure: Figure, rows: list[dict]) -> None:
    """Accuracy of every model, mean and standard deviation over seeds: with both modalities (dot), audio only (square)
    and visual only (triangle). A dashed line is the chance level, where rows have one."""
    figure.set_size_inches(6.4, 1.3 + 0.45 * len(rows))
    axes, at = figure.subplots(), list(range(len(rows)))[::-1]
    for number, mark, label in (("accuracy", "o", "both modalities"), ("accuracy_audio_only", "s", "audio only"),
                                ("accuracy_visual_only", "^", "visual only")):
        for y, row in zip(at, rows, strict=True):
            axes.errorbar(float(row[f"{number}_mean"]), y, xerr=float(row.get(f"{number}_std", 0)), fmt=mark, capsize=3,
                          color=HUES.get(row["model"], GREY), alpha=1 if number == "accuracy" else 0.5,
                          label=label if y == at[0] else None)
    if "chance" in rows[0]:
        axes.axvline(float(rows[0]["chance"]), color=GREY, linestyle="--", linewidth=1, label="chance level")
    axes.set(yticks=at, yticklabels=[row["model"] for row in rows], xlim=(0, 1.02),
             xlabel="accuracy on the test split, mean ± standard deviation over seeds")
    axes.margins(y=0.5 / len(rows))
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
