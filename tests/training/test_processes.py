"""Several processes that train together: real ones, which talk through gloo."""

import os
import select
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from torch import nn

from maavt.errors import UserError
from maavt.training import processes
from maavt.training.processes import ALONE, Team, launch
from tests.conftest import free_port

FOREGROUND, BACKGROUND = [0, 1, 2, 3, 2, 1], [-1] * 6
MIXED = [3, -1, 2, -1, -1, -1]  # of two processes the second sees background alone
MODELS = [
    ("maavt", {"background": True}, [MIXED, BACKGROUND, FOREGROUND]),
    ("maavt", {"background": True, "contrastive": "final", "projector": "linear", "lsa": False}, [MIXED]),
    ("maavt", {"background": False, "contrastive": "off", "unimodal_prompts": False}, [FOREGROUND]),
    ("maavt", {"background": True, "lora_rank": 2, "bottleneck": 3}, [MIXED]),
    ("linear", {"background": True}, [MIXED, BACKGROUND]),
    ("lavish", {"background": True, "batch_norm": False, "expansion": 1}, [MIXED, BACKGROUND]),
    ("mbt", {"background": True}, [MIXED, BACKGROUND]),
    ("mbt", {"background": False, "fusion_layer": 3}, [FOREGROUND]),
]


def losses_and_gradients(team: Team) -> list[dict[str, torch.Tensor]]:
    """Of every model and batch above."""
    import timm

    from maavt.models import create_model
    from maavt.models.vit import train_only
    from maavt.training.losses import losses, whole_batch

    found = []
    for name, settings, batches in MODELS:
        torch.manual_seed(0)
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=0)
        model = create_model(name, vit, {"classes": 4, **settings})
        trained = train_only(model, model.trained() + model.training_only())
        with torch.no_grad():  # nothing begins at zero, as LAVISH's gates do
            for parameter in trained:
                parameter += torch.randn_like(parameter) * 0.1
        parallel = team.parallel(model.train())
        for labels in batches:
            frames, sound = torch.randn(6, 3, 32, 32), torch.randn(6, 32, 32)
            mine = slice(*(6 * number // team.ranks for number in (team.rank, team.rank + 1)))
            labels = torch.tensor(labels)
            output, labels, _ = whole_batch(parallel(frames[mine], sound[mine]), labels[mine], team.gather)
            parts = losses(output, labels)
            model.zero_grad()
            parts.total.backward()
            gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
            size = sum(gradient.square().sum() for gradient in gradients.values())
            torch.testing.assert_close(team.sum(size), size * team.ranks)  # they are the same everywhere
            told = torch.stack([parts.classes, parts.background, parts.contrastive])
            found.append({"labels": labels, "losses": told.detach(), "logits": output.logits.detach()} | gradients)
    return found


def check(shared: list[dict], alone: list[dict]) -> None:
    assert len(shared) == len(alone) == sum(len(batches) for *_, batches in MODELS)
    for ours, theirs in zip(shared, alone, strict=True):
        assert ours.keys() == theirs.keys()
        torch.testing.assert_close(ours["labels"], theirs["labels"], rtol=0, atol=0)
        torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_losses_and_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(monkeypatch):
    monkeypatch.setenv("MAAVT_PROCESSES", "2")
    check(launch(losses_and_gradients, 6), losses_and_gradients(ALONE))


def run_code(code: str, **environment: str) -> subprocess.Popen:
    code = ("import sys, torch\nfrom maavt.errors import run\nfrom maavt.training.processes import launch\n"
            f"from tests.training.test_processes import losses_and_gradients, misbehave\n{code}")
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, env=os.environ | environment)


@pytest.mark.long
def test_losses_and_gradients_of_two_machines_are_those_of_one_with_the_whole_batch(tmp_path):
    """Two launchers that meet on loopback, each with one process."""
    where = {"MAAVT_NODES": "2", "MAAVT_RENDEZVOUS": f"127.0.0.1:{free_port()}"}
    machines = [run_code(f"if found := launch(losses_and_gradients, 6): torch.save(found, {str(tmp_path / 'found')!r})",
                         **where) for _ in range(2)]
    for machine in machines:
        _, told = machine.communicate(timeout=120)
        assert machine.returncode == 0, told
    check(torch.load(tmp_path / "found"), losses_and_gradients(ALONE))


@pytest.mark.long
def test_processes_that_torchrun_started_train_together(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import torch\nfrom maavt.training.processes import launch\n"
                      "from tests.training.test_processes import losses_and_gradients\n"
                      f"if found := launch(losses_and_gradients, 6): torch.save(found, {str(tmp_path / 'found')!r})\n")
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script],
                   check=True, capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    check(torch.load(tmp_path / "found"), losses_and_gradients(ALONE))


