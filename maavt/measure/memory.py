"""How much memory one piece of work takes at most, above what the process held before."""

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

MEGABYTE = 1 << 20


def peak_in_child(work: Callable[..., object], *arguments) -> float:
    """MB that `work(*arguments)` takes at most on the CPU, measured in a process of its own that has the libraries
    loaded and nothing else. nan where the system does not tell (it is not Linux)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maavt.stages.benchmark"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(theirs, work, arguments))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"a benchmark process ended with exit code {child.exitcode} before it had measured its "
                           "memory; out of memory is the usual reason, a smaller batch the cure") from None
    finally:
        child.join()


def _measure(pipe, work: Callable, arguments: tuple) -> None:
    before = _resident("VmRSS")
    work(*arguments)
    pipe.send((_resident("VmHWM") - before) / MEGABYTE)


def _resident(key: str) -> float:
    """Bytes of memory that the process holds (VmRSS), or has held at most (VmHWM)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return float("nan")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def peak_on_gpu(work: Callable[[], object], device: torch.device, held: int) -> float:
    """MB that `work` takes at most on a GPU, with the `held` bytes of its own weights and states."""
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before + held) / MEGABYTE
