"""The graph as a newcomer runs it, in a clone with a space in its path and tiny settings."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import GIT
from tests.conftest import clone as clone_of_the_tree

ENV = os.environ | GIT | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return clone_of_the_tree(tmp_path_factory.mktemp("end to end") / "my project")


def dvc(clone: Path, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=clone, env=ENV, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == expect, done.stdout
    return done.stdout


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def test_everything_runs_once_then_only_the_look_at_files_then_only_what_tokens_concern(clone):
    stages = dvc(clone, "stage", "list", "--name-only").split()
    first = dvc(clone, "repro")
    assert sorted(stages_run(first)) == sorted(stages)
    assert stages_run(first)[0] == "listing"  # which tells of wrong settings
    assert (clone / "data/report/index.html").exists()
    left = [path for path in (clone / ".work").rglob("*.*[!k]") if path.parent.name != "logs"]
    assert not (clone / "data/raw/synth/.tmp").exists() and not left

    assert stages_run(dvc(clone, "repro")) == ["listing"]

    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, check=True, capture_output=True, text=True)
    assert status.stdout == "?? dvc.lock\n"
    subprocess.run(["git", "add", "dvc.lock"], cwd=clone, check=True)
    subprocess.run(["git", "commit", "-qm", "first run"], cwd=clone, check=True, env=ENV)
    experiment = dvc(clone, "exp", "run", "--name", "ten", "-S", "tokens=10")
    assert sorted(stages_run(experiment)) == ["benchmark", "evaluate@maavt", "listing", "report", "train@maavt"]
    config = json.loads((clone / "data/models/maavt/config.json").read_text())
    assert config["tokens"] == config["settings"]["tokens"] == 10

    shown = json.loads(dvc(clone, "exp", "show", "--json"))
    tokens = [found["params"]["params.yaml"]["data"]["tokens"]
              for row in shown for found in ([row["data"]] if row["rev"] != "workspace" else [])]
    named = [experiment["revs"][0]["data"] for row in shown for experiment in row.get("experiments") or []]
    assert tokens[0] == 2 and [data["params"]["params.yaml"]["data"]["tokens"] for data in named] == [10]
    for data in (shown[1]["data"], *named):
        assert 0 <= data["metrics"]["data/eval/maavt/metrics.json"]["data"]["accuracy"] <= 1

    assert "data/eval/maavt/metrics.json" in json.loads(dvc(clone, "metrics", "diff", "--json", "--all"))


def test_a_wrong_value_is_one_clear_error_and_the_next_run_goes_on(clone):
    told = dvc(clone, "exp", "run", "--temp", "-S", "train.batch=none", expect=255)
    assert "train.batch: 'none'; expected integer" in told or "train.batch: None; expected integer" in told
    assert "Traceback" not in told
    assert "tokenz" in dvc(clone, "exp", "run", "-S", "tokenz=10", expect=255)


def test_an_unwritable_data_folder_is_one_clear_error_and_the_next_run_goes_on(clone):
    shutil.rmtree(clone / "data")
    (clone / "data").write_text("in the way")
    done = subprocess.run([sys.executable, "-m", "maavt.stages.backbone"], cwd=clone, env=ENV, capture_output=True,
                          text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    (clone / "data").unlink()
    assert stages_run(dvc(clone, "repro")) == ["listing"]
    assert (clone / "data/report/index.html").exists()