@pytest.mark.long
def test_processes_that_slurm_started_train_together(tmp_path):
    where = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "MAAVT_RENDEZVOUS": f"127.0.0.1:{free_port()}"}
    tasks = [run_code(f"if found := launch(losses_and_gradients, 6): torch.save(found, {str(tmp_path / 'found')!r})",
                      SLURM_PROCID=rank, SLURM_LOCALID=rank, **where) for rank in "01"]
    for task in tasks:
        _, told = task.communicate(timeout=120)
        assert task.returncode == 0, told
    check(torch.load(tmp_path / "found"), losses_and_gradients(ALONE))


def test_every_trained_parameter_has_a_gradient_in_every_batch():
    """Else DistributedDataParallel would have to look for those without one, in every step."""
    assert all(tensor is not None for found in losses_and_gradients(ALONE) for tensor in found.values())


def test_batch_norms_are_refused_on_a_cpu_because_each_process_would_see_its_own_pairs_alone():
    with pytest.raises(UserError, match="MAAVT_PROCESSES=2: the batch norms .* expected MAAVT_PROCESSES=1, or a model"):
        Team(0, 2).parallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def nothing(team: Team) -> None:
    """What is refused before it begins."""


@pytest.mark.parametrize("wanted, told", [
    ({"MAAVT_PROCESSES": "0"}, "MAAVT_PROCESSES='0': expected a positive whole number"),
    ({"MAAVT_PROCESSES": "-2"}, "MAAVT_PROCESSES='-2': expected a positive whole number"),
    ({"MAAVT_PROCESSES": "two"}, "MAAVT_PROCESSES='two': expected a positive whole number"),
    ({"MAAVT_PROCESSES": "3"}, r"MAAVT_PROCESSES=3 does not divide train.batch \(32\)"),
    ({"MAAVT_PROCESSES": "8", "MAAVT_NODES": "8"}, "MAAVT_PROCESSES=8 on each of MAAVT_NODES=8 does not divide"),
    ({"MAAVT_NODES": "2"}, "MAAVT_NODES=2 without MAAVT_RENDEZVOUS; expected host:port"),
    ({"MAAVT_NODES": "2", "MAAVT_RENDEZVOUS": "first"}, "MAAVT_RENDEZVOUS='first': expected host:port of one of"),
    ({"MAAVT_NODES": "2", "MAAVT_RENDEZVOUS": "first:x"}, "MAAVT_RENDEZVOUS='first:x': expected host:port of one of"),
    ({"SLURM_NTASKS": "2", "MAAVT_RENDEZVOUS": "first"}, "MAAVT_RENDEZVOUS='first': expected host:port of one of"),
])
def test_processes_that_cannot_be_are_refused(monkeypatch, wanted, told):
    for name, value in (wanted | {"MAAVT_DEVICE": "cpu"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        launch(nothing, 32)


def test_there_is_a_gpu_for_each_process_or_none(monkeypatch):
    monkeypatch.setenv("MAAVT_PROCESSES", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("MAAVT_DEVICE", raising=False)
    with pytest.raises(UserError, match="MAAVT_PROCESSES=4 needs as many GPUs, and there are 2; set it lower, or set"):
        launch(nothing, 32)
    monkeypatch.setenv("MAAVT_DEVICE", "cuda:1")
    with pytest.raises(UserError, match="MAAVT_DEVICE=cuda:1 with MAAVT_PROCESSES=4; expected cpu, or cuda for one"):
        launch(nothing, 32)


def test_alone_nothing_is_distributed(monkeypatch):
    monkeypatch.delenv("MAAVT_PROCESSES", raising=False)
    for name in ("init_process_group", "all_gather", "all_reduce", "broadcast_object_list"):
        monkeypatch.delattr(torch.distributed, name)
    assert launch(losses_and_gradients, 1)


def misbehave(team: Team, how: str) -> str:
    """The second process does; the first waits for it."""
    if team.first:
        print("waiting", os.getpid(), flush=True)
    elif how == "user error":
        raise UserError("the file a is odd; remove it")
    elif how == "killed" or how == "killed once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "hang":
        time.sleep(60)
    team.sum(torch.ones(1))
    return "well"


@pytest.mark.long
@pytest.mark.parametrize("how, told", [
    ("user error", "^the file a is odd; remove it"),
    ("killed", r"^training process 2 of 2 was ended by SIGKILL, and so 2 times; what was finished is kept, run the s"),
])
def test_what_stops_one_process_is_told_and_ends_all(monkeypatch, how, told):
    monkeypatch.setenv("MAAVT_PROCESSES", "2")
    monkeypatch.setattr(processes, "RESTARTS", 1)
    before = set(psutil.Process().children())
    with pytest.raises(UserError, match=told):
        launch(misbehave, 2, how)
    assert [child for child in set(psutil.Process().children()) - before if "resource_tracker" not in
            " ".join(child.cmdline())] == []


@pytest.mark.long
def test_a_process_that_dies_once_costs_a_restart(monkeypatch, capfd):
    monkeypatch.setenv("MAAVT_PROCESSES", "2")
    assert launch(misbehave, 2, "killed once") == "well"
    assert "a training process died: all go on from what is kept (restart 1 of 3)" in capfd.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("sent, code, said", [
    (signal.SIGINT, 130, "interrupted; what was finished is kept, run the same command again to go on\n"),
    (signal.SIGTERM, 75, "stopped by SIGTERM; what is kept goes up to the last checkpoint, run the same command again "
                         "later to go on\n"),
])
def test_ctrl_c_and_sigterm_are_one_line_and_leave_no_process(sent, code, said):
    process = run_code("sys.exit(run(lambda: launch(misbehave, 2, 'hang')))", MAAVT_PROCESSES="2")
    waiting = psutil.Process(int(process.stdout.readline().split()[1]))
    os.killpg(process.pid, sent)  # as a terminal does
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert told == said
    assert not waiting.is_running()


@pytest.mark.long
@pytest.mark.parametrize("how, codes, told", [
    ("user error", [1, 1], {"error: the file a is odd; remove it", "error: another machine ended this training, and"}),
    ("hang", [1, 130], {"interrupted; what was finished is kept,", "error: another machine ended this training, and"}),
])
def test_what_stops_one_machine_ends_the_other_and_each_tells_it_in_a_line(tmp_path, how, codes, told):
    where = {"MAAVT_NODES": "2", "MAAVT_RENDEZVOUS": f"127.0.0.1:{free_port()}", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    machines = [run_code(f"sys.exit(run(lambda: launch(misbehave, 2, {how!r})))", **where) for _ in range(2)]
    if how == "hang":
        (ready, *_), *_ = select.select([machine.stdout for machine in machines], [], [], 120)
        assert ready.readline().startswith("waiting")
        first = next(machine for machine in machines if machine.stdout is ready)
        os.killpg(first.pid, signal.SIGINT)
    lines = [machine.communicate(timeout=150)[1] for machine in machines]
    assert sorted(machine.returncode for machine in machines) == codes
    assert all(line.count("\n") == 1 for line in lines), lines
    assert {begin for begin in told for line in lines if line.startswith(begin)} == told


@pytest.mark.long
def test_on_one_machine_nothing_listens_where_another_could_reach_it():
    process = run_code("sys.exit(run(lambda: launch(misbehave, 2, 'hang')))", MAAVT_PROCESSES="2")
    process.stdout.readline()
    crew = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    ports = [port for one in crew for port in one.net_connections("inet") if port.status == psutil.CONN_LISTEN]
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert {port.laddr.ip for port in ports} == {"127.0.0.1"}


@pytest.mark.long
def test_a_process_that_loses_another_says_so_in_a_line():
    """Those of srun and torchrun have no launcher of ours that would."""
    where = {"SLURM_NTASKS": "2", "MAAVT_RENDEZVOUS": f"127.0.0.1:{free_port()}", "TORCHELASTIC_RESTART_COUNT": "0"}
    one, two = (run_code("sys.exit(run(lambda: launch(misbehave, 2, 'killed')))", SLURM_PROCID=rank, SLURM_LOCALID=rank,
                         **where) for rank in "01")
    _, told = one.communicate(timeout=120)
    two.communicate(timeout=120)
    assert (one.returncode, two.returncode) == (1, -signal.SIGKILL)
    assert told.startswith("error: training process 1 of 2 lost another one") and told.count("\n") == 1


@pytest.mark.parametrize("slurm, tasks", [
    ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "1"}, 4),
    ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "2"}, 3),
    ({"SLURM_NTASKS_PER_NODE": "2"}, 2),
    ({"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}, 1),  # bound to CPUs of its own
    ({}, 1),
])
def test_tasks_of_slurm_share_the_cpus_of_their_machine(monkeypatch, slurm, tasks):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert processes._tasks_here() == tasks


@pytest.mark.long
def test_processes_end_when_their_launcher_is_killed():
    process = run_code("sys.exit(run(lambda: launch(misbehave, 2, 'hang')))", MAAVT_PROCESSES="2")
    waiting = psutil.Process(int(process.stdout.readline().split()[1]))
    process.kill()
    waiting.wait(timeout=20)
