import csv

import pytest
import torch

from maavt.measure.memory import peak_in_child
from maavt.measure.reference import BackboneFloor, PlainMAAVT
from maavt.models.backbone import create_backbone
from maavt.models.choice import multiplies_int8
from maavt.params import parse_params
from maavt.stages import benchmark
from maavt.stages.benchmark import RUNS, TABLE_7, count_parameters, create, make_run, measure
from maavt.training import machine
from maavt.training.losses import losses
from tests.conftest import make_project, tiny_settings

NOTES = {  # measured from the authors' code: total and trained, millions
    "vit_tiny_patch16_224": (10.199, 0.459), "vit_small_patch16_224": (31.878, 1.803),
    "vit_base_patch16_224": (109.740, 7.144), "vit_large_patch16_224": (338.362, 12.671),
}
TINY = "vit_tiny_patch16_224"
CPU = torch.device("cpu")


def params(recipe="best", **changes):
    return parse_params(tiny_settings(recipe=recipe, tokens=5, benchmark={"image_size": 32, "batches": [2], "rounds": 2,
                                                           "backbones": [TINY], **changes}))


@pytest.mark.parametrize("backbone", TABLE_7)
def test_maavt_has_the_parameters_of_the_authors_code(backbone):
    row = count_parameters("maavt_paper", backbone, params())
    assert row | {"model": ""} == count_parameters("maavt", backbone, params("paper")) | {"model": ""}
    total, trained = NOTES[backbone]
    assert row["trainable"] / 1e6 == pytest.approx(trained, rel=0.005)
    assert row["total_as_in_paper"] / 1e6 == pytest.approx(total, rel=0.005)
    assert float(row["paper_trainable_m"]) == pytest.approx(trained, rel=0.01)


@pytest.mark.parametrize("name, backbone", [("lavish", backbone) for backbone in TABLE_7]
                         + [("lavish_deep", "vit_base_patch16_224")])
def test_lavish_has_the_parameters_of_table_7(name, backbone):
    row = count_parameters(name, backbone, params())
    assert row["trainable"] / 1e6 == pytest.approx(float(row["paper_trainable_m"]), rel=0.02)
    assert row["total_as_in_paper"] / 1e6 == pytest.approx(float(row["paper_total_m"]), rel=0.02)


def test_what_each_stream_has_of_its_own_is_counted_and_is_not_the_papers():
    best, paper = (count_parameters(name, "vit_small_patch16_224", params()) for name in ("maavt", "maavt_paper"))
    width, rank, bottleneck, heads, bands = 384, 4, 32, 4, 14 + 14
    own = 2 * 12 * (rank * 4 * width + bottleneck * (2 * width + 1))
    own += 2 * ((heads - 1) * 2 + bands) * width * (28 + 1)
    assert best["trainable"] - paper["trainable"] == best["total_loaded"] - paper["total_loaded"] == own
    assert best["paper_trainable_m"] == "" != paper["paper_trainable_m"]


def test_of_the_probe_one_layer_is_trained():
    row = count_parameters("linear", "vit_small_patch16_224", params())
    assert row["trainable"] == (2 * 384 + 1) * 29 and row["total_loaded"] > 21e6


def test_all_of_mbt_is_trained():
    row = count_parameters("mbt", "vit_small_patch16_224", params())
    assert row["trainable"] == row["total_loaded"] > 2 * 21e6


def test_maavt_written_plainly_says_and_learns_the_same():
    torch.manual_seed(0)
    model = create("maavt_paper", TINY, params(), image_size=32).train()
    plain = PlainMAAVT(model, torch.float32)
    frames, sound, labels = torch.randn(4, 3, 32, 32), torch.randn(4, 32, 32), torch.tensor([0, -1, 3, 1])
    grads = []
    for form in (model, plain.train()):
        parts = losses(form(frames, sound), labels)
        grads.append((parts.total, *torch.autograd.grad(parts.total, [model.prompts["shared"].tokens,
                                                                       model.background_prompt])))
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-4)


