import shlex
import subprocess
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import given
from hypothesis import strategies as st

from maavt.errors import UserError
from maavt.params import PAPER, PER_DATASET, load_params, parse_params

ROOT = Path(__file__).parents[1]
FILE = ROOT / "params.yaml"
VALUES = yaml.safe_load(FILE.read_text())


def changed(**changes) -> dict:
    """The project's settings with `block__key=value` changed."""
    values = yaml.safe_load(yaml.safe_dump(VALUES))
    for path, value in changes.items():
        *blocks, key = path.split("__")
        inner = values
        for block in blocks:
            inner = inner[block]
        inner[key] = value
    return values


def test_the_committed_settings_are_sound():
    assert parse_params(VALUES).dataset == "synth"


def test_every_mistake_is_told_at_once_with_key_value_and_expectation():
    with pytest.raises(UserError) as error:
        parse_params(changed(tokenz=3, tokens="ten", train__batch=0.5, seed=-1, dataset="audioset"))
    told = str(error.value)
    assert told.startswith("5 mistakes in params.yaml:")
    for line in ("tokenz: 3, but there is no such setting", "tokens: 'ten'; expected integer", "train.batch: 0.5",
                 "seed: -1; expected greater than or equal to 0", "dataset: 'audioset'; expected 'synth'"):
        assert line in told


def test_epochs_are_one_number_or_one_for_each_data_set():
    assert parse_params(changed(train__epochs=7)).epochs(steps=100) == 7
    assert parse_params(changed(train__epochs={"synth": 3, "ave": 9})).epochs(steps=100) == 3


@pytest.mark.parametrize("key", [key for key in PER_DATASET if key != "train.epochs"])
def test_a_setting_is_one_number_or_one_for_each_data_set(key):
    name = key.replace(".", "__")
    alone, of_synth = (attrgetter(key)(parse_params(changed(**{name: value}))) for value in
                       (56, {"synth": 56, "ave": 42}))
    assert alone == of_synth == 56
    with pytest.raises(UserError, match=f"{key}: nothing for the data set 'synth'; expected a number"):
        parse_params(changed(**{name: {"ave": 42}}))


@pytest.mark.parametrize("pairs, epochs", [(44, 100), (600, 22), (30_000, 3)])
def test_automatic_epochs_make_the_wanted_steps_within_bounds(pairs, epochs):
    params = parse_params(changed(train__epochs={"synth": "auto"}, train__steps=400))
    assert params.epochs(steps=-(-pairs // 32)) == epochs


def test_the_papers_recipe_resets_what_the_paper_has_not():
    best, paper = (parse_params(changed(recipe=recipe)) for recipe in ("best", "paper"))
    assert best.maavt.lora_rank and best.maavt.bottleneck and best.train.average
    assert not any((paper.maavt.lora_rank, paper.maavt.bottleneck, paper.train.average))
    assert paper.maavt.same_class == "negatives" and paper.train.learning_rate == best.train.learning_rate


def test_a_setting_that_the_papers_recipe_would_reset_is_an_error_that_names_it():
    with pytest.raises(UserError, match=r"maavt.lora_rank: 8, but recipe: paper resets it to 0; expected recipe: best"):
        parse_params(changed(recipe="paper", maavt__lora_rank=8))
    assert parse_params(changed(recipe="paper", maavt__lora_rank=0)).maavt.lora_rank == 0
    assert parse_params(changed(maavt__lora_rank=8)).maavt.lora_rank == 8


def test_the_defaults_that_the_papers_recipe_resets_are_those_of_the_file():
    params = parse_params(changed())
    assert {(block, name): getattr(getattr(params, block), name) for block, resets in PAPER.items() for name in resets
            } == {(block, name): default for block, resets in PAPER.items() for name, (_, default) in resets.items()}


def test_the_settings_that_the_papers_recipe_takes_back_are_those_that_the_file_marks():
    block, marked = "", set()
    for line in FILE.read_text().splitlines():
        key = line.split(":")[0].strip()
        block = key if line[:1].isalpha() else block
        marked |= {(block, key)} if "# [best]" in line else set()
    assert marked == {(name, key) for name, off in PAPER.items() for key in off}


def test_a_missing_setting_is_named():
    values = changed()
    del values["train"]["epochs"]
    with pytest.raises(UserError, match=r"train\.epochs: missing"):
        parse_params(values)


@pytest.mark.parametrize("changes, told", [
    ({"image_size": 100}, "image_size: 100 is not a multiple of the patch size 14"),
    ({"image_size": 112 * 14}, "more than shard.frame_size"),
    ({"tokens": -1}, "tokens: -1"),
    ({"tokens": 0}, "maavt.contrastive: 'blockwise' needs shared prompts"),
    ({"backbone": "resnet50"}, "names no patch size"),
    ({"backbone": "vit_base_patch16_224", "image_size": 112}, "weights: 'packaged' holds vit_small_patch14_dinov2"),
    ({"models": []}, "models"),
    ({"models": ["maavt", "maavt"]}, "names one twice"),
    ({"synth__classes": 7}, "multiple of 2"),
    ({"shard__spectrogram": {}}, "no recipe for the data set 'synth'"),
    ({"train__epochs": {"ave": 3}}, "train.epochs: nothing for the data set 'synth'"),
    ({"train__epochs": 0}, "train.epochs: 0; expected greater than or equal to 1"),
    ({"train__epochs": {"synth": "ten"}}, "train.epochs.synth: 'ten'; expected integer"),
    ({"evaluate__vggsounder": True}, "evaluate.vggsounder: true, but the data set is synth"),
])
def test_values_that_make_no_sense_together_are_refused(changes, told):
    with pytest.raises(UserError) as error:
        parse_params(changed(**changes))
    assert told in str(error.value)


SCALARS = st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5) | st.integers()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=8))
def test_nothing_but_settings_is_taken_for_settings(values):
    with pytest.raises(UserError):
        parse_params(values)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="is not YAML"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("change", ["maavt.contrastive=off", "train.learning_rate=1e-3"])
