import csv
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from flows.compare import CONTENDERS, choose, lead, rates_of, read_right, rows
from maavt.errors import UserError
from maavt.measure import scores
from maavt.params import load_params
from tests.conftest import ROOT
from tests.flows.grids import make_project, run_flow

STAGE = """
import json, pathlib, sys, yaml
settings, stage, model = yaml.safe_load(open("params.yaml")), *sys.argv[1:]
rate, seed = settings[model]["adapter_rate"], settings["seed"]
print(stage, model, rate, seed, file=open("begun", "a"))
if [model, seed] == settings["fails"]:
    sys.exit("it fails")
reached = {} if settings["unvalidated"] else {"val_accuracy": 1 - abs(rate - 0.2) - seed / 100}
if stage == "train":
    folder = pathlib.Path("data/curves", model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({"val": {"accuracy": 0}, "kept": {"epoch": 2, **reached}}))
    sys.exit()
right = 8 - (model == "lavish") - (seed == 1)
folder = pathlib.Path("data/eval", model)
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.json").write_text(json.dumps({
    "accuracy": right / 10, "accuracy_audio_only": 0.3, "accuracy_visual_only": 0.4, "trained": 7, "epoch": 2,
    **reached}))
rows = [f"clip{n},0,a,{'a' if n < right else 'b'}" for n in range(10)]
(folder / "predictions.csv").write_text("\\n".join(["key,second,label,predicted", *rows]) + "\\n")
"""
GRAPH = """
stages:
  train:
    matrix: {model: "${models}"}
    cmd: python stage.py train ${item.model}
    params: [seed, unvalidated, fails, "${item.model}"]
    metrics: ["data/curves/${item.model}/metrics.json": {cache: false}]
  evaluate:
    matrix: {model: "${models}"}
    cmd: python stage.py evaluate ${item.model}
    deps: ["data/curves/${item.model}/metrics.json"]
    params: [seed, unvalidated, "${item.model}"]
    outs: ["data/eval/${item.model}/predictions.csv"]
    metrics: ["data/eval/${item.model}/metrics.json"]
  benchmark: {cmd: "false", outs: [data/benchmark.csv]}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A DVC project whose validation is best at a rate of 0.2; there maavt is right on one clip more than lavish."""
    return make_project(tmp_path_factory.mktemp("compare") / "a project", stage=STAGE, graph=GRAPH,
                        params="dataset: synth\nmodels: [maavt]\nseed: 0\nunvalidated: false\nfails: []\n"
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
    for told in (page, second["lead_lacks"], done.stdout):
        assert "2 and 2 seeds hardly tell how far seeds scatter" in told
    assert first["val_accuracy_mean"] == second["val_accuracy_mean"] == "0.995"  # of both seeds
    begun = (project / "begun").read_text().splitlines()
    assert begun == [f"{stage} {model} {rate} {seed}" for model, other in (("maavt", 0.05), ("lavish", 0.8))
                     for stage, rate, seed in (*(("train", rate, 0) for rate in sorted((0.2, other))),
                                               ("evaluate", 0.2, 0), ("train", 0.2, 1), ("evaluate", 0.2, 1))]
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


@pytest.mark.long
def test_a_seed_that_fails_costs_no_other(project):
    done = compare(project, "--models", "maavt", "lavish", "--seeds", "0", "3", "4", "--rates", "1",
                   "-S", "fails=[lavish,3]")
    assert done.returncode == 1 and "seed=3 failed: " in done.stderr and "seed=4" not in done.stderr
    with open(project / "data" / "comparison" / "comparison.csv", newline="") as file:
        assert [(row["model"], row["seeds"]) for row in csv.DictReader(file)] == [("maavt", "3"), ("lavish", "2")]


def reached(values: dict[tuple[float, int], float | None]):
    """What validation says of a rate and a seed; others fail."""
    def look_up(name: str, rate: float, seed: int) -> float | None:
        if (rate, seed) not in values:
            raise UserError(f"{rate} with {seed} failed")
        return values[rate, seed]

    return look_up


RATES = {1 / 3: 0.1, 1: 0.3, 3: 0.9}


def test_the_rate_is_the_one_that_validation_prefers():
    assert choose("mbt", RATES, [5], reached({(0.1, 5): 0.7, (0.3, 5): 0.8, (0.9, 5): 0.9}), []) == 0.9


def test_of_rates_that_are_equally_good_the_one_nearest_to_the_models_own_is_taken():
    assert choose("mbt", RATES, [0], reached({(rate, 0): 1.0 for rate in RATES.values()}), []) == 0.3
    assert choose("mbt", {0.1: 1, 2: 20}, [0], reached({(1, 0): 1.0, (20, 0): 1.0}), []) == 20


def test_a_rate_that_fails_costs_no_other_and_a_seed_that_fails_at_all_leaves_the_choice_to_the_next():
    failed = []
    assert choose("mbt", RATES, [0, 1], reached({(0.1, 0): 0.5, (0.3, 1): 0.9}), failed) == 0.1
    assert failed == ["0.3 with 0 failed", "0.9 with 0 failed"]
    failed = []
    assert choose("mbt", RATES, [0, 1], reached({(0.3, 1): 0.9}), failed) == 0.3 and len(failed) == 5
    with pytest.raises(UserError, match="mbt: it could be trained at none of the rates 0.1, 0.3, 0.9"):
        choose("mbt", RATES, [0, 1], reached({}), [])


def test_one_rate_is_not_tried_and_several_need_validation():
    assert choose("mbt", {2: 0.6}, [0], reached({}), []) == 0.6
    with pytest.raises(UserError, match="mbt: nothing was validated, so nothing chooses among 2 rates"):
        choose("mbt", RATES, [0], reached({(0.1, 0): None, (0.3, 0): None}), [])


def test_the_rates_are_shares_of_the_models_own(project):
    assert rates_of("lavish", [0.5, 2], ["lavish.adapter_rate=3"], project) == {0.5: 1.5, 2: 6}


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
    assert read_right(tmp_path, several=False)[0] == {("a", "0"): (True, "a"), ("b", "0"): (False, "b")}
    assert read_right(tmp_path, several=True) == ({("a", "0"): (False, "a"), ("b", "0"): (True, "b")}, 1.0)
    (tmp_path / "predictions.csv").write_text("key,group,second,label,predicted\na,ann,0,x,x\n")
    assert read_right(tmp_path, several=False)[0] == {("a", "0"): (True, "ann")}


def right(pairs: dict[str, bool], group: str = "") -> dict:
    """What is right of clips of one pair each."""
    return {(key, "0"): (value, group or key) for key, value in pairs.items()}


def test_the_lead_is_over_the_pairs_that_all_runs_have():
    one, other = right({"a": True, "b": True, "c": False}), right({"a": True, "b": False, "d": True})
    found = lead([one], [other])
    assert found == scores.lead([[True, True]], [[True, False]], ["a", "b"]) and found.mean == 0.5
    assert lead([one, right({"b": True})], [other]).mean == 1


def test_the_lead_counts_pairs_of_a_group_together():
    ours, theirs = ({f"{clip}{number}": clip in said for clip in "abcdefgh" for number in range(9)}
                    for said in ("abcdef", "abgh"))
    apart = lead([right(ours)], [right(theirs)])
    together = lead(*([{(key, "0"): (value, key[0]) for key, value in said.items()}] for said in (ours, theirs)))
    assert apart.mean == together.mean == pytest.approx(0.25)
    assert together.high - together.low > 2.5 * (apart.high - apart.low) and together.p > apart.p


def run(right_: bool, **more) -> dict:
    return {"rate": "1", "trained": 1, "epoch": 1, "accuracy": float(right_), "chance": 1.0,
            "right": right({"a": right_}), **more}


def test_a_model_is_held_against_the_first_one_or_none():
    beside = rows({"maavt": [run(True)], "mbt": [run(False)]}, "maavt")
    assert "lead" not in beside[0] and beside[1]["lead"] == 1.0
    assert not any("lead" in row for row in rows({"paper": [run(True)], "mbt": [run(False)]}, "maavt"))


def test_what_fewer_than_three_seeds_cannot_tell_is_said():
    said = {(one, other): rows({"maavt": one * [run(True)], "mbt": other * [run(False)]}, "maavt")[1]["lead_lacks"]
            for one, other in ((1, 1), (2, 3), (3, 1), (3, 3))}
    assert said[3, 3] == "" and said[1, 1].startswith("one seed each: the interval allows for other test clips alone")
    assert said[2, 3].startswith("2 and 3 seeds hardly tell") and said[3, 1].startswith("3 and 1 seeds hardly tell")


def test_the_validation_accuracy_is_the_mean_of_what_each_run_reached():
    row, = rows({"maavt": [run(True, val_accuracy=value) for value in (0.6, 0.8, 0.7)]}, "maavt")
    assert (row["val_accuracy_mean"], row["val_accuracy_std"]) == (0.7, 0.1)
