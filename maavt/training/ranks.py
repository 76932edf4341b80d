"""Several processes of one machine that train a model together, each on its share of every batch.

b pairs of one process, B pairs of the whole batch: those of the first process, then those of the second, and so on.
"""

import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maavt.errors import UserError
from maavt.training.runtime import device_name, pick_device
from maavt.work import default_workers, positive
from maavt.workers import children

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
PATIENCE = 5.0  # seconds


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it: which it is, and how many they are.

    One that is alone uses nothing of torch.distributed.
    """

    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are the means over all processes; it begins with the first one's weights.

        Batch norms see the whole batch, which needs GPUs. Raises UserError without them.
        """
        if self.ranks == 1:
            return model
        norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        if norms and next(model.parameters()).device.type == "cpu":
            raise UserError(f"MAAVT_PROCESSES={self.ranks}: the batch norms of this model see a whole batch on GPUs "
                            "alone, not in several processes on a CPU; expected MAAVT_PROCESSES=1, or a model "
                            "without batch norms")
        # Every trained parameter has a gradient in every batch (a test holds the models to it), so none is looked for.
        return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), gradient_as_bucket_view=True)

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors (b, F) of each process, F of any width, as those of all (B, F), by one collective in float32.

        A loss of the whole batch, which each process computes alike from them, has the gradients that one process
        with all pairs would have. Nothing here waits for the device.
        """
        if self.ranks == 1:
            return list(tensors)
        whole = _Gather.apply(torch.cat([tensor.float() for tensor in tensors], 1), self)
        return list(whole.split([tensor.shape[1] for tensor in tensors], 1))

    def sum(self, numbers: Tensor) -> Tensor:
        """Numbers, on the device, added up over all processes."""
        if self.ranks > 1:
            numbers = numbers.clone()
            dist.all_reduce(numbers)
        return numbers


ALONE = Team()


class _Gather(torch.autograd.Function):
    """Rows of each process (b, F) -> those of all (B, F)."""

    @staticmethod
    def forward(ctx, own: Tensor, team: Team) -> Tensor:
        ctx.team = team
        each = [torch.empty_like(own) for _ in range(team.ranks)]
        dist.all_gather(each, own)
        return torch.cat(each)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        # The whole loss is computed in every process, so its gradient is here already; DistributedDataParallel
        # takes the mean over the processes where the pairs of each add their part: hence the factor.
        return gradient.chunk(ctx.team.ranks)[ctx.team.rank] * ctx.team.ranks, None


def wanted_processes(batch: int) -> int:
    """MAAVT_PROCESSES, or 1. Raises UserError when they cannot share out a batch, or the GPUs that are here."""
    number = positive("MAAVT_PROCESSES", 1)
    if number == 1:
        return 1
    name = device_name()
    if name not in ("cpu", "cuda"):
        raise UserError(f"MAAVT_DEVICE={name} with MAAVT_PROCESSES={number}; expected cpu, or cuda for one GPU each")
    if name == "cuda" and number > (here := torch.cuda.device_count()):
        raise UserError(f"MAAVT_PROCESSES={number} needs as many GPUs, and there are {here}; set it lower, or set "
                        "MAAVT_DEVICE=cpu")
    if batch % number:
        raise UserError(f"MAAVT_PROCESSES={number} does not divide train.batch ({batch}), which the processes share; "
                        "expected a number that does")
    return number


def launch(work: Callable[..., Any], processes: int, folder: Path, *arguments: Any) -> Any:
    """work(team, *arguments) in that many processes at once; returns what the first of them returns.

    An error of one of them is raised here, and UserError when one dies. None of them is left when this ends, however it
    ends, or when this process has died. `folder` is for what they need to find one another.
    """
    if processes == 1:
        return work(ALONE, *arguments)
    crew = {}
    with TemporaryDirectory(dir=folder, prefix="rendezvous-") as meeting:  # a new one: a killed run left its own
        try:
            for rank in range(processes):
                with children.uninterrupted():
                    crew[rank] = children.start(f"maavt rank {rank}", _take_part, work, Team(rank, processes),
                                                f"{meeting}/store", arguments)
            return _outcome(crew)
        finally:
            for process, _ in crew.values():
                process.kill()
            for process, pipe in crew.values():
                children.end(process, pipe)


def _outcome(crew: dict[int, tuple[children.Process, connection.Connection]]) -> Any:
    """Wait for all; raise at once what a user can mend. Any other error may come of the death of another process, which
    is waited for a little."""
    waiting = {pipe: rank for rank, (_, pipe) in crew.items()}
    processes, results, failure, end = len(crew), {}, None, None
    while waiting:
        ready = connection.wait(list(waiting), None if end is None else max(end - time.monotonic(), 0))
        if not ready:
            break
        for pipe in ready:
            rank = waiting.pop(pipe)
            try:
                kind, value = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                process, pipe = crew.pop(rank)
                who = f"training process {rank + 1} of {processes} ({process.pid})"
                raise UserError(f"{who} {children.fate(children.end(process, pipe))}; what was finished is kept, run "
                                "the same command again to go on") from None
            if kind == "result":
                results[rank] = value
            elif isinstance(value, UserError | OSError):
                raise value
            elif failure is None:
                failure, end = value, time.monotonic() + PATIENCE
    if failure is not None:
        raise failure
    return results[0]


def _take_part(pipe: connection.Connection, work: Callable, team: Team, store: str, arguments: tuple) -> None:
    """The life of one of several processes."""
    children.die_with_parent()
    sys.stdout.reconfigure(line_buffering=True)  # it may be killed
    try:
        _share_machine(team)
        if device_name() == "cuda":
            os.environ["MAAVT_DEVICE"] = f"cuda:{team.rank}"
        device, backend = pick_device(), "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "nccl"
        dist.init_process_group(backend, store=dist.FileStore(store, team.ranks), rank=team.rank,
                                world_size=team.ranks, device_id=device if backend == "nccl" else None)
        result = work(team, *arguments)
        dist.destroy_process_group()
        message = children.pack("result", result if team.first else None)
    except Exception as error:
        message = children.pack("error", error)
    pipe.send_bytes(message)


def _share_machine(team: Team) -> None:
    """Each process computes and decodes in its share of the threads, and all talk on this machine alone."""
    torch.set_num_threads(max(torch.get_num_threads() // team.ranks, 1))
    os.environ["MAAVT_WORKERS"] = str(max(default_workers() // team.ranks, 1))
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", LOOPBACK)
