"""The plan of the house: imports go down only, and dvc.yaml names for each stage exactly the rooms that it uses."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from maavt.models import MODELS

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SHARED = {"__init__", "cli", "params", "errors", "progress", "work", "clips"}  # the modules at the top of maavt/
FLOORS = [{"stages", "commands"}, {"recordings"}, {"training", "sources", "measure", "page"},
          {"models", "shards", "media", "workers"}, {"fetch"}, SHARED]  # from above to below


def imported(file: Path) -> set[Path]:
    """The modules of maavt that a file imports, anywhere in it, and those of the packages around them."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for parts in (name.split(".") for name in names if name.split(".")[0] == "maavt"):
        for end in range(1, len(parts) + 1):
            place = ROOT.joinpath(*parts[:end])
            found |= {path for path in (place / "__init__.py", place.with_suffix(".py")) if path.exists()}
    return found


def room(file: Path) -> str:
    """The folder of a module inside maavt/, or the name of one that lies at the top."""
    parts = file.relative_to(ROOT / "maavt").parts
    return parts[0] if len(parts) > 1 else file.stem


def dependency(file: Path) -> str:
    """How dvc.yaml names what a module belongs to: its folder, but for the stages, each of which stands alone."""
    parts = file.relative_to(ROOT).parts
    return "/".join(parts if len(parts) == 2 or parts[1] == "stages" else parts[:2])


def closure(file: Path) -> set[Path]:
    """All modules of the package that running this one may import."""
    found, waiting = set(), {file, ROOT / "maavt" / "__init__.py"}
    while waiting:
        found |= waiting
        waiting = set().union(*map(imported, waiting)) - found
    return found


MODULES = sorted((ROOT / "maavt").rglob("*.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_exactly_the_rooms_that_it_uses(stage):
    module = re.match(r"python -m maavt\.cli (\w+)", STAGES[stage]["cmd"])[1]
    files = closure(ROOT / "maavt" / "cli.py") | closure(ROOT / "maavt" / "stages" / f"{module}.py")
    wanted = set(map(dependency, files)) - {"maavt/stages/__init__.py"}
    wanted |= {str(beside.relative_to(ROOT)) for file in files if room(file) == "stages"
               for beside in file.parent.glob(f"{module}*") if beside.name != "__pycache__"}
    named = {dep for dep in STAGES[stage]["deps"] if dep.startswith("maavt/")}
    assert named == wanted, f"{stage}: missing {sorted(wanted - named)}, too many {sorted(named - wanted)}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_module_imports_nothing_from_a_floor_above(file):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    above = [str(other.relative_to(ROOT)) for other in imported(file) if floor[room(other)] < floor[room(file)]]
    assert not above


def test_rooms_of_a_floor_do_not_import_each_other_in_a_circle():
    uses = {}
    for file in MODULES:
        uses.setdefault(room(file), set()).update(map(room, imported(file)))
    for here, others in uses.items():
        for there in others - {here, "__init__"}:
            assert here not in uses[there], f"{here} and {there} import each other"


def test_nothing_else_lies_at_the_top_of_the_package():
    assert {file.stem for file in (ROOT / "maavt").glob("*.py")} == SHARED
    folders = {path.name for path in (ROOT / "maavt").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set().union(*FLOORS[:-1])


def test_the_graph_is_short_enough_to_be_read():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 130


def test_the_package_imports_neither_prefect_nor_the_flows():
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("prefect", "flows")], file


def test_the_benchmark_is_measured_anew_when_a_setting_changes_what_a_model_is_built_from():
    beginning = {"prompt_std", "prompt_init", "standardise"}  # numbers, which take the same time whatever they are
    built = {f"{name}.{field.name}" for name, (_, config) in MODELS.items() if name != "linear"
             for field in fields(config) if field.name not in beginning}
    known = {f"{block}.{key}" for block in MODELS for key in yaml.safe_load((ROOT / "params.yaml").read_text())[block]}
    named = {key for key in STAGES["benchmark"]["params"] if "." in key}
    depths = {f"{name}.depth" for name in ("maavt", "lavish", "mbt")}
    assert named == built & known | depths