def test_what_dvc_writes_for_an_experiment_is_read_as_it_was_meant(tmp_path, change):
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text())
    apply_overrides(path, [change])
    params = load_params(path)
    assert (params.maavt.contrastive, params.train.learning_rate) in (("off", 0.003), ("blockwise", 0.001))


def test_numbers_and_words_that_yaml_1_1_took_for_something_else_are_themselves(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text().replace("contrastive: blockwise", "contrastive: off")
                    .replace("learning_rate: 0.003", "learning_rate: 3e-3"))
    params = load_params(path)
    assert (params.maavt.contrastive, params.train.learning_rate) == ("off", 0.003)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no .*params.yaml"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("dataset", ["ave", "vggsound", "cremad"])
def test_the_settings_that_make_paper_changes_are_the_papers_and_fit_together(dataset):
    done = subprocess.run(["make", "-n", "paper", f"DATASET={dataset}"], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    (line,) = [line for line in done.stdout.splitlines() if "flows.exp" in line]
    pairs = [word.split("=") for word in shlex.split(line) if "=" in word and not word.startswith("PATH")]
    params = parse_params(changed(**{key.replace(".", "__"): yaml.safe_load(value) for key, value in pairs}))
    train, sound = params.train, params.shard.spectrogram[dataset]
    assert params.dataset == dataset and params.models == ("maavt",) and params.tokens == 5
    assert params.recipe == "paper" and params.train.warmup == 0
    assert params.image_size == params.shard.frame_size == 224 and params.backbone.startswith("vit_base_patch16_224.")
    assert (train.batch, train.learning_rate, train.epochs) == (256, 0.01, 50)
    assert (train.schedule, train.step_epochs) == ("step", 15)
    assert params.maavt.projector == "mlp" and params.maavt.contrastive == "blockwise" and params.maavt.lsa
    assert sound.seconds == {"ave": 1, "vggsound": 5, "cremad": 3}[dataset]


def test_make_paper_names_the_data_sets_that_it_knows():
    done = subprocess.run(["make", "paper", "DATASET=synth", "-o", ".venv/bin/.installed"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "DATASET=synth: expected ave, vggsound or cremad" in done.stderr
