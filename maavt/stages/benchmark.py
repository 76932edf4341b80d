"""Stage benchmark: parameters counted and samples per second measured -> data/benchmark.

parameters.csv stands beside Table 7 of the supplement, throughput.csv beside Table 9. `maavt` is the model of the
settings; `maavt_merge16` merges patches (maavt.merge), `maavt_depth75` has three quarters of the blocks (maavt.depth,
read after three of them), both whatever the settings say of these two; `maavt_paper` is MA-AVT as published, of which
maavt_plain and matmul_limit are other forms; `maavt_int8` and the like, where the CPU can do that, are the models with
MAAVT_DTYPE=int8. Speeds depend on the machine: compare them by their ratios within one file. attention.csv has both
attention kernels, and which of them the models take here.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from maavt.measure import plots
from maavt.measure.memory import peak_in_child, peak_on_gpu
from maavt.measure.paper import paper_row
from maavt.measure.reference import BackboneFloor, PlainMAAVT, matmul_limit
from maavt.models import create_model, model_settings
from maavt.models.backbone import create_backbone
from maavt.models.choice import multiplies_int8, use_int8
from maavt.models.vit import count, fused_attention, plain_attention, prefers_fused, split_heads, train_only
from maavt.params import Params, load_params
from maavt.progress import progress
from maavt.training import machine
from maavt.training.losses import losses
from maavt.training.runtime import compute_type, pick_device, place
from maavt.work import project_root, write_table

CLASSES = 28  # AVE, as in the paper's counts
IN21K_CLASSES = 21_843  # the head of the ImageNet-21k checkpoints that the paper's totals include
TABLE_7 = tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))
MODELS = {"maavt": ("maavt", {}), "maavt_paper": ("maavt", {}),  # by the recipe `paper`
          "linear": ("linear", {}),
          "lavish": ("lavish", {}), "lavish_deep": ("lavish", {"expansion": 3}),
          "mbt": ("mbt", {})}  # what a row is called -> the model and settings of its own
SHORT = {"depth": 0.75, "head_blocks": 3, "merge": 0}
FASTER = {"maavt_merge16": ("maavt", {"depth": 1, "merge": 16}), "maavt_depth75": ("maavt", SHORT),
          "maavt_depth75_merge16": ("maavt", {**SHORT, "merge": 16})}
INT8 = "_int8"  # what a row's name ends with whose products of inference are in int8
AS_PUBLISHED = ("maavt_plain", "matmul_limit")  # other forms of maavt_paper
RUNS = {
    "inference": ("maavt", *FASTER, "maavt_paper", "linear", "lavish", "mbt", "maavt_plain", "backbone_floor",
                  "matmul_limit", *(name + INT8 for name in ("maavt", "maavt_depth75", "lavish", "mbt"))),
    "training": ("maavt", *FASTER, "maavt_paper", "linear", "lavish", "mbt", "maavt_plain"),
}

NOT_MEASURED = {  # the columns of a table without rows
    "attention": ("backbone", "device", "dtype", "tokens", "kernel", "mode", "milliseconds", "chosen"),
    "throughput": ("model", "backbone", "device", "dtype", "mode", "batch", "samples_per_second", "ratio_to_lavish",
                   "peak_memory_mb", "paper_samples_per_second"),
}


def main(arguments: list[str] | None = None) -> None:
    """Count the parameters of every model, and time every model on every backbone of the settings."""
    argparse.ArgumentParser("maavt benchmark", description=__doc__).parse_args(arguments)
    params, folder, device = load_params(), project_root() / "data" / "benchmark", pick_device()
    if device.type == "cpu":
        print(machine.describe(compute_type(device)))
    backbones = dict.fromkeys((*TABLE_7, *params.benchmark.backbones))
    tables = {
        "parameters": [count_parameters(name, backbone, params) for backbone in backbones for name in MODELS],
        "attention": measure_attention(params) if params.benchmark.rounds else [],
        "throughput": [row for backbone in params.benchmark.backbones for row in measure(backbone, params)]
        if params.benchmark.rounds else [],
    }
    for table, rows in tables.items():
        write_table(folder / f"{table}.csv", rows[0] if rows else NOT_MEASURED[table], rows)
    for draw in (plots.parameters, plots.throughput):
        rows = tables[draw.__name__]
        plots.save(folder / f"{draw.__name__}.svg", draw if rows else lambda *_: None, rows)


def create(name: str, backbone: str, params: Params, **options) -> nn.Module:
    """A model with random weights, for as many classes as AVE has."""
    model, changes = (MODELS | FASTER)[name.removesuffix(INT8)]
    params = replace(params, recipe="paper").resolved() if name == "maavt_paper" else params
    settings = {**model_settings(model, params, classes=CLASSES, background=True), **changes}
    return create_model(model, create_backbone(backbone, **options), settings)


def count_parameters(name: str, backbone: str, params: Params) -> dict:
    """A row of parameters.csv: numbers for 28 classes, and the paper's in millions where it has them.

    total_as_in_paper is what is trained + one frozen ViT with its ImageNet-21k head; MBT, whose ViTs are trained, is in
    no table of the paper and has that head once as well.
    """
    with torch.device("meta"):  # counting needs no numbers
        model = create(name, backbone, params, initialised=False)
        vit = create_backbone(backbone, initialised=False)
    trainable = count(train_only(model, model.trained()))
    discarded = sum(count(getattr(model, part).parameters()) for part in model.training_only())
    loaded = count(model.parameters()) - discarded
    frozen = count(vit.parameters()) if loaded > trainable else 0
    paper = paper_row("7", published(name, params), backbone)
    return {
        "model": name,
        "backbone": backbone,
        "trainable": trainable,
        "total_loaded": loaded,
        "total_as_in_paper": trainable + frozen + (vit.embed_dim + 1) * IN21K_CLASSES,
        "paper_total_m": paper.get("total_params_m", ""),
        "paper_trainable_m": paper.get("trainable_params_m", ""),
    }


@dataclass
class Run:
    """One thing to be timed: `step` is one batch of it."""

    model: str
    mode: str
    batch: int
    step: Callable[[], object]
    held: int = 0  # bytes of its weights, gradients and optimiser
    seconds: list[float] = field(default_factory=list)  # per round


def measure(backbone: str, params: Params) -> list[dict]:
    """Rows of throughput.csv for one backbone: all models take turns, round by round, after a round of warm-up.

    No round begins after the budget of seconds, but the first. A batch that does not fit the memory of a GPU is left
    out and said.
    """
    device, settings = pick_device(), params.benchmark
    rows = []
    for batch in settings.batches:
        rounds = device.type == "cpu" and multiplies_int8()
        wanted = [(name, mode) for mode, names in RUNS.items() for name in names if rounds or not name.endswith(INT8)]
        peaks = {}
        if device.type == "cpu":  # each in a process of its own, before this one fills with what is timed
            peaks = {(name, mode): peak_in_child(_alone, name, mode, backbone, batch, params)
                     for name, mode in progress(wanted, label=f"memory, {backbone}, batch {batch}", unit="run")
                     if name != "matmul_limit"}
        runs = [make_run(name, mode, backbone, batch, params, device) for name, mode in wanted]
        end = time.monotonic() + settings.budget_seconds
        with progress(label=f"benchmark, {backbone}, batch {batch}", unit="round", total=settings.rounds + 1) as bar:
            for number in range(settings.rounds + 1):
                for run in list(runs):
                    try:
                        run.seconds.append(_time(run.step, device))
                    except torch.OutOfMemoryError:
                        print(f"{run.model}, {run.mode}: a batch of {batch} does not fit the memory of {device}")
                        runs.remove(run)
                bar.update()
                if number and time.monotonic() > end:
                    break
        for run in runs:
            del run.seconds[0]  # the warm-up
            if device.type == "cuda" and run.model != "matmul_limit":
                peaks[run.model, run.mode] = peak_on_gpu(run.step, device, run.held)
        rows += [_row(run, runs, backbone, peaks.get((run.model, run.mode)), params, device) for run in runs]
        del runs
        gc.collect()
    return rows


def make_run(name: str, mode: str, backbone: str, batch: int, params: Params, device: torch.device) -> Run:
    """A model or reference with random weights, ready to be timed."""
    torch.manual_seed(params.seed)
    kind, size = torch.float32 if name.endswith(INT8) else compute_type(device), params.benchmark.image_size
    frames, sound = torch.randn(batch, 3, size, size, device=device), torch.randn(batch, size, size, device=device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if name == "backbone_floor":
        model = BackboneFloor(create_backbone(backbone, image_size=size, initialised=False).to(device), kind)
    else:
        model = create("maavt_paper" if name in AS_PUBLISHED else name, backbone, params, image_size=size,
                       initialised=False)
        model = model.to(device) if name in AS_PUBLISHED else place(model, device)
    use_int8(name.endswith(INT8))  # whatever MAAVT_DTYPE says: that is what the row is
    if name == "matmul_limit":
        return Run(name, mode, batch, torch.inference_mode()(matmul_limit(model, batch, kind, device)))
    if mode == "training":
        trained = train_only(model, model.trained() + model.training_only())
    model = PlainMAAVT(model, kind) if name == "maavt_plain" else model
    if mode == "inference":
        form = model.eval()
        if hasattr(model, "for_inference"):
            form = model.for_inference(kind)
        del model
        step = torch.inference_mode()(partial(form, frames, sound))
        held = torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0
        return Run(name, mode, batch, step, held)
    model.train()
    labels = torch.arange(batch, device=device) % (CLASSES + 1) - 1
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    for parameter in trained:  # the optimiser's states are there from the first batch on
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    def step() -> None:
        losses(model(frames, sound), labels).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    held = sum(p.numel() * p.element_size() for p in model.parameters()) + 2 * 4 * count(trained)
    return Run(name, mode, batch, step, held)


def measure_attention(params: Params) -> list[dict]:
    """Rows of attention.csv: the kernels on this device at the tokens of the settings, and which the models take."""
    device, settings = pick_device(), params.benchmark
    rows = []
    for backbone in settings.backbones:
        with torch.device("meta"):
            vit = create_backbone(backbone, image_size=settings.image_size)
        tokens, heads = vit.pos_embed.shape[1] + 1 + 2 * params.tokens, vit.blocks[0].attn.num_heads
        qkv = torch.randn(2 * max(settings.batches), tokens, 3 * vit.embed_dim, device=device).to(compute_type(device))

        def run(kernel: Callable, backward: bool, qkv=qkv, heads=heads) -> None:
            with torch.set_grad_enabled(backward):
                out = kernel(*split_heads(qkv.requires_grad_(backward), 3, heads))
                if backward:
                    torch.autograd.grad(out, qkv, torch.ones_like(out))

        kernels = {"fused": fused_attention, "plain": plain_attention}
        times = {(name, backward): [] for backward in (False, True) for name in kernels}
        for _ in range(settings.rounds + 2):
            for (name, backward), seconds in times.items():
                seconds.append(_time(partial(run, kernels[name], backward), device))
        for (name, backward), seconds in times.items():
            with torch.set_grad_enabled(backward):
                chosen = prefers_fused(qkv.requires_grad_(backward)) == (name == "fused")
            rows.append({
                "backbone": backbone, "device": describe(device), "dtype": _dtype(device), "tokens": tokens,
                "kernel": name, "mode": "training" if backward else "inference",
                "milliseconds": f"{1000 * statistics.median(seconds[2:]):.2f}", "chosen": "yes" if chosen else "no",
            })
    return rows


def describe(device: torch.device) -> str:
    """The device as a table shows it: of a CPU its name, instruction set and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{machine.cpu()}, {torch.get_num_threads()} threads"


