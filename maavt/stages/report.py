"""Stage report: one page, data/report/index.html, that opens without a server and shows the result."""

import argparse
import base64
import csv
import io
import json
import sys
from collections import defaultdict
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from maavt.clips import BACKGROUND
from maavt.errors import UserError, run
from maavt.measure import plots
from maavt.params import load_params
from maavt.shards.loader import Loader
from maavt.shards.reader import Reader
from maavt.work import atomic, project_root

matplotlib.use("agg")
INK, HUES = "#1c2b33", ("#2a6f97", "#e07a2f", "#4c956c")
EXAMPLES = 12


def main(arguments: list[str] | None = None) -> None:
    """Draw what the other stages found. Models that params.yaml does not name are left out."""
    argparse.ArgumentParser("maavt report", description=__doc__).parse_args(arguments)
    params, data = load_params(), project_root() / "data"
    try:
        results = [{"name": name, **_result(data, name)} for name in params.models]
        benchmark = {table: _rows(data / "benchmark" / f"{table}.csv") for table in ("parameters", "throughput")}
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename}; run the stages before the report first (dvc repro)") from None
    loader = Loader(Reader.of(params.dataset), "test", batch=1, image_size=min(params.image_size, 224))
    pages = jinja2.Environment(loader=jinja2.PackageLoader("maavt.stages", ""), autoescape=True)
    html = pages.get_template("report.html").render(
        dataset=params.dataset,
        splits=loader.index["splits"],
        rejects=_rows(data / "shards" / params.dataset / "rejects.csv"),
        results=results,
        modalities=picture(modalities, results),
        curves=picture(curves, results),
        benchmark=[(picture(getattr(plots, table), rows), rows) for table, rows in benchmark.items()
                   if rows],
        examples=examples(loader, results[0]["predictions"]),
    )
    with atomic(data / "report" / "index.html") as path:
        path.write_text(html)
    print("data/report/index.html")


def _result(data: Path, name: str) -> dict:
    folder = data / "eval" / name
    predictions = _rows(folder / "predictions.csv")
    classes = _rows(folder / "classes.csv")
    return {
        "metrics": json.loads((folder / "metrics.json").read_text()),
        "classes": classes,
        "predictions": predictions,
        "epochs": {str(path.relative_to(data / "curves" / name / "plots" / "metrics").with_suffix("")): _rows(path)
                   for path in sorted((data / "curves" / name).rglob("*.tsv"))},
        "confusion": picture(confusion, predictions, [row["class"] for row in classes]),
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def picture(draw, *arguments) -> str:
    """What `draw(figure, ...)` draws, as SVG in a data URL."""
    figure = Figure(layout="constrained")
    matplotlib.rcParams.update({"svg.hashsalt": "maavt", "font.size": 9, "text.color": INK, "axes.edgecolor": INK,
                                "axes.spines.top": False, "axes.spines.right": False})
    draw(figure, *arguments)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def modalities(figure: Figure, results: list[dict]) -> None:
    """Accuracy with both modalities beside either one alone."""
    figure.set_size_inches(5.6, 2.6)
    axes = figure.subplots()
    kinds = {"accuracy": "both", "accuracy_audio_only": "audio only", "accuracy_visual_only": "visual only"}
    for place, (key, label) in enumerate(kinds.items()):
        at = np.arange(len(results)) + (place - 1) * 0.27
        bars = axes.bar(at, [result["metrics"][key] for result in results], 0.25, label=label, color=HUES[place])
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
    axes.set(xticks=range(len(results)), xticklabels=[result["name"] for result in results], ylim=(0, 1.12),
             ylabel="accuracy on test pairs")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.2))


def curves(figure: Figure, results: list[dict]) -> None:
    """Loss and accuracy over the epochs; of models that have one, the contrastive loss beside what chance gives."""
    panels = [("train/loss",), ("train/accuracy", "val/accuracy"),
              ("train/contrastive_loss", "train/contrastive_chance")]
    compared = [any(float(row["contrastive_chance"]) for row in result["epochs"].get("train/contrastive_chance", []))
                for result in results]
    panels = panels if any(compared) else panels[:2]
    figure.set_size_inches(3.8 * len(panels), 2.6)
    for axes, names in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for number, result in enumerate(results):
            if names[0] == "train/contrastive_loss" and not compared[number]:
                continue
            for style, name in zip(("-", "--") if len(names) > 1 else ("-",), names, strict=True):
                rows = result["epochs"].get(name, [])
                axes.plot([int(row["step"]) + 1 for row in rows], [float(row[name.split("/")[1]]) for row in rows],
                          style, marker=".", color=HUES[number % 3], label=f"{result['name']}, {name}")
        axes.set(xlabel="epoch", ylabel=names[0].split("/")[1])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=8)


def confusion(figure: Figure, predictions: list[dict[str, str]], classes: list[str]) -> None:
    """Which class is taken for which: shares of each true class."""
    number = {label: place for place, label in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)))
    for row in predictions:
        counts[number[row["label"]], number[row["predicted"]]] += 1
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    few = len(classes) <= 40
    figure.set_size_inches(*(2 * [min(max(3.2, 0.42 * len(classes) + 1.6), 12)]))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="label")
    axes.spines[:].set_visible(False)
    if few:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), classes)
    for (y, x), share in np.ndenumerate(shares) if len(classes) <= 16 else ():
        if counts[y, x]:
            axes.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=6.5,
                      color="white" if share > 0.5 else INK)


def examples(loader: Loader, predictions: list[dict[str, str]]) -> list[dict]:
    """Some test pairs to look at, right and wrong ones: picture, spectrogram, label and prediction."""
    said = {(row["key"], float(row["second"])): row for row in predictions}
    chosen: dict[tuple[str, bool], list[dict]] = defaultdict(list)
    for batch in loader.in_order():
        row = said[batch.keys[0], batch.seconds[0]]
        kept = chosen[row["label"], row["label"] == row["predicted"]]
        if len(kept) < 2 and (not kept or kept[-1]["key"] != row["key"]):
            kept.append({**row, "right": row["label"] == row["predicted"],
                         "frame": _png(batch.frames[0].permute(1, 2, 0).numpy()),
                         "spectrogram": _png(batch.spectrograms[0].float().numpy().T[::-1])})
    groups = sorted(chosen.values(), key=lambda group: (group[0]["right"], group[0]["label"] == BACKGROUND))
    wrong = [row for group in groups for row in group if not row["right"]][: EXAMPLES // 3]
    right = [row for group in groups for row in group[:1] if row["right"]]
    right += [row for group in groups for row in group[1:] if row["right"]]
    return wrong + right[: EXAMPLES - len(wrong)]


def _png(pixels: np.ndarray) -> str:
    with io.BytesIO() as buffer:
        matplotlib.image.imsave(buffer, pixels, format="png", cmap="magma")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


if __name__ == "__main__":
    sys.exit(run(main))
