import csv
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from flows.ablate import chosen, grid, summarise, write
from maavt.errors import UsageError, UserError
from maavt.measure import plots
from tests.flows.grids import make_project, run_flow

STAGE = """
import json, pathlib, sys, yaml
settings = yaml.safe_load(open("params.yaml"))
print(settings["tokens"], file=open("begun", "a"))
if settings["tokens"] > 100:
    sys.exit("too many tokens")
folder = pathlib.Path("data/eval/maavt")
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.json").write_text(json.dumps({"accuracy": settings["tokens"] / 10 + settings["seed"] / 100}))
timing = pathlib.Path("data/timing")
timing.mkdir(parents=True, exist_ok=True)
(timing / "maavt.json").write_text(json.dumps({"seconds_per_epoch": settings["tokens"]}))
"""
GRAPH = """
stages:
  evaluate:
    cmd: python stage.py
    params: [tokens, seed]
    metrics: [data/eval/maavt/metrics.json]
    outs: [data/timing/maavt.json]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A DVC project whose accuracy is tokens / 10 + seed / 100."""
    return make_project(tmp_path_factory.mktemp("ablate") / "a project", stage=STAGE, graph=GRAPH,
                        params="models: [maavt]\ntokens: 5\nseed: 0\n")


def ablate(project: Path, *arguments: str) -> CompletedProcess:
    return run_flow("ablate", project, *arguments)


