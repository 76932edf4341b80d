"""What is fastest on this CPU: measured once, written down, and the same ever after, so that results repeat.

The measurement lies in the user's cache, so that all projects on a machine go by the same one. A name is that of the
CPU, its instruction set and torch's version: what was measured elsewhere, or with another torch, is measured anew.

B batch, N tokens, D width, H heads.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from maavt.models.choice import CHOSEN, Choice
from maavt.models.inference import Linear, multiplies_bf16
from maavt.models.vit import fused_attention, plain_attention, split_heads
from maavt.work import atomic, processor

SHAPES = ((2, 208), (6, 62))  # streams and tokens: at 224 and at 98 pixels
WIDTH, HEADS, HIDDEN = 384, 6, 1536  # of a ViT-Small
ROUNDS = 5
GAIN = 0.9  # the usual way stays unless another takes less than this share of its time: no choice hangs on noise


def cpu() -> str:
    """The CPU's name and its instruction set, as far as torch uses it: 'AMD EPYC, AVX2'."""
    matrix = " with AMX" if torch.cpu._is_amx_tile_supported() else \
        " with bf16" if torch.cpu._is_avx512_bf16_supported() else ""
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}{matrix}"


@lru_cache(1)
def calibrated() -> tuple[torch.dtype, Path | None]:
    """The number type for this CPU, and the file that says why; the models choose by it from now on.

    Where nothing can be written nothing is measured, since it could differ the next time: float32, by the usual ways.
    """
    try:
        path = _folder() / f"{re.sub(r'[^a-z0-9.]+', '-', f'{cpu()} torch {torch.__version__}'.lower())}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # processes that train together must not each measure
            found = _read(path)
            if found is None:
                with torch.random.fork_rng(devices=[]):  # a seed that was set makes the same numbers afterwards
                    found = measure()
                with atomic(path) as temporary:
                    temporary.write_text(json.dumps(found, indent=1) + "\n")
    except OSError:
        return torch.float32, None
    CHOSEN.update({getattr(torch, kind): Choice(**chosen) for kind, chosen in found["chosen"].items()})
    return getattr(torch, found["dtype"]), path


def describe(kind: torch.dtype) -> str:
    """How this CPU computes a number type, in a line, and where that stands."""
    _, path = calibrated()
    ways = CHOSEN.get(kind, Choice())
    names, laid = {True: "by one kernel", False: "by products"}, "laid out for oneDNN" if ways.pack else "as they are"
    return (f"{cpu()}: {_name(kind)}; attention {names[ways.fused_inference]} in inference, "
            f"{names[ways.fused_training]} in training; weights {laid} "
            f"({f'measured once, {path}' if path else 'not measured, for want of a folder to write to'})")


def _folder() -> Path:
    """The user's cache. Raises OSError without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maavt" / "machine"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def _read(path: Path) -> dict | None:
    """What was measured, or None where it is missing or no longer understood."""
    try:
        found = json.loads(path.read_text())
        for chosen in found["chosen"].values():
            Choice(**chosen)
        return found if found["dtype"] in found["chosen"] else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def measure() -> dict:
    """The fastest ways by number type, the fastest type, and the milliseconds that say so (the best of some rounds in
    turns)."""
    kinds = [torch.float32] + ([torch.bfloat16] if multiplies_bf16() else [])
    work = {(_name(kind), task, way): step for kind in kinds for (task, way), step in _work(kind).items()}
    best = dict.fromkeys(work, float("inf"))
    for _ in range(ROUNDS):
        for what, step in work.items():
            begin = time.perf_counter()
            step()
            best[what] = min(best[what], time.perf_counter() - begin)
    chosen, whole = {}, {}
    for kind in map(_name, kinds):
        def wins(task: str, usual: str, other: str, kind=kind) -> bool:
            return best[kind, task, other] < GAIN * best[kind, task, usual]

        chosen[kind] = {"fused_inference": not wins("attention, inference", "fused", "plain"),
                        "fused_training": not wins("attention, training", "fused", "plain"),
                        "pack": wins("mlp, inference", "as it is", "packed")}
        tasks = {task for own, task, _ in best if own == kind}
        whole[kind] = sum(min(seconds for (own, other, _), seconds in best.items() if (own, other) == (kind, task))
                          for task in tasks)
    fast = "bfloat16" if whole.get("bfloat16", float("inf")) < GAIN * whole["float32"] else "float32"
    return {"cpu": cpu(), "torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": fast,
            "chosen": chosen, "milliseconds": {", ".join(what): round(1000 * least, 3) for what, least in best.items()}}


def _work(kind: torch.dtype) -> dict[tuple[str, str], Callable[[], object]]:
    """What is timed for a number type, by task and way; every task counts in the choice of the type."""
    qkv = [torch.randn(streams, tokens, 3 * WIDTH).to(kind) for streams, tokens in SHAPES]
    wide, narrow = ((torch.randn(size) * size[1]**-0.5).to(kind) for size in ((HIDDEN, WIDTH), (WIDTH, HIDDEN)))
    zeros = [torch.zeros(size).to(kind) for size in (HIDDEN, WIDTH)]
    x = torch.randn(SHAPES[0][0] * SHAPES[0][1], WIDTH).to(kind)

    def attention(kernel: Callable, train: bool) -> None:
        for one in qkv:
            with torch.set_grad_enabled(train):
                made = kernel(*split_heads(one.detach().requires_grad_(train), 3, HEADS))
                if train:
                    made.backward(made.detach())

    def mlp(pack: bool) -> Callable[[], object]:
        first, second = (Linear(weight, bias, kind, pack=False)
                         for weight, bias in zip((wide, narrow), zeros, strict=True))
        for layer in (first, second) if pack else ():
            layer.lay_out()
        return torch.inference_mode()(lambda: second(first(x, "gelu"), add=x))

    def train_mlp() -> None:
        y = x.detach().requires_grad_()
        F.linear(F.gelu(F.linear(y, wide, zeros[0])), narrow, zeros[1]).backward(x)

    return {
        **{(f"attention, {'training' if train else 'inference'}", way): lambda kernel=kernel, train=train:
           attention(kernel, train) for train in (False, True)
           for way, kernel in (("fused", fused_attention), ("plain", plain_attention))},
        ("mlp, inference", "as it is"): mlp(False),
        ("mlp, inference", "packed"): mlp(True),
        ("mlp, training", "as it is"): train_mlp,
    }


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
