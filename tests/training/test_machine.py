import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from maavt.errors import UserError
from maavt.models.choice import CHOSEN, Choice, choice
from maavt.models.vit import prefers_fused
from maavt.training import machine, runtime
from maavt.training.runtime import compute_type, pick_device

CPU = torch.device("cpu")
SLOW = {"float32": {"fused_inference": False, "fused_training": True, "pack": True}}


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that knows nothing of its machine yet, outside of any project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MAAVT_DTYPE", raising=False)
    monkeypatch.delenv("MAAVT_DEVICE", raising=False)
    before = dict(CHOSEN)
    CHOSEN.clear()
    machine.calibrated.cache_clear()
    yield tmp_path
    machine.calibrated.cache_clear()
    CHOSEN.clear()
    CHOSEN.update(before)


def test_a_machine_is_measured_once_and_chooses_the_same_ever_after(fresh, monkeypatch):
    monkeypatch.setattr(machine, "SHAPES", ((1, 9),))
    kind, path = machine.calibrated()
    assert path.parent == fresh / "cache" / "maavt" / "machine" and path.name.startswith(machine.cpu()[:3].lower())
    found = json.loads(path.read_text())
    assert found["dtype"] in found["chosen"] and found["cpu"] == machine.cpu() and len(found["milliseconds"]) >= 7
    found |= {"dtype": "float32", "chosen": SLOW}
    path.write_text(json.dumps(found))
    monkeypatch.setattr(machine, "measure", lambda: pytest.fail("measured again"))
    machine.calibrated.cache_clear()
    assert compute_type(pick_device()) == torch.float32
    q = torch.zeros(1, 1, 2, 4)
    assert not prefers_fused(q) and prefers_fused(q.requires_grad_())
    assert "attention by products in inference, by one kernel in training; weights laid out for oneDNN" in \
        machine.describe(torch.float32)


def test_all_projects_of_a_machine_go_by_one_measurement(fresh, monkeypatch):
    """Else the same seed would give models that differ by what rounding does."""
    monkeypatch.setattr(machine, "measure", lambda: {"dtype": "float32", "chosen": SLOW})
    found = set()
    for name in ("one", "another"):
        (fresh / name).mkdir()
        (fresh / name / "dvc.yaml").touch()
        monkeypatch.chdir(fresh / name)
        machine.calibrated.cache_clear()
        found.add(machine.calibrated()[1])
        assert choice(torch.float32, CPU) == Choice(fused_inference=False, pack=True)
    assert len(found) == 1 and found.pop().is_relative_to(fresh / "cache")


@pytest.mark.parametrize("text", ["", "[]", '{"dtype": "float32", "chosen": {"float32": {"fast": true}}}',
                                  '{"dtype": "bfloat16", "chosen": {"float32": {}}}'])
def test_a_measurement_that_cannot_be_read_is_taken_anew(fresh, monkeypatch, text):
    monkeypatch.setattr(machine, "measure", lambda: {"dtype": "float32", "chosen": SLOW})
    path = machine.calibrated()[1]
    path.write_text(text)
    machine.calibrated.cache_clear()
    machine.calibrated()
    assert json.loads(path.read_text())["chosen"] == SLOW


def test_processes_that_start_together_measure_once(fresh, monkeypatch):
    """Threads stand in for them: each opens the lock for itself."""
    measured = []

    def measure():
        time.sleep(0.2)
        measured.append(1)
        return {"dtype": "float32", "chosen": SLOW}

    monkeypatch.setattr(machine, "measure", measure)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(machine.calibrated.__wrapped__) for _ in range(3)]
    assert len({one.result() for one in found}) == len(measured) == 1


def test_what_a_seed_makes_does_not_depend_on_whether_this_machine_was_measured_before(fresh):
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        machine.calibrated()
        drawn.append(torch.rand(3))
        machine.calibrated.cache_clear()
    assert list((fresh / "cache").rglob("*.json")) and torch.equal(*drawn)


def test_without_a_place_to_write_the_usual_ways_are_taken(fresh, monkeypatch):
    (fresh / "cache").write_text("a file, where a folder should be")
    monkeypatch.setattr(machine, "measure", lambda: pytest.fail("what is not written down would not repeat"))
    assert machine.calibrated() == (torch.float32, None)
    assert choice(torch.float32, CPU) == Choice() and "not measured" in machine.describe(torch.float32)


def test_the_usual_way_stays_unless_another_is_clearly_faster(monkeypatch):
    clock = {"now": 0.0}
    takes = {"fused": 1.0, "plain": 0.95, "as it is": 1.0, "packed": 0.8}
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock["now"])

    def work(kind):
        def step(way):
            clock["now"] += takes[way]
        return {(task, way): lambda way=way: step(way)
                for task, ways in (("attention, inference", ("fused", "plain")), ("mlp, training", ("as it is",)),
                                   ("attention, training", ("fused", "plain")),
                                   ("mlp, inference", ("as it is", "packed"))) for way in ways}

    monkeypatch.setattr(machine, "_work", work)
    assert machine.measure()["chosen"]["float32"] == {"fused_inference": True, "fused_training": True, "pack": True}
    takes["plain"] = 0.5
    assert machine.measure()["chosen"]["float32"]["fused_inference"] is False


def test_the_number_type_can_be_named(fresh, monkeypatch):
    monkeypatch.setattr(machine, "measure", lambda: {"dtype": "float32", "chosen": SLOW})
    for name in ("bfloat16", "float32"):
        monkeypatch.setenv("MAAVT_DTYPE", name)
        assert compute_type(CPU) == getattr(torch, name)
    monkeypatch.setenv("MAAVT_DTYPE", "half")
    with pytest.raises(UserError, match="MAAVT_DTYPE='half': expected bfloat16, float32, int8; set it to one, or"):
        compute_type(CPU)


def test_int8_is_for_cpus_that_multiply_it_and_lasts_until_it_is_no_longer_named(fresh, monkeypatch):
    monkeypatch.setattr(machine, "measure", lambda: {"dtype": "float32", "chosen": SLOW})
    monkeypatch.setenv("MAAVT_DTYPE", "int8")
    monkeypatch.setattr(runtime, "multiplies_int8", lambda: False)
    with pytest.raises(UserError, match="MAAVT_DTYPE=int8 is for a CPU with VNNI, not for .*; set it to bfloat16"):
        compute_type(CPU)
    monkeypatch.setattr(runtime, "multiplies_int8", lambda: True)
    assert compute_type(CPU) == torch.float32 and choice(torch.float32, CPU).int8
    monkeypatch.delenv("MAAVT_DTYPE")
    assert compute_type(CPU) == torch.float32 and not choice(torch.float32, CPU).int8
