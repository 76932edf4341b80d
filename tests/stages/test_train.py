import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from maavt.errors import UserError
from maavt.models.maavt import MAAVT
from maavt.models.vit import both, under
from maavt.params import parse_params
from maavt.shards.loader import Loader
from maavt.stages import train
from maavt.training.adapter import load_adapter
from maavt.training.average import Average
from maavt.training.runtime import accuracy, pick_device, place, predict
from maavt.work import sha256
from tests.conftest import ROOT, tiny_settings


def config(project) -> dict:
    return json.loads((project / "data/models/maavt/config.json").read_text())


def test_only_what_was_trained_is_saved(made):
    tensors = load_file(made / "data/models/maavt/adapter.safetensors")
    sizes, measured = {}, 0
    for name, tensor in tensors.items():
        if name.endswith((".mean", ".deviation", ".absent")):  # of what the heads read
            measured += tensor.numel()
            continue
        part = name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + tensor.numel()
    for_vectors = sizes.pop("visual_projectors") + sizes.pop("audio_projectors")  # the last block's, for vectors alone
    assert set(sizes) == {"class_prompt", "background_prompt", "prompts", "adapters", "head", "background_head"}
    assert sum(sizes.values()) == config(made)["trainable"]
    written = (made / "data/models/maavt/adapter.safetensors").stat().st_size
    assert written < 4 * 1.01 * (config(made)["trainable"] + for_vectors + measured)


def test_the_pairs_that_a_model_looks_at_before_training_are_those_to_train_on(made, tmp_path, monkeypatch):
    seen, began = [], MAAVT.begin
    monkeypatch.setattr(MAAVT, "begin", lambda model, *pairs: [seen.append(pairs), began(model, *pairs)])
    run = training(made, tmp_path, monkeypatch)
    (_, sound, (unseen, unheard)), loader = seen[0], run.loaders["train"]
    assert loader.pairs == 100 < train.FIRST  # so it sees all of them
    expected = torch.cat([run.normalise(batch, run.device)[1] for batch in loader.in_order()])
    torch.testing.assert_close(sound.sum((1, 2)).sort()[0], expected.sum((1, 2)).sort()[0])
    assert unseen.flatten(2).std(-1).max() < 1e-6 and unheard.eq(0).all()  # one colour, and the mean
    read = both(run.model.for_inference().encode(unseen, unheard))[0]
    for head, of_token in zip((run.model.head, run.model.background_head), read, strict=True):
        assert not torch.equal(head.deviation, torch.ones_like(head.deviation))
        torch.testing.assert_close(head(of_token), head.bias, atol=1e-3, rtol=0)  # what is absent says nothing


def test_the_config_holds_what_is_needed_to_load_the_model(made, monkeypatch):
    monkeypatch.chdir(made)
    model, normalise, facts = load_adapter(made / "data/models/maavt")
    assert facts["tokens"] == 2 and len(facts["classes"]) == 4
    assert normalise.image_size == 32
    assert model(torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32)).logits.shape == (1, 4)


def test_curves_have_a_row_per_epoch(made):
    for name in ("train/loss", "train/accuracy", "val/accuracy"):
        with open(made / f"data/curves/maavt/plots/metrics/{name}.tsv") as file:
            assert [row["step"] for row in csv.DictReader(file, delimiter="\t")] == ["1", "2"]


