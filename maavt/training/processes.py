"""Several processes that train a model together, each on its share of every batch; torch's launcher starts them.

On one machine MAAVT_PROCESSES says how many. On several machines MAAVT_NODES says how many of these there are, and
MAAVT_RENDEZVOUS=host:port where they meet; the stage is started on each. A stage started by torchrun, or by srun with
MAAVT_RENDEZVOUS set, is one of the processes itself.

b pairs of one process, B pairs of the whole batch: those of the first process, then those of the second, and so on.
"""

import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maavt.errors import UserError, describe
from maavt.training.runtime import device_name, pick_device
from maavt.work import default_workers, positive

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
RESTARTS = 3  # of all processes from the last checkpoint, when one of them dies
AGAIN_LATER = 75  # exit code when somebody else needs the machine: EX_TEMPFAIL of sysexits.h


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
        return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), gradient_as_bucket_view=True,
                                       broadcast_buffers=False)  # they are the same in all processes as they are

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

    def to_first(self, thing: Any) -> list[Any] | None:
        """What each process has, in their order; for the first alone."""
        if self.ranks == 1:
            return [thing]
        things = [None] * self.ranks if self.first else None
        dist.gather_object(thing, things)
        return things

    def of_first(self, make: Callable[[], Any]) -> Any:
        """What make() returns, or the UserError that it raises, in the first process, the only one to call it."""
        if self.ranks == 1:
            return make()
        told = [None]
        if self.first:
            try:
                told = [make()]
            except UserError as error:
                told = [error]
        dist.broadcast_object_list(told)
        if isinstance(told[0], UserError):
            raise told[0]
        return told[0]


ALONE = Team()


def again_later(kept: str) -> SystemExit:
    """Say that a SIGTERM ended the training; to be raised."""
    print(f"stopped by SIGTERM; what is kept goes up to {kept}, run the same command again later to go on",
          file=sys.stderr, flush=True)
    return SystemExit(AGAIN_LATER)


@contextmanager
def preemptible() -> Iterator[None]:
    """A SIGTERM ends this process with AGAIN_LATER, at once where nothing else is said."""
    def end(*_: Any) -> None:
        raise again_later("the last checkpoint")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def launch(work: Callable[..., Any], batch: int, *arguments: Any) -> Any:
    """work(team, *arguments) in as many processes at once as are wanted; returns what the first of them returns, and
    None on a machine that does not have the first.

    When one dies, all begin anew (RESTARTS times), and `work` is to go on from what it has kept. Raises UserError where
    a process did, where they keep dying, and where their number cannot share out a `batch`. None of them is left when
    this ends, however it ends, or when this process has died.
    """
    if joined := _joined():
        try:
            return _take_part(work, batch, joined, None, arguments)
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise UserError(f"training process {joined['rank'] + 1} of {joined['ranks']} lost another one, which says "
                            "why; what was finished is kept, run the same command again to go on") from None
    processes, machines = positive("MAAVT_PROCESSES", 1), positive("MAAVT_NODES", 1)
    _check(processes, machines, batch)
    if processes * machines == 1:
        return work(ALONE, *arguments)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    place = os.environ.get("MAAVT_RENDEZVOUS", "")
    with TemporaryDirectory(prefix="maavt-") as meeting, _ended_by_signals() as interrupted, _unheard():
        there = {"rdzv_endpoint": place}
        if machines == 1:  # a file to meet in, and no port that other machines could reach
            os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
            there = {"rdzv_endpoint": f"{meeting}/store", "rdzv_configs": {"store_type": "file"}}
        if machines == 1 or _loopback(place.rpartition(":")[0]):
            there["local_addr"] = "127.0.0.1"
        config = LaunchConfig(min_nodes=machines, max_nodes=machines, nproc_per_node=processes, run_id="maavt",
                              rdzv_backend="c10d", max_restarts=RESTARTS, logs_specs=DefaultLogsSpecs(log_dir=meeting),
                              signals_to_handle="SIGQUIT",  # its own answer to others leaves other machines waiting
                              **there)
        try:
            results = elastic_launch(config, _child)(work, batch, meeting, machines == 1, arguments)
        except (KeyboardInterrupt, SignalException, ChildFailedError, RendezvousError, RuntimeError) as error:
            if (told := Path(meeting, "error")).exists():
                raise UserError(told.read_text()) from None
            if isinstance(error, KeyboardInterrupt | SignalException):
                raise (KeyboardInterrupt if interrupted.is_set() else again_later("the last checkpoint")) from None
            if isinstance(error, ChildFailedError):
                rank, failure = error.get_first_failure()
                how = f"by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else "by an error"
                trace = told.read_text() if (told := Path(meeting, "failure")).exists() else ""
                raise UserError(f"training process {rank + 1} of {processes * machines} was ended {how}, and so "
                                f"{RESTARTS + 1} times; what was finished is kept, run the same command again to go on"
                                f"\n{trace}".rstrip()) from None
            if machines == 1:
                raise
            if any(Path(meeting).iterdir()):  # the folders of processes that were started
                raise UserError("another machine ended this training, and says why, or is out of reach; what was "
                                "finished is kept, run the same command again on each to go on") from None
            raise UserError(f"MAAVT_RENDEZVOUS={place}: the {machines} machines did not meet there ({error}); is the "
                            "stage started on each, and can they reach that address?") from None
    return results.get(0)


