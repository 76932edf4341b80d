import csv
import json
import os
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
from safetensors.torch import load_file

from maavt.errors import UserError
from maavt.shards.loader import Loader
from maavt.stages import train
from maavt.training.adapter import load_adapter
from maavt.training.runtime import accuracy, pick_device, place, predict
from maavt.work import sha256
from tests.conftest import tiny_settings


def config(project) -> dict:
    return json.loads((project / "data/models/maavt/config.json").read_text())


def test_only_what_was_trained_is_saved(made):
    names = load_file(made / "data/models/maavt/adapter.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {
        "class_prompt", "background_prompt", "prompts", "head", "background_head"}
    assert (made / "data/models/maavt/adapter.safetensors").stat().st_size < 4 * 1.1 * config(made)["trainable"]


def test_the_config_holds_what_is_needed_to_load_the_model(made, monkeypatch):
    monkeypatch.chdir(made)
    model, normalise, facts = load_adapter(made / "data/models/maavt")
    assert facts["tokens"] == 2 and len(facts["classes"]) == 4
    assert normalise.image_size == 32
    assert model(torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32)).logits.shape == (1, 4)


def test_curves_have_a_row_per_epoch(made):
    for name in ("train/loss", "train/accuracy", "val/accuracy"):
        with open(made / f"data/curves/maavt/plots/metrics/{name}.tsv") as file:
            assert [row["step"] for row in csv.DictReader(file, delimiter="\t")] == ["0", "1"]


def test_the_same_seed_trains_the_same_model(project):
    before = sha256(project / "data/models/maavt/adapter.safetensors")
    train.main([])
    assert sha256(project / "data/models/maavt/adapter.safetensors") == before


def test_a_killed_training_goes_on_and_ends_with_the_same_model(project):
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_settings(train={"epochs": 6})))
    train.main([])
    before, curves = sha256(project / "data/models/maavt/adapter.safetensors"), (
        project / "data/curves/maavt/plots/metrics/train/loss.tsv").read_text().splitlines()
    process = subprocess.Popen([sys.executable, "-m", "maavt.stages.train"], cwd=project, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = project / ".work/train-maavt"
    while process.poll() is None and not list(work.rglob("checkpoint.pt")):
        time.sleep(0.01)
    assert process.poll() is None, "it was to be killed in the middle"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = subprocess.check_output([sys.executable, "-m", "maavt.stages.train"], cwd=project, text=True)
    assert "goes on after epoch" in again
    assert sha256(project / "data/models/maavt/adapter.safetensors") == before
    again = (project / "data/curves/maavt/plots/metrics/train/loss.tsv").read_text().splitlines()
    assert [row.split("\t")[1:] for row in again] == [row.split("\t")[1:] for row in curves]


def begin_together(project: Path, **streams) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A training by two processes that has its first checkpoint, and these processes."""
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_settings(train={"epochs": 3})))
    process = subprocess.Popen([sys.executable, "-m", "maavt.stages.train"], cwd=project, start_new_session=True,
                               env=os.environ | {"MAAVT_PROCESSES": "2"}, **streams)
    while process.poll() is None and not list((project / ".work/train-maavt").rglob("checkpoint.pt")):
        time.sleep(0.01)
    crew = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert process.poll() is None and len(crew) == 2, "it was to be killed in the middle"
    return process, crew


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_several_restarts_and_the_training_ends(project, rank):
    process, crew = begin_together(project, stdout=subprocess.PIPE, text=True)
    sorted(crew, key=lambda child: child.create_time())[rank].kill()
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "(restart 1 of 3)" in told and "goes on after epoch" in told
    with open(project / "data/curves/maavt/plots/metrics/val/accuracy.tsv") as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == 3


def test_processes_that_train_together_die_with_their_parent_and_go_on_after_the_last_whole_epoch(
        project, monkeypatch, capfd):
    process, crew = begin_together(project)
    monkeypatch.setenv("MAAVT_PROCESSES", "2")
    process.kill()
    process.wait()
    psutil.wait_procs(crew, timeout=10)
    assert not any(child.is_running() for child in crew)
    capfd.readouterr()
    train.main([])
    told = capfd.readouterr()
    done = int(re.search(r"goes on after epoch (\d)", told.out)[1])
    ends = [line for line in told.err.splitlines() if "96/96 pair" in line]
    assert len(ends) == 3 - done < 3  # of all processes the first alone speaks
    assert not list((project / ".work/train-maavt").glob("*/"))
    with open(project / "data/curves/maavt/plots/metrics/val/accuracy.tsv") as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == 3
    model, normalise, facts = load_adapter(project / "data/models/maavt")
    batches = Loader(project / "data/shards/synth", "val", batch=8, image_size=32).in_order()
    alone = accuracy(predict(place(model, pick_device()), batches, normalise, background=True))
    assert facts["val_accuracy"] == pytest.approx(alone, abs=1.01 / 40)  # but for a pair that rounding decides


def test_the_backbone_gets_no_gradient_and_no_optimiser_state(made, monkeypatch, tmp_path):
    from maavt.params import load_params

    monkeypatch.chdir(made)
    loaders = {split: Loader(made / "data/shards/synth", split, batch=16, image_size=32) for split in ("train", "val")}
    training = train.Training("maavt", load_params(), loaders, tmp_path, tmp_path / "curves")
    training.epoch = 1
    before = {name: tensor.clone() for name, tensor in training.model.backbone.state_dict().items()}
    training._train_epoch()
    assert all(parameter.grad is None for parameter in training.model.backbone.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in training.model.backbone.state_dict().items())
    own = {id(parameter) for parameter in training.model.backbone.parameters()}
    assert not own & {id(parameter) for parameter in training.optimizer.state}


def test_a_loss_that_is_not_finite_is_an_error_with_the_setting_to_lower(project):
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_settings(train={"learning_rate": 9.9, "epochs": 1})))
    index = project / "data/shards/synth/index.json"
    facts = json.loads(index.read_text())
    facts["splits"]["train"]["mean"] = float("inf")
    index.unlink()
    index.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"no longer finite in epoch 1; lower train.learning_rate \(it is 9.9\)"):
        train.main([])


def test_a_model_of_another_backbone_is_refused(project):
    origin = project / "data/backbone/vit_tiny_patch16_224.json"
    facts = json.loads(origin.read_text())
    origin.unlink()
    origin.write_text(json.dumps(facts | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="was trained on other weights of vit_tiny_patch16_224"):
        load_adapter(project / "data/models/maavt")


def test_an_untrained_model_says_which_stage_makes_it(project):
    with pytest.raises(UserError, match="was not trained; do it with dvc exp run -S"):
        load_adapter(project / "data/models/lavish")
