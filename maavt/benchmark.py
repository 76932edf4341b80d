"""Stage benchmark: parameters counted and samples per second measured -> data/benchmark.

parameters.csv stands beside Table 7 of the supplement, throughput.csv beside Table 9. Speeds depend on the machine:
compare them by their ratios within one file.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from maavt.backbone import create_backbone
from maavt.errors import run
from maavt.losses import losses
from maavt.models import MODELS, create_model, model_settings
from maavt.models.vit import count, train_only
from maavt.params import Params, load_params
from maavt.progress import progress
from maavt.runtime import compute_type, pick_device, place
from maavt.work import project_root, write_table

CLASSES = 28  # AVE, as in the paper's counts
IN21K_CLASSES = 21_843  # the head of the ImageNet-21k checkpoints that the paper's totals include


def main(arguments: list[str] | None = None) -> None:
    """Count and time every model on every backbone of the settings."""
    argparse.ArgumentParser("maavt benchmark", description=__doc__).parse_args(arguments)
    params = load_params()
    folder = project_root() / "data" / "benchmark"
    entries = [(model, backbone) for backbone in params.benchmark.backbones for model in MODELS]
    for table, rows in (("parameters", [count_parameters(*entry, params) for entry in entries]),
                        ("throughput", measure(entries, params))):
        write_table(folder / f"{table}.csv", rows[0], rows)


def _create(name: str, backbone: str, params: Params) -> torch.nn.Module:
    settings = model_settings(name, params, classes=CLASSES, background=True)
    return create_model(name, create_backbone(backbone, image_size=params.benchmark.image_size), settings)


def count_parameters(name: str, backbone: str, params: Params) -> dict:
    """A row of parameters.csv: numbers for 28 classes, and the paper's in millions where it has them."""
    model = _create(name, backbone, params)
    vit = create_backbone(backbone)
    trainable = count(train_only(model, model.trained()))
    discarded = sum(count(getattr(model, part).parameters()) for part in model.training_only())
    published = vit.embed_dim * IN21K_CLASSES + IN21K_CLASSES
    paper = _paper("7", name, backbone)
    return {
        "model": name,
        "backbone": backbone,
        "trainable": trainable,
        "total_loaded": count(model.parameters()) - discarded,
        "total_as_in_paper": trainable + count(vit.parameters()) + published,
        "paper_total_m": paper.get("total_params_m", ""),
        "paper_trainable_m": paper.get("trainable_params_m", ""),
    }


def measure(entries: list[tuple[str, str]], params: Params) -> list[dict]:
    """Rows of throughput.csv: medians over rounds in which all entries take turns, after one round of warm-up."""
    device = pick_device()
    runs = [(name, backbone, mode, step) for name, backbone in entries
            for mode, step in _steps(_create(name, backbone, params), params, device)]
    seconds: list[list[float]] = [[] for _ in runs]
    with progress(label="benchmark", unit="run", total=len(runs) * (params.benchmark.rounds + 1)) as bar:
        for _ in range(params.benchmark.rounds + 1):
            for (*_, step), times in zip(runs, seconds, strict=True):
                times.append(_time(step, device))
                bar.update()
    return [_row(name, backbone, mode, times[1:], params, device)
            for (name, backbone, mode, _), times in zip(runs, seconds, strict=True)]


def _steps(model: torch.nn.Module, params: Params, device: torch.device) -> list[tuple[str, Callable[[], object]]]:
    batch, size = params.benchmark.batch, params.benchmark.image_size
    place(model, device)
    optimizer = torch.optim.AdamW(train_only(model, model.trained() + model.training_only()), lr=1e-4, fused=True)
    frames, sound = torch.randn(batch, 3, size, size, device=device), torch.randn(batch, size, size, device=device)
    labels = torch.arange(batch, device=device) % (CLASSES + 1) - 1

    def inference():
        model.eval()
        with torch.inference_mode():
            model(frames, sound)

    def training():
        model.train()
        losses(model(frames, sound), labels).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return [("inference", inference), ("training", training)]


def _time(step: Callable[[], object], device: torch.device) -> float:
    finish = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    finish()
    begin = time.perf_counter()
    step()
    finish()
    return time.perf_counter() - begin


def _row(name: str, backbone: str, mode: str, times: list[float], params: Params, device: torch.device) -> dict:
    rates = [params.benchmark.batch / seconds for seconds in times]
    return {
        "model": name,
        "backbone": backbone,
        "device": _describe(device),
        "dtype": str(compute_type(device)).removeprefix("torch."),
        "mode": mode,
        "image_size": params.benchmark.image_size,
        "batch": params.benchmark.batch,
        "samples_per_second": f"{statistics.median(rates):.2f}",
        "slowest": f"{min(rates):.2f}",
        "fastest": f"{max(rates):.2f}",
        "paper_samples_per_second": _paper("9", name, backbone).get("samples_per_second", ""),
    }


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _paper(table: str, model: str, backbone: str) -> dict:
    """The paper's row for a model on a plain 16-pixel ViT (its `vit_base` is timm's vit_base_patch16_224...)."""
    family, _, rest = backbone.partition("_patch16_224")
    with open(Path(__file__).parent / "paper.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["table"], row["model"], row["backbone"]) ==
                (table, model, family) and backbone != family and not rest.startswith("_")]
    return rows[0] if rows else {}


if __name__ == "__main__":
    sys.exit(run(main))
