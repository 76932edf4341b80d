"""Trainings that are killed, sent away, or lead nowhere: how they go on, and that the end is the same bit for bit."""

import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from maavt.errors import UserError
from maavt.params import parse_params
from maavt.shards.loader import Loader
from maavt.stages import train
from maavt.training import checkpoint
from tests.conftest import tiny_settings

KILLS = int(os.environ.get("MAAVT_TEST_KILLS", "10"))
EVERY_STEP = "0.0000001"  # minutes
CHANGES = {"train": {"epochs": 3, "average": 0.9},
           "augment_sound": {"time_mask": 0.2, "frequency_mask": 0.2, "stretch": 0.1}}  # every random state counts


@pytest.fixture(autouse=True)
def own_folder(made, monkeypatch):
    monkeypatch.chdir(made)


def training(made: Path, folder: Path, **changes) -> train.Training:
    """A training that has not begun, or goes on with what is kept in `folder`."""
    loaders = {split: Loader(made / "data/shards/synth", split, batch=16, image_size=32) for split in ("train", "val")}
    params = parse_params(tiny_settings(**(changes or CHANGES)))
    return train.Training("maavt", params, loaders, folder, folder / "curves")


@pytest.fixture(scope="module")
def quiet(made, tmp_path_factory) -> train.Training:
    """One that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        found = training(made, tmp_path_factory.mktemp("quiet"))
        found.run()
    return found


def same(one: train.Training, other: train.Training) -> bool:
    pairs = [(one.model.state_dict(), other.model.state_dict()), (one.best["weights"], other.best["weights"]),
             (one.average.weights, other.average.weights)]
    logged = one.history == other.history and one.step_log == other.step_log
    return logged and all(torch.equal(tensor, b[name]) for a, b in pairs for name, tensor in a.items())


SERVER = """if True:  # imports once what each of many runs needs
    import os, sys, traceback
    from pathlib import Path
    from maavt.errors import run
    from tests.training.test_checkpoint import training
    made, folder = map(Path, sys.argv[1:])
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            try:
                os._exit(run(lambda: training(made, folder).run()))
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def changed(folder: Path) -> int:
    """When something was kept last."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*.pt")), default=0)


@pytest.mark.long
def test_a_training_killed_at_random_instants_ends_with_the_same_weights_and_curves(made, tmp_path, quiet):
    rng, codes, within = random.Random(0), [], 0
    settings = {"MAAVT_CHECKPOINT_MINUTES": EVERY_STEP, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", SERVER, made, tmp_path], cwd=made, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | settings) as server:
        while not codes or codes[-1] == -signal.SIGKILL:
            before = changed(tmp_path)
            server.stdin.write("go\n")
            server.stdin.flush()
            child = psutil.Process(int(server.stdout.readline()))
            if len(codes) < KILLS:
                while changed(tmp_path) == before:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.05))
                child.kill()
            codes.append(int(server.stdout.readline()))
            within += (tmp_path / "within.pt").exists()
        server.stdin.close()
    assert codes[-1] == 0 and len(codes) > KILLS // 2 and within >= len(codes) // 2
    again = training(made, tmp_path)
    again.run()  # nothing is left to do
    assert same(again, quiet) and sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint.pt"]


@pytest.mark.parametrize("where", ["step", "validation"])
def test_a_training_that_has_to_make_room_keeps_all_leaves_with_a_code_of_its_own_and_ends_alike(
        made, tmp_path, quiet, monkeypatch, capsys, where):
    first = training(made, tmp_path)
    calls, real = [], train.predict if where == "validation" else train.losses

    def disturbed(*arguments, **options):
        calls.append(1)
        if len(calls) == (2 if where == "validation" else 10):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(train, "predict" if where == "validation" else "losses", disturbed)
        first.run()
    assert left.value.code == 75
    told = capsys.readouterr().err
    step = first.steps if where == "validation" else 10 - first.steps
    assert f"up to epoch 2, step {step} of {first.steps}, run the same command again later" in told
    again = training(made, tmp_path)
    again.run()
    assert f"goes on after epoch 1 and {step} steps" in capsys.readouterr().out and same(again, quiet)


@pytest.mark.long
def test_the_stage_that_has_to_make_room_leaves_with_that_code(project):
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_settings(train={"epochs": 9})))
    process = subprocess.Popen([sys.executable, "-m", "maavt.cli", "train"], cwd=project, stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not list(project.glob(".work/train-maavt/*/checkpoint.pt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and re.search(r"stopped by SIGTERM.*run the same command again later", told)
    assert "Traceback" not in told and len(list(project.glob(".work/train-maavt/*/within.pt"))) == 1


def spoil(monkeypatch, *steps: int) -> None:
    """Have the loss of these steps be no number."""
    real, calls = train.losses, []

    def spoilt(*arguments, **options):
        calls.append(1)
        parts = real(*arguments, **options)
        if len(calls) in steps:
            parts.classes = parts.classes * float("nan")
        return parts

    monkeypatch.setattr(train, "losses", spoilt)


@pytest.mark.parametrize("step, minutes", [(3, "10"), (9, "10"), (10, EVERY_STEP)])
def test_a_loss_that_is_no_number_goes_back_to_what_is_kept_at_half_the_rate(
        made, tmp_path, monkeypatch, capsys, step, minutes):
    """Before anything is kept, in the second epoch, and within it."""
    monkeypatch.setenv("MAAVT_CHECKPOINT_MINUTES", minutes)
    spoil(monkeypatch, step)
    found = training(made, tmp_path)
    peak = found.scheduler.state_dict()["base_lrs"]
    found.run()
    assert "it goes on from what was kept last, at half the rates" in capsys.readouterr().out
    assert len(found.history) == 3 and all(torch.isfinite(tensor).all() for tensor in found.best["weights"].values())
    assert found.scheduler.state_dict()["base_lrs"] == [rate / 2 for rate in peak]
    assert max(group["max_lr"] for group in found.optimizer.param_groups) == pytest.approx(0.003 / 2)
    again = training(made, tmp_path)
    again.run()
    assert again.kept.halved
    assert max(group["max_lr"] for group in again.optimizer.param_groups) == pytest.approx(0.003 / 2)


@pytest.mark.parametrize("schedule", ["one_cycle", "step"])
def test_after_a_loss_that_is_no_number_every_step_is_at_half_its_learning_rate(made, tmp_path, schedule):
    run = training(made, tmp_path, train={"schedule": schedule, "step_epochs": 1, "epochs": 3})

    def rates() -> list[list[float]]:
        """Of each group of parameters, at each step."""
        found = []
        for _ in range(run.epochs * run.steps):
            found.append([group["lr"] for group in run.optimizer.param_groups])
            run.optimizer.step()
            run.scheduler.step()
        return found

    run.kept.resume()
    before = rates()
    run.kept.go_back()
    for expected, found in zip(before, rates(), strict=True):
        assert found == pytest.approx([rate / 2 for rate in expected])


def test_a_loss_that_is_no_number_at_half_the_rate_either_says_what_to_try_and_keeps_the_last_good(
        made, tmp_path, monkeypatch):
    found = training(made, tmp_path)
    spoil(monkeypatch, found.steps + 2, 2 * found.steps + 2)
    with pytest.raises(UserError, match=r"loss of maavt is no longer finite in epoch 2, at half the rate too; lower "
                                        r"train.learning_rate \(it is 0.003\) or raise train.warmup"):
        found.run()
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["epoch"] == 1 and all(torch.isfinite(tensor).all() for tensor in kept["weights"].values())


def test_a_full_disk_leaves_the_last_good_checkpoint(made, tmp_path, monkeypatch, quiet):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no small disk can be had here")
    try:
        found = training(made, folder)
        validate = found._validate

        def fill():
            if found.epoch == 2:
                with open(folder / "filler", "wb") as file, pytest.raises(OSError, match="No space"):
                    while file.write(bytes(1 << 16)):
                        file.flush()
            return validate()

        monkeypatch.setattr(found, "_validate", fill)
        with pytest.raises(OSError, match="No space left"):
            found.run()
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == 1
        (folder / "filler").unlink()
        again = training(made, folder)
        again.run()
        assert same(again, quiet)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("name", ["checkpoint.pt", "within.pt"])
def test_a_checkpoint_that_carries_code_is_refused_and_nothing_of_it_runs(made, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for save in (lambda: torch.save({"epoch": Evil()}, tmp_path / name),
                 lambda: (tmp_path / name).write_bytes(pickle.dumps(Evil(), 2)), lambda: (tmp_path / name).touch()):
        save()
        with pytest.raises(UserError, match=f"{name} is no checkpoint .*; remove it"):
            checkpoint._load_file(tmp_path / name)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("text", ["0", "-1", "often", "nan"])
def test_minutes_that_are_none_are_the_users_to_mend(made, tmp_path, monkeypatch, text):
    monkeypatch.setenv("MAAVT_CHECKPOINT_MINUTES", text)
    with pytest.raises(UserError, match=f"MAAVT_CHECKPOINT_MINUTES='{text}': expected minutes above 0"):
        training(made, tmp_path)
