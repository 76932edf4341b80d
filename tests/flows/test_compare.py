import csv
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from flows.compare import CONTENDERS, paired, read_right, rows
from maavt.measure import scores
from maavt.params import load_params
from tests.conftest import ROOT
from tests.flows.grids import make_project, run_flow

STAGE = """
import json, pathlib, sys, yaml
settings, model = yaml.safe_load(open("params.yaml")), sys.argv[1]
rate, seed = settings[model]["adapter_rate"], settings["seed"]
print(model, rate, seed, file=open("begun", "a"))
right = 8 - (model == "lavish") - (seed == 1)
folder = pathlib.Path("data/eval", model)
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.json").write_text(json.dumps({
    "accuracy": right / 10, "accuracy_audio_only": 0.3, "accuracy_visual_only": 0.4, "trained": 7, "epoch": 2,
    "val_accuracy": 1 - abs(rate - 0.2)}))
if settings["unvalidated"]:
    (folder / "metrics.json").write_text((folder / "metrics.json").read_text().replace("val_accuracy", "other"))
rows = [f"clip{n},0,a,{'a' if n < right else 'b'}" for n in range(10)]
(folder / "predictions.csv").write_text("\\n".join(["key,second,label,predicted", *rows]) + "\\n")
"""
GRAPH = """
stages:
  evaluate:
    matrix: {model: "${models}"}
    cmd: python stage.py ${item.model}
    params: [seed, unvalidated, "${item.model}"]
    outs: ["data/eval/${item.model}/predictions.csv"]
    metrics: ["data/eval/${item.model}/metrics.json"]
  benchmark: {cmd: "false", outs: [data/benchmark.csv]}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A DVC project whose validation is best at a rate of 0.2; there maavt is right on one clip more than lavish."""
    return make_project(tmp_path_factory.mktemp("compare") / "a project", stage=STAGE, graph=GRAPH,
                        params="dataset: synth\nmodels: [maavt]\nseed: 0\nunvalidated: false\n"
                               "maavt: {adapter_rate: 0.1}\nlavish: {adapter_rate: 0.4}\n")


def compare(project: Path, *arguments: str) -> CompletedProcess:
    return run_flow("compare", project, *arguments)


@pytest.mark.long
def test_each_model_runs_at_the_rate_that_validation_chooses_and_a_second_comparison_runs_nothing_again(project):
    options = ("--models", "maavt", "lavish", "--seeds", "0", "1", "--rates", "0.5", "2")
    done = compare(project, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(project / "data" / "comparison" / "comparison.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert [(row["model"], row["rate"], row["accuracy_mean"]) for row in (first, second)] == [
        ("maavt", "0.2", "0.75"), ("lavish", "0.2", "0.65")]
    assert (first["lead"], second["lead"]) == ("", "0.1")
    assert float(second["lead_low"]) <= 0.1 <= float(second["lead_high"])
    assert "<svg" in (project / "data" / "comparison" / "comparison.svg").read_text()
    page = (project / "data" / "comparison" / "index.html").read_text()
    for text in ("maavt, lavish on synth", "standard deviation over 2 seeds", "+10.0", "at git revision",
                 "chance level: 100.0\N{NO-BREAK SPACE}%"):
        assert text in page
    begun = (project / "begun").read_text().splitlines()
    assert begun == ["maavt 0.05 0", "maavt 0.2 0", "maavt 0.2 1", "lavish 0.2 0", "lavish 0.8 0", "lavish 0.2 1"]
    assert yaml.safe_load((project / "params.yaml").read_text())["maavt"] == {"adapter_rate": 0.1}
    assert compare(project, *options).returncode == 0
    assert (project / "begun").read_text().splitlines() == begun


@pytest.mark.long
def test_without_validation_nothing_chooses_a_rate_but_one_rate_needs_no_choice(project):
    options = ("--models", "maavt", "--seeds", "0", "0", "-S", "unvalidated=true", "--rates")
    done = compare(project, *options, "0.5", "1")
    assert done.returncode == 1 and "expected clips to validate on, or one rate: --rates 1" in done.stdout + done.stderr
    done = compare(project, *options, "1")
    assert done.returncode == 0, done.stdout + done.stderr
    with open(project / "data" / "comparison" / "comparison.csv", newline="") as file:
        assert [row["seeds"] for row in csv.DictReader(file)] == ["1"]  # that it was named twice makes no second one


def test_an_unknown_setting_is_named_before_anything_runs(project):
    done = compare(project, "-S", "tokenz=3")
    assert done.returncode == 2
    assert "tokenz" in done.stderr


def test_what_differs_from_run_to_run_is_told_by_its_option(project):
    done = compare(project, "-S", "models=[mbt]")
    assert done.returncode == 2 and "expected --models instead" in done.stderr


def test_every_rate_that_is_searched_is_a_setting():
    params = load_params(ROOT / "params.yaml")
    for _, _, key in CONTENDERS.values():
        block, name = key.split(".")
        assert getattr(getattr(params, block), name) > 0


def test_a_class_whose_name_has_a_semicolon_is_one_label_unless_clips_have_several(tmp_path):
    (tmp_path / "predictions.csv").write_text("key,second,label,predicted\na,0,dog;rain,dog;rain\nb,0,dog;rain,rain\n")
    assert list(read_right(tmp_path, several=False)[0].values()) == [True, False]
    right, chance = read_right(tmp_path, several=True)
    assert list(right.values()) == [False, True] and chance == 1.0  # rain is in both


def test_the_lead_is_over_the_pairs_that_both_have():
    one = {("a", "0"): True, ("b", "0"): True, ("c", "0"): False}
    other = {("a", "0"): True, ("b", "0"): False, ("d", "0"): True}
    lead, low, high, p = paired([one], [other])
    assert (lead, p) == (0.5, 1.0)
    assert low <= lead <= high


def test_seconds_of_a_clip_are_one_witness():
    ours = {(clip, str(second)): clip in "abcd" for clip in "abcde" for second in range(10)}
    theirs = {(clip, str(second)): clip in "de" for clip in "abcde" for second in range(10)}
    assert paired([ours], [theirs])[3] == scores.mcnemar([True] * 3 + [False], [False] * 3 + [True]) == 0.625


def test_a_model_is_held_against_the_first_one_or_none():
    def run(right: bool) -> dict:
        return {"rate": "1", "trained": 1, "epoch": 1, "accuracy": float(right), "chance": 1.0,
                "right": {("a", "0"): right}}

    beside = rows({"maavt": [run(True)], "mbt": [run(False)]}, "maavt")
    assert "lead" not in beside[0] and beside[1]["lead"] == 1.0
    assert not any("lead" in row for row in rows({"paper": [run(True)], "mbt": [run(False)]}, "maavt"))


def test_mcnemar_is_the_binomial_test_of_what_one_of_two_models_alone_is_right_on():
    first, second = [True] * 9 + [False] + [True] * 5, [False] * 9 + [True] + [True] * 5
    assert scores.mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)  # 9 against 1, either way
    assert scores.mcnemar(first, first) == 1.0