def test_curves_within_epochs_are_means_whose_mean_is_that_of_the_epoch(made):
    with open(made / "data/curves/maavt/steps.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows][-1] == 2.0 and len(rows) == 14  # 100 samples in seven batches, twice
    with open(made / "data/curves/maavt/plots/metrics/train/class_loss.tsv") as file:
        whole = [float(row["class_loss"]) for row in csv.DictReader(file, delimiter="\t")]
    sizes = [100 * (step + 1) // 7 - 100 * step // 7 for step in range(7)]
    for epoch, own in enumerate((rows[:7], rows[7:])):
        mean = sum(size * float(row["class_loss"]) for size, row in zip(sizes, own, strict=True)) / 100
        assert mean == pytest.approx(whole[epoch], rel=1e-3)


def test_metrics_name_the_kept_epoch_and_what_it_reached(made):
    found = json.loads((made / "data/curves/maavt/metrics.json").read_text())
    assert found["kept"] == {"epoch": config(made)["epoch"], "val_accuracy": config(made)["val_accuracy"]}


@pytest.mark.parametrize("error, reached, kept", [
    (0.049, [0.3, 0.6, 0.56, 0.5], 3),
    (0.005, [0.3, 0.6, 0.56, 0.5], 2),
    (0.049, [0.6, 0.56, 0.62, 0.5], 3),
    (0.049, [0.6, 0.56, 0.54, 0.56], 4),
    (0.0, [1.0, 0.0], 1),
])
@pytest.mark.parametrize("several", [False, True])
def test_of_epochs_that_validation_cannot_tell_from_the_best_the_last_is_kept(
        monkeypatch, error, reached, kept, several):
    monkeypatch.setattr(train, "trained_weights", lambda model: {})
    run = SimpleNamespace(best={}, model=SimpleNamespace(state_dict=dict, training_only=list))
    for run.epoch, share in enumerate(reached, 1):
        train.Training._choose(run, {"error": error} | ({"accuracy": 0.1, "map": share} if several else
                                                        {"accuracy": share}))
    assert run.best["epoch"] == kept and run.best["map" if several else "accuracy"] == reached[kept - 1]


def test_the_contrastive_loss_is_logged_beside_its_chance(made):
    for name in ("loss", "chance"):
        with open(made / f"data/curves/maavt/plots/metrics/train/contrastive_{name}.tsv") as file:
            assert all(0 < float(row[f"contrastive_{name}"]) < 4 for row in csv.DictReader(file, delimiter="\t"))


def training(made, tmp_path, monkeypatch, name="maavt", **changes) -> train.Training:
    """A training that has not begun."""
    monkeypatch.chdir(made)
    loaders = {split: Loader(made / "data/shards/synth", split, batch=16, image_size=32) for split in ("train", "val")}
    params = parse_params(tiny_settings(**changes))
    return train.Training(name, params, loaders, tmp_path, tmp_path / "curves")


@pytest.mark.parametrize("name, part, changes, share", [
    ("maavt", "adapters", {"maavt": {"adapter_rate": 0.2, "prompt_rate": 1}}, 0.2),
    ("lavish", "adapters", {"lavish": {"adapter_rate": 0.5}}, 0.5),
    ("mbt", "visual", {"mbt": {"encoder_rate": 0.01}}, 0.01),
    ("linear", "head", {"linear": {"head_rate": 3}}, 3),
])
def test_a_part_learns_at_its_own_share_of_the_rate_and_all_else_at_the_whole(
        made, tmp_path, monkeypatch, name, part, changes, share):
    run = training(made, tmp_path, monkeypatch, name, train={"schedule": "step", "warmup": 0}, **changes)
    rates = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    trained = {key: p for key, p in run.model.named_parameters() if p.requires_grad}
    assert rates.keys() == {id(p) for p in trained.values()}
    for key, parameter in trained.items():
        own = key.startswith((f"{part}.", "audio.") if name == "mbt" else f"{part}.")
        assert rates[id(parameter)] == pytest.approx(0.003 * (share if own else 1))


@pytest.mark.parametrize("schedule", ["one_cycle", "step"])
def test_the_rate_rises_through_the_warm_up_and_stays_or_falls_after_it(made, tmp_path, monkeypatch, schedule):
    run = training(made, tmp_path, monkeypatch, train={"schedule": schedule, "warmup": 0.25, "epochs": 8,
                                                       "step_epochs": 4})
    rates, total = [], 8 * run.steps
    for _ in range(total):
        rates.append(max(group["lr"] for group in run.optimizer.param_groups))
        run.optimizer.step()
        run.scheduler.step()
    peak = round(total / 4)
    assert max(rates) == pytest.approx(0.003, rel=0.01) and rates[0] < 0.001
    assert rates[: peak - 1] == sorted(rates[: peak - 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.0004


def test_without_warm_up_the_step_schedule_is_the_papers(made, tmp_path, monkeypatch):
    run = training(made, tmp_path, monkeypatch, train={"schedule": "step", "warmup": 0, "step_epochs": 1})
    assert [round(run.scheduler.lr_lambdas[0](step), 9) for step in (0, run.steps - 1, run.steps)] == [1, 1, 0.1]


def test_the_average_of_the_weights_is_validated_and_kept(made, tmp_path, monkeypatch):
    run = training(made, tmp_path, monkeypatch, train={"average": 0.9, "epochs": 1}, maavt={"blend": False})
    begin = run.model.head.weight.detach().clone()
    own = []  # the weights after each epoch, not averaged
    monkeypatch.setattr(run.kept, "save", lambda: own.append(run.model.head.weight.detach().clone()))
    run.run()
    (last,), kept = own, run.best["weights"]["head.weight"]
    assert torch.equal(kept, run.average.weights["head.weight"]) and not torch.equal(kept, last)
    assert (kept - begin).norm() < (last - begin).norm()


def test_the_kept_epoch_has_the_streams_weighed_by_the_validation_pairs_and_says_how_much(
        made, tmp_path, monkeypatch, capsys):
    plain = training(made, tmp_path, monkeypatch, maavt={"blend": False})
    plain.run()
    assert plain.config()["blend"] is None and "counts" not in capsys.readouterr().out
    run = training(made, tmp_path, monkeypatch)
    run.run()
    weights = run.config()["blend"]
    assert ", ".join(f"{part.replace('_', ' ')} {weight:.2f}" for part, weight in weights.items()) \
        in capsys.readouterr().out
    one, other = (found.best["weights"]["head.weight"].split(run.model.head.sizes, 1) for found in (plain, run))
    for before, after, weight in zip(one, other, weights.values(), strict=True):
        torch.testing.assert_close(after, weight * before)
        assert weight != 1


def test_an_average_is_the_exponential_one_after_its_beginning():
    model = torch.nn.Linear(1, 1, bias=False)
    average, wanted = Average(model, 0.5), model.weight.item()
    for step in range(1, 30):
        model.weight.data.fill_(step)
        average.update()
        decay = min(0.5, step / (step + 9))
        wanted = decay * wanted + (1 - decay) * step
    assert average.weights["weight"].item() == pytest.approx(wanted)
    with average.applied():
        assert model.weight.item() == pytest.approx(wanted)
    assert model.weight.item() == 29


@pytest.mark.parametrize("trains, alike", [("projectors", True), ("all", False)])
def test_what_tells_the_class_learns_the_same_with_a_contrastive_loss_that_trains_its_projectors_alone(
        made, tmp_path, monkeypatch, trains, alike):
    learned = []
    for weight in (0, 5):
        run = training(made, tmp_path, monkeypatch, maavt={"contrastive_trains": trains, "contrastive_weight": weight})
        run.epoch = 1
        run._train_epoch()
        names = run.model.trained()
        learned.append([parameter for name, parameter in run.model.named_parameters() if under(name, names)])
    assert all(torch.equal(one, other) for one, other in zip(*learned, strict=True)) == alike


def test_a_run_that_stays_at_chance_for_a_third_of_its_epochs_says_so_once(made, tmp_path, monkeypatch, capsys):
    run = training(made, tmp_path, monkeypatch, train={"learning_rate": 1e-9, "epochs": 4})
    run.run()
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "luck" in line]
    assert told.startswith("maavt: after 2 of 4 epochs 0.") and "train.learning_rate (1e-09)" in told
    assert "maavt.adapter_rate" in told


def test_a_run_that_learns_does_not_complain(made, tmp_path, monkeypatch, capsys):
    run = training(made, tmp_path, monkeypatch, train={"epochs": 3})
    monkeypatch.setattr(run, "_validate", lambda: {"accuracy": 0.9, "chance": 0.5, "error": 0.1})
    run.run()
    assert "luck" not in capsys.readouterr().out


def test_the_same_seed_makes_the_same_outputs_to_the_byte_but_for_the_timing_that_no_stage_reads(project):
    def outputs() -> dict[str, str]:
        return {str(path): sha256(path) for part in ("models", "curves")
                for path in sorted((project / "data" / part / "maavt").rglob("*")) if path.is_file()}

    before = outputs()
    train.main([])
    assert outputs() == before
    assert json.loads((project / "data/timing/maavt.json").read_text())["seconds_per_epoch"] > 0
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    assert not [dep for stage in stages for dep in stage["deps"] if "timing" in dep]


@pytest.mark.long
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


def begin_together(project: Path, first: str = "checkpoint.pt", batch: int = 16, **streams
                   ) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A training by two processes that has its first checkpoint, and these processes."""
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_settings(
        train={"epochs": 3, "batch": batch}, maavt={"blend": False})))  # as validated, so is the model kept
    process = subprocess.Popen([sys.executable, "-m", "maavt.stages.train"], cwd=project, start_new_session=True, env={
        **os.environ, "MAAVT_PROCESSES": "2", "MAAVT_CHECKPOINT_MINUTES": "0.001"}, **streams)
    while process.poll() is None and not list((project / ".work/train-maavt").rglob(first)):
        time.sleep(0.01)
    crew = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert process.poll() is None and len(crew) == 2, "it was to be killed in the middle"
    return process, crew


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_several_restarts_and_the_training_ends(project, rank):
    process, crew = begin_together(project, stdout=subprocess.PIPE, text=True)
    sorted(crew, key=lambda child: child.create_time())[rank].kill()
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "(restart 1 of 3)" in told and "goes on after epoch" in told
    with open(project / "data/curves/maavt/plots/metrics/val/accuracy.tsv") as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == 3


@pytest.mark.long
def test_several_processes_go_on_within_an_epoch(project):
    process, crew = begin_together(project, "within.pt", 4, stdout=subprocess.PIPE, text=True)
    crew[1].kill()
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and re.search("goes on after epoch 0 and [12]0 steps", told)


@pytest.mark.long
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
    ends = [line for line in told.err.splitlines() if "100/100 pair" in line]
    assert len(ends) == 3 - done < 3  # of all processes the first alone speaks
    assert not list((project / ".work/train-maavt").glob("*/"))
    with open(project / "data/curves/maavt/plots/metrics/val/accuracy.tsv") as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == 3
    model, normalise, facts = load_adapter(project / "data/models/maavt")
    batches = Loader(project / "data/shards/synth", "val", batch=8, image_size=32).in_order()
    alone = accuracy(predict(place(model, pick_device()), batches, normalise, background=True))
    assert facts["val_accuracy"] == pytest.approx(alone, abs=1.01 / 40)  # but for a pair that rounding decides


def test_the_backbone_gets_no_gradient_and_no_optimiser_state(made, monkeypatch, tmp_path):
    run = training(made, tmp_path, monkeypatch)
    run.epoch = 1
    before = {name: tensor.clone() for name, tensor in run.model.backbone.state_dict().items()}
    run._train_epoch()
    assert all(parameter.grad is None for parameter in run.model.backbone.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.backbone.state_dict().items())
    own = {id(parameter) for parameter in run.model.backbone.parameters()}
    assert not own & {id(parameter) for parameter in run.optimizer.state}


def test_a_loss_that_is_not_finite_is_an_error_with_the_setting_to_lower(project):
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_settings(train={"learning_rate": 9.9, "epochs": 1})))
    index = project / "data/shards/synth/index.json"
    facts = json.loads(index.read_text())
    facts["splits"]["train"]["mean"] = float("inf")
    index.unlink()
    index.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="no longer finite in epoch 1, at half the rate too; lower train.learning_rate "
                                        r"\(it is 9.9\)"):
        train.main([])


def test_a_model_of_another_backbone_is_refused(project):
    origin = project / "data/backbone/vit_tiny_patch16_224.json"
    facts = json.loads(origin.read_text())
    origin.unlink()
    origin.write_text(json.dumps(facts | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="was trained on other weights of vit_tiny_patch16_224"):
        load_adapter(project / "data/models/maavt")


def test_an_untrained_model_says_which_stage_makes_it(project):
    with pytest.raises(UserError, match="no model was trained here; do it with dvc exp run -S"):
        load_adapter(project / "data/models/lavish")
