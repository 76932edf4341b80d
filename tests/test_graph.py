"""dvc.yaml names for each stage exactly the modules that the stage imports: DVC does not follow imports."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_files(name: str) -> set[str]:
    """The files that importing maavt.x.y runs, below the project; empty for names that are no modules."""
    path = ROOT / name.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():
        return set()
    parents = [parent / "__init__.py" for parent in file.parents if ROOT in parent.parents]
    return {str(found.relative_to(ROOT)) for found in (file, *parents)}


def direct_needs(file: str) -> set[str]:
    """Modules of maavt that a file imports, and data files of the package that it names."""
    needs = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                needs |= module_files(alias.name) if alias.name.startswith("maavt") else set()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maavt"):
            needs |= module_files(node.module)
            for alias in node.names:
                needs |= module_files(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[\w/]+\.\w+", str(node.value)):
            data = (ROOT / file).parent / str(node.value)
            if data.is_file() and data.suffix != ".py":
                needs.add(str(data.relative_to(ROOT)))
    return needs


def closure(file: str) -> set[str]:
    """All files of the package that running `file` as a module may read."""
    found, waiting = set(), {file, *module_files("maavt")}
    while waiting:
        found |= waiting
        waiting = set().union(*(direct_needs(f) for f in waiting if f.endswith(".py"))) - found
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_exactly_the_modules_that_it_imports(stage):
    module = re.match(r"python -m maavt\.cli (\w+)", STAGES[stage]["cmd"])[1]
    wanted = closure("maavt/cli.py") | closure(f"maavt/{module}.py")
    named = {dep for dep in STAGES[stage]["deps"] if dep.startswith("maavt/")}
    assert named == wanted, f"{stage}: missing {sorted(wanted - named)}, too many {sorted(named - wanted)}"


def test_the_package_imports_neither_prefect_nor_the_flows():
    for file in (ROOT / "maavt").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("prefect", "flows")], file