@pytest.mark.long
def test_a_grid_becomes_one_table_and_one_picture_and_the_settings_stay_as_they_were(project):
    done = ablate(project, "tokens=2,10", "--seeds", "0", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    with open(project / "data" / "ablation" / "ablation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["seeds"], row["accuracy_mean"], row["accuracy_std"]) for row in rows] == [
        ("tokens=2", "2", "0.22", "0.0283"), ("tokens=10", "2", "1.02", "0.0283")]
    assert [row["seconds_per_epoch_mean"] for row in rows] == ["2.0", "10.0"]
    assert "<svg" in (project / "data" / "ablation" / "ablation.svg").read_text()
    assert yaml.safe_load((project / "params.yaml").read_text()) == {"models": ["maavt"], "tokens": 5, "seed": 0}
    known = subprocess.run([sys.executable, "-m", "dvc", "exp", "list", "--name-only"], cwd=project, text=True,
                           capture_output=True, check=True).stdout.split()
    assert set(known) == {f"ablation-tokens-{tokens}-{seed}" for tokens in (2, 10) for seed in (0, 4)}


@pytest.mark.long
def test_a_failed_experiment_is_named_and_costs_no_other_and_a_second_grid_runs_only_what_is_new(project):
    done = ablate(project, "tokens=3,101,4", "--seeds", "0")
    assert done.returncode == 1
    assert "the experiment tokens=101, seed=0 failed" in done.stderr
    assert "the 2 finished ones are in data/ablation" in done.stderr
    with open(project / "data" / "ablation" / "ablation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["accuracy_mean"]) for row in rows] == [("tokens=3", "0.3"), ("tokens=4", "0.4")]
    assert "accuracy_std" not in rows[0]
    assert yaml.safe_load((project / "params.yaml").read_text())["tokens"] == 5
    begun = (project / "begun").read_text().split()
    done = ablate(project, "tokens=4,6", "--seeds", "0")
    assert done.returncode == 0, done.stderr
    assert (project / "begun").read_text().split()[len(begun):] == ["6"]


def test_a_key_that_params_yaml_lacks_is_refused_before_anything_runs(project):
    done = ablate(project, "tokenz=1")
    assert done.returncode == 2 and "tokenz=1: params.yaml has no tokenz; is tokens meant?" in done.stderr


def test_lists_are_multiplied_out_and_each_setting_is_taken_once():
    assert grid(["tokens=2,5", "maavt.lsa=false+tokens=1,2", "tokens=5"]) == [
        "tokens=2", "tokens=5", "maavt.lsa=false+tokens=1", "maavt.lsa=false+tokens=2"]
    assert grid(["models=[maavt,lavish],[mbt]"]) == ["models=[maavt,lavish]", "models=[mbt]"]


@pytest.mark.parametrize("wrong", ["tokens", "tokens=", "=3", "tokens=2+seed"])
def test_what_is_no_setting_is_refused(wrong):
    with pytest.raises(UsageError, match="is no setting; expected KEY=VALUE"):
        grid([wrong])


def test_one_seed_has_no_deviation():
    (row,) = summarise([{"setting": "a=1", "seed": 0, "model": "maavt", "seconds": 2.0, "accuracy": 0.5}])
    assert row == {"setting": "a=1", "model": "maavt", "seeds": 1, "accuracy_mean": 0.5, "seconds_mean": 2.0}


def test_what_is_no_number_has_no_mean():
    runs = [{"setting": "a=1", "seed": seed, "model": "maavt", "vggsounder": "1.0"} for seed in (0, 1)]
    assert summarise(runs) == [{"setting": "a=1", "model": "maavt", "seeds": 2}]


def test_validation_prefers_by_the_mean_average_precision_where_there_is_one():
    rows = [{"setting": "a=1", "model": "maavt", "val_accuracy_mean": 0.9, "val_map_mean": 0.5},
            {"setting": "a=2", "model": "maavt", "val_accuracy_mean": 0.8, "val_map_mean": 0.6}]
    assert chosen(rows)["setting"] == "a=2" and chosen([{"setting": "a=1", "model": "maavt"}]) is None
    for row in rows:
        del row["val_map_mean"]
    assert chosen(rows)["setting"] == "a=1"


def test_what_suits_another_model_better_is_not_chosen():
    rows = [{"setting": setting, "model": model, "val_accuracy_mean": right} for setting, model, right in (
        ("a=1", "maavt", 0.70), ("a=1", "linear", 0.80), ("a=2", "maavt", 0.75), ("a=2", "linear", 0.80))]
    assert chosen(rows) == rows[2]


def test_the_picture_shows_the_rows_that_have_the_number(tmp_path):
    rows = [{"setting": "a=1", "model": "maavt", "seeds": 1, "accuracy_mean": 0.5, "val_recall_1_after_mean": 0.1},
            {"setting": "a=1", "model": "linear", "seeds": 1, "accuracy_mean": 0.4}]
    write(rows, tmp_path, "val_recall_1_after")
    assert (tmp_path / "ablation.svg").exists()
    with pytest.raises(UserError, match="no such number"):
        write(rows, tmp_path, "recall_2")


def test_the_picture_names_rows_by_what_not_all_share_and_has_room_for_the_names(tmp_path):
    shared = "synth.train=16+weights=/a/long/path/to/some/weights.safetensors"
    rows = [{"setting": f"tokens={tokens}+{shared}", "accuracy_mean": 0.5} for tokens in (2, 10)]
    plots.save(tmp_path / "a.svg", plots.ablation, rows, "accuracy")
    drawn = (tmp_path / "a.svg").read_text()
    assert "<!-- tokens=2 -->" in drawn and "<!-- tokens=10 -->" in drawn and "synth.train" not in drawn
    plots.save(tmp_path / "b.svg", plots.ablation, rows[:1], "accuracy")
    assert "<!-- tokens=2+synth.train=16" in (tmp_path / "b.svg").read_text()


def test_what_all_rows_share_is_no_setting_of_a_row(project):
    done = ablate(project, "tokens=2", "-S", "tokenz=3")
    assert done.returncode == 2 and "tokenz" in done.stderr


def test_settings_that_differ_in_their_order_alone_have_their_whole_names(tmp_path):
    rows = [{"setting": setting, "accuracy_mean": 0.5} for setting in ("a=1+b=2", "b=2+a=1")]
    plots.save(tmp_path / "a.svg", plots.ablation, rows, "accuracy")
    assert all(f"<!-- {row['setting']} -->" in (tmp_path / "a.svg").read_text() for row in rows)


def test_a_number_that_not_every_seed_has_is_left_out():
    (row,) = summarise([{"setting": "a=1", "model": "maavt", "seed": seed, "accuracy": 0.5} | more
                        for seed, more in ((0, {"seconds_per_epoch": 3}), (1, {}))])
    assert row["accuracy_mean"] == 0.5 and "seconds_per_epoch_mean" not in row