def test_the_floor_is_timms_own_forward_pass():
    vit = create_backbone(TINY, image_size=32).eval()
    frames, sound = torch.randn(2, 3, 32, 32), torch.randn(2, 32, 32)
    seen, heard = BackboneFloor(vit, torch.float32)(frames, sound)
    assert torch.equal(seen, vit(frames)) and torch.equal(heard, vit(sound[:, None].repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("mode, name", [(mode, name) for mode, names in RUNS.items() for name in names])
def test_a_step_trains_in_training_alone(monkeypatch, mode, name):
    if name.endswith(benchmark.INT8) and not multiplies_int8():
        pytest.skip("this CPU has no products of int8")
    seen = []
    monkeypatch.setattr(benchmark, "losses", lambda output, labels: seen.append(output) or losses(output, labels))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: seen.append(
        [p.grad is not None for group in self.param_groups for p in group["params"]]))
    run = make_run(name, mode, TINY, 2, params(), CPU)
    seen.clear()  # the optimiser's states were made
    run.step()
    if mode == "training":
        output, learned = seen
        assert output.logits.shape == (2, 28) and all(learned)
    else:
        assert not seen


@pytest.fixture
def few_runs(monkeypatch):
    """Two models alone, on the CPU, without measuring memory."""
    monkeypatch.setattr(benchmark, "RUNS", {mode: ("maavt", "lavish") for mode in RUNS})
    monkeypatch.setattr(benchmark, "pick_device", lambda: CPU)
    monkeypatch.setattr(benchmark, "peak_in_child", lambda *arguments: 12.3)


def test_throughput_has_a_row_per_run_and_ratios_of_the_columns_beside_them(monkeypatch, few_runs):
    seconds = iter(range(1, 100))
    monkeypatch.setattr(benchmark, "_time", lambda step, device: float(next(seconds)))
    rows = measure(TINY, params())
    assert [(row["mode"], row["model"]) for row in rows] == [(mode, name) for mode in RUNS
                                                             for name in ("maavt", "lavish")]
    first = rows[0]  # after the warm-up its rounds took 5 and 9 seconds, those of lavish 6 and 10
    assert float(first["samples_per_second"]) == pytest.approx((2 / 5 + 2 / 9) / 2, abs=0.01)
    speeds = [float(row["samples_per_second"]) for row in rows[:2]]
    assert first["ratio_to_lavish"] == f"{speeds[0] / speeds[1]:.2f}" == "1.15"
    assert first["device"].startswith(machine.cpu()) and "threads" in first["device"]
    assert first["ratio_to_floor"] == ""
    assert first["peak_memory_mb"] == "12" and first["rounds"] == 2


def test_the_budget_ends_the_rounds_after_the_first(monkeypatch, few_runs):
    monkeypatch.setattr(benchmark, "peak_in_child", lambda *arguments: float("nan"))
    rows = measure(TINY, params(rounds=50, budget_seconds=0.001))
    assert {row["rounds"] for row in rows} == {1}
    assert {row["peak_memory_mb"] for row in rows} == {""}


def test_a_batch_that_does_not_fit_is_left_out_and_said(monkeypatch, few_runs, capsys):
    def make(name, mode, *rest):
        run = make_run(name, mode, *rest)
        if name == "lavish":
            def step():
                raise torch.OutOfMemoryError
            run.step = step
        return run

    monkeypatch.setattr(benchmark, "make_run", make)
    rows = measure(TINY, params())
    assert "lavish" not in {row["model"] for row in rows}
    assert "lavish, training: a batch of 2 does not fit the memory of cpu" in capsys.readouterr().out
    assert {row["ratio_to_lavish"] for row in rows} == {""}


def hold(megabytes: int) -> None:
    bytearray(megabytes << 20)


def test_peak_memory_is_that_of_the_work_alone():
    ballast = bytearray(500 << 20)  # what this process holds is not counted
    assert peak_in_child(hold, 200) == pytest.approx(200, abs=30)
    del ballast


def test_the_stage_writes_its_tables_and_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path / "a project", benchmark={"rounds": 1}))
    monkeypatch.setattr(benchmark, "RUNS", {"inference": ("maavt", "lavish", "matmul_limit"), "training": ("maavt",)})
    benchmark.main([])
    folder = tmp_path / "a project" / "data" / "benchmark"
    tables = {}
    for table in ("parameters", "throughput", "attention"):
        with open(folder / f"{table}.csv", newline="") as file:
            tables[table] = list(csv.DictReader(file))
    assert {row["backbone"] for row in tables["parameters"]} == set(TABLE_7)
    assert {row["model"] for row in tables["parameters"]} == set(benchmark.MODELS)
    assert all(float(row["samples_per_second"]) > 0 for row in tables["throughput"])
    memory = {(row["model"], row["mode"]): row["peak_memory_mb"] for row in tables["throughput"]}
    assert float(memory["maavt", "training"]) > 10 and memory["matmul_limit", "inference"] == ""
    for mode in ("inference", "training"):
        kernels = [row for row in tables["attention"] if row["mode"] == mode]
        assert sorted(row["chosen"] for row in kernels) == ["no", "yes"]
    assert (folder / "throughput.svg").read_text().count("<svg") == 1
    assert (folder / "parameters.svg").exists()