def _time(step: Callable[[], object], device: torch.device) -> float:
    finish = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    finish()
    begin = time.perf_counter()
    step()
    finish()
    return time.perf_counter() - begin


def _alone(name: str, mode: str, backbone: str, batch: int, params: Params) -> None:
    """One batch in a process of its own."""
    make_run(name, mode, backbone, batch, params, pick_device()).step()


def _row(run: Run, runs: list[Run], backbone: str, peak: float | None, params: Params, device: torch.device) -> dict:
    rates = [run.batch / seconds for seconds in run.seconds]
    told = {name: float(paper_row("9", published(name, params), backbone).get("samples_per_second") or "nan")
            for name in (run.model, "lavish")}

    def ratio_to(other: str) -> str:
        """How much faster this is, by the column of samples per second; int8 beside int8, where that is measured."""
        found = {o.model: _rate(o) for o in runs if o.mode == run.mode}
        rate = found.get(other + INT8 if run.model.endswith(INT8) else other) or found.get(other)
        return f"{_rate(run) / rate:.2f}" if rate else ""

    return {
        "model": run.model,
        "backbone": backbone,
        "device": describe(device),
        "dtype": "int8" if run.model.endswith(INT8) else _dtype(device),
        "mode": run.mode,
        "image_size": params.benchmark.image_size,
        "batch": run.batch,
        "rounds": len(run.seconds),
        "samples_per_second": f"{_rate(run):.2f}",
        "slowest": f"{min(rates):.2f}",
        "fastest": f"{max(rates):.2f}",
        "ratio_to_lavish": ratio_to("lavish"),
        "ratio_to_mbt": ratio_to("mbt"),
        "ratio_to_plain": ratio_to("maavt_plain"),
        "ratio_to_floor": ratio_to("backbone_floor"),
        "ratio_to_limit": ratio_to("matmul_limit"),
        "peak_memory_mb": "" if peak is None or peak != peak else f"{peak:.0f}",
        "paper_samples_per_second": _known(told[run.model]),
        "paper_ratio_to_lavish": _known(told[run.model] / told["lavish"], ".2f"),
    }


def _rate(run: Run) -> float:
    """Samples per second, the median over the rounds, as the table shows it."""
    return round(statistics.median(run.batch / seconds for seconds in run.seconds), 2)


def published(name: str, params: Params) -> str:
    """What the paper calls a row, or "" for one that it cannot have: with `recipe: best` its MA-AVT is maavt_paper."""
    if name == "maavt" and params.recipe != "paper":
        return ""
    return name.removesuffix("_paper")


def _known(number: float, form: str = ".0f") -> str:
    return "" if number != number else format(number, form)


def _dtype(device: torch.device) -> str:
    return str(compute_type(device)).removeprefix("torch.")