def _check(processes: int, machines: int, batch: int) -> None:
    """Raises UserError when so many processes cannot share out a batch, or the GPUs that are here, or cannot meet."""
    name = device_name()
    if processes > 1 and name not in ("cpu", "cuda"):
        raise UserError(f"MAAVT_DEVICE={name} with MAAVT_PROCESSES={processes}; expected cpu, or cuda for one GPU each")
    if name == "cuda" and processes > (here := torch.cuda.device_count()):
        raise UserError(f"MAAVT_PROCESSES={processes} needs as many GPUs, and there are {here}; set it lower, or set "
                        "MAAVT_DEVICE=cpu")
    if batch % (processes * machines):
        many = f" on each of MAAVT_NODES={machines}" if machines > 1 else ""
        raise UserError(f"MAAVT_PROCESSES={processes}{many} does not divide train.batch ({batch}), which the processes "
                        "share; expected a number that does")
    if machines > 1 and not os.environ.get("MAAVT_RENDEZVOUS"):
        raise UserError(f"MAAVT_NODES={machines} without MAAVT_RENDEZVOUS; expected host:port of one of the machines, "
                        "the same on all")
    if machines > 1:
        _place()


def _place() -> tuple[str, str]:
    """Host and port of MAAVT_RENDEZVOUS."""
    text = os.environ["MAAVT_RENDEZVOUS"]
    if not (found := re.fullmatch(r"(\S+):(\d{1,5})", text)) or int(found[2]) > 65535:
        raise UserError(f"MAAVT_RENDEZVOUS={text!r}: expected host:port of one of the machines, such as first:29500")
    return found[1], found[2]


def _loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def _joined() -> dict[str, int] | None:
    """What torchrun or srun says of this process, where one of them started it with others."""
    if "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        values = [int(os.environ[name]) for name in names]
    elif os.environ.get("MAAVT_RENDEZVOUS") and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = _place()
        values = [int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID")] + [_tasks_here()]
    else:
        return None
    return dict(zip(("rank", "ranks", "local", "locals"), values, strict=True))


def _tasks_here() -> int:
    """How many tasks of srun share the CPUs that this one sees."""
    if "SLURM_CPUS_PER_TASK" in os.environ:  # each is bound to its own
        return 1
    told = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_NTASKS_PER_NODE", "1")  # 4(x2),3
    nodes = [int(tasks) for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", told) for _ in range(int(times or 1))]
    return nodes[min(int(os.environ.get("SLURM_NODEID", 0)), len(nodes) - 1)]


@contextmanager
def _ended_by_signals() -> Iterator[threading.Event]:
    """A Ctrl-C, which sets the event, or the first SIGTERM is a KeyboardInterrupt, which the launcher answers by ending
    the children and the meeting of the machines. Children know no Ctrl-C, which would be a traceback of each."""
    resource_tracker.ensure_running()  # else a child's start does it, and that unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGQUIT)}
    ended, interrupted = threading.Event(), threading.Event()

    def end(number, frame) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # several children may send one, and ending them takes a while
        raise KeyboardInterrupt

    def wait() -> None:
        while not ended.is_set():
            if signal.sigtimedwait({signal.SIGINT}, 0.2):
                interrupted.set()
                os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield interrupted
    finally:
        ended.set()
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _unheard() -> Iterator[None]:
    """The launcher's own log, whose errors are told here in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _child(work: Callable, batch: int, meeting: str, alone: bool, arguments: tuple) -> Any:
    """The life of one of several processes that the launcher started. What a user can mend ends them all at once."""
    threading.Thread(target=_follow, daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # it may be killed
    given = {key: int(os.environ[name]) for key, name in (("rank", "RANK"), ("ranks", "WORLD_SIZE"),
             ("local", "LOCAL_RANK"), ("locals", "LOCAL_WORLD_SIZE"))}
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts and given["rank"] == 0:
        print(f"a training process died: all go on from what is kept (restart {restarts} of {RESTARTS})", flush=True)
    try:
        return _take_part(work, batch, given, f"{meeting}/group-{restarts}" if alone else None, arguments)
    except (UserError, OSError) as error:
        told = Path(meeting, "error")
        if not told.exists():
            told.write_text(str(error) if isinstance(error, UserError) else describe(error))
        os.kill(os.getppid(), signal.SIGTERM)
        raise
    except Exception:
        Path(meeting, "failure").write_text(traceback.format_exc())  # the launcher hands on an exit code alone
        raise


def _follow() -> None:
    """End when the launcher does, however it dies."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _take_part(work: Callable, batch: int, given: dict, store: str | None, arguments: tuple) -> Any:
    team = Team(given["rank"], given["ranks"])
    if batch % team.ranks:
        raise UserError(f"{team.ranks} processes do not divide train.batch ({batch}), which they share")
    _share_machine(given["locals"], loopback=store is not None or _loopback(os.environ["MASTER_ADDR"]))
    if device_name() == "cuda":
        os.environ["MAAVT_DEVICE"] = f"cuda:{given['local']}"
    device, backend = pick_device(), "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    dist.init_process_group(backend, store=store and dist.FileStore(store, team.ranks), rank=team.rank,
                            world_size=team.ranks, device_id=device if backend == "nccl" else None)
    result = work(team, *arguments)
    dist.destroy_process_group()
    return result if team.first else None


def _share_machine(processes: int, *, loopback: bool) -> None:
    """Each process computes and decodes in its share of the threads; those of one machine talk on it alone."""
    torch.set_num_threads(max(torch.get_num_threads() // processes, 1))
    os.environ["MAAVT_WORKERS"] = str(max(default_workers() // processes, 1))
    for library in ("GLOO", "NCCL") if loopback else ():
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", LOOPBACK)
