"""Several processes that train together: real ones, which talk through gloo."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from torch import nn

from maavt.errors import UserError
from maavt.training.ranks import ALONE, Team, launch, wanted_processes

FOREGROUND, BACKGROUND = [0, 1, 2, 3, 2, 1], [-1] * 6
MIXED = [3, -1, 2, -1, -1, -1]  # of two processes the second sees background alone
MODELS = [
    ("maavt", {"background": True}, [MIXED, BACKGROUND, FOREGROUND]),
    ("maavt", {"background": True, "contrastive": "final", "projector": "linear", "lsa": False}, [MIXED]),
    ("maavt", {"background": False, "contrastive": "off", "unimodal_prompts": False}, [FOREGROUND]),
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
            output, labels = whole_batch(parallel(frames[mine], sound[mine]), labels[mine], team.gather)
            parts = losses(output, labels)
            model.zero_grad()
            parts.total.backward()
            gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
            size = sum(gradient.square().sum() for gradient in gradients.values())
            torch.testing.assert_close(team.sum(size), size * team.ranks)  # they are the same everywhere
            found.append({"labels": labels, "losses": torch.stack([parts.classes, parts.background, parts.contrastive]),
                          "logits": output.logits} | gradients)
    return found


def test_losses_and_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(tmp_path):
    one, two = losses_and_gradients(ALONE), launch(losses_and_gradients, 2, tmp_path)
    assert len(one) == len(two) == sum(len(batches) for *_, batches in MODELS)
    for alone, shared in zip(one, two, strict=True):
        torch.testing.assert_close(shared["labels"], alone["labels"], rtol=0, atol=0)
        torch.testing.assert_close(shared["losses"], alone["losses"], rtol=1e-5, atol=1e-5)
        assert alone.keys() == shared.keys()
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)


def test_every_trained_parameter_has_a_gradient_in_every_batch():
    """Else DistributedDataParallel would have to look for those without one, in every step."""
    assert all(tensor is not None for found in losses_and_gradients(ALONE) for tensor in found.values())


def test_batch_norms_are_refused_on_a_cpu_because_each_process_would_see_its_own_pairs_alone():
    with pytest.raises(UserError, match="MAAVT_PROCESSES=2: the batch norms .* expected MAAVT_PROCESSES=1, or a model"):
        Team(0, 2).parallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


@pytest.mark.parametrize("wanted, told", [
    ("0", "MAAVT_PROCESSES='0': expected a positive whole number"),
    ("-2", "MAAVT_PROCESSES='-2': expected a positive whole number"),
    ("two", "MAAVT_PROCESSES='two': expected a positive whole number"),
    ("3", r"MAAVT_PROCESSES=3 does not divide train.batch \(32\)"),
])
def test_a_number_of_processes_that_cannot_be_is_refused(monkeypatch, wanted, told):
    monkeypatch.setenv("MAAVT_PROCESSES", wanted)
    monkeypatch.setenv("MAAVT_DEVICE", "cpu")
    with pytest.raises(UserError, match=told):
        wanted_processes(32)


def test_there_is_a_gpu_for_each_process_or_none(monkeypatch):
    monkeypatch.setenv("MAAVT_PROCESSES", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("MAAVT_DEVICE", raising=False)
    with pytest.raises(UserError, match="MAAVT_PROCESSES=4 needs as many GPUs, and there are 2; set it lower, or set"):
        wanted_processes(32)
    monkeypatch.setenv("MAAVT_DEVICE", "cuda:1")
    with pytest.raises(UserError, match="MAAVT_DEVICE=cuda:1 with MAAVT_PROCESSES=4; expected cpu, or cuda for one"):
        wanted_processes(32)
    monkeypatch.setenv("MAAVT_DEVICE", "cpu")
    assert wanted_processes(32) == 4


def test_alone_nothing_is_distributed(monkeypatch, tmp_path):
    monkeypatch.delenv("MAAVT_PROCESSES", raising=False)
    for name in ("init_process_group", "all_gather", "all_reduce"):
        monkeypatch.delattr(torch.distributed, name)
    assert launch(losses_and_gradients, wanted_processes(1), tmp_path)


def misbehave(team: Team, how: str) -> None:
    """The second process does; the first waits for it."""
    if team.first:
        print("waiting", os.getpid(), flush=True)
    elif how == "user error":
        raise UserError("the file a is odd; remove it")
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        time.sleep(60)
    team.sum(torch.ones(1))


@pytest.mark.parametrize("how, told", [
    ("user error", "^the file a is odd; remove it"),
    ("killed", r"^training process 2 of 2 \(\d+\) was killed by SIGKILL; what was finished is kept, run the same com"),
])
def test_what_stops_one_process_is_told_and_ends_all(tmp_path, how, told):
    before = set(psutil.Process().children())
    with pytest.raises(UserError, match=told):
        launch(misbehave, 2, tmp_path, how)
    assert [child for child in set(psutil.Process().children()) - before if "resource_tracker" not in
            " ".join(child.cmdline())] == []
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_one_line_and_leaves_no_process(tmp_path):
    code = ("import sys\nfrom pathlib import Path\nfrom maavt.errors import run\n"
            "from maavt.training.ranks import launch\n"
            "from tests.training.test_ranks import misbehave\n"
            f"sys.exit(run(lambda: launch(misbehave, 2, Path({str(tmp_path)!r}), 'hang')))")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    waiting = psutil.Process(int(process.stdout.readline().split()[1]))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == "interrupted; what was finished is kept, run the same command again to go on\n"
    assert not waiting.is_running()
