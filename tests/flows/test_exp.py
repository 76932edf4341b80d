"""make exp in a project of one stage: what DVC keeps of it, and what it leaves of the workspace and of git's index."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.cli import main

from tests.conftest import GIT, ROOT
from tests.flows.grids import make_project

STAGE = """
import json, time
from pathlib import Path
tokens = Path("params.yaml").read_text().split("tokens: ")[1].split()[0]
Path("data/models").mkdir(parents=True)
Path("data/models/tokens").write_text(tokens)
Path("data/metrics.json").write_text(json.dumps({"accuracy": int(tokens)}))
if tokens == "600":
    Path("begun").touch()
    time.sleep(600)
"""
GRAPH = """
stages:
  train:
    cmd: python stage.py
    params: [tokens]
    outs: [data/models]
    metrics: [data/metrics.json]
"""
ENV = os.environ | GIT | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
COMMAND = [sys.executable, "-m", "flows.exp"]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A new clone; the test runs inside it."""
    made = make_project(tmp_path / "a project", stage=STAGE, graph=GRAPH, params="tokens: 5   # prompts\nseed: 0\n")
    for name in ("gone", "untracked", "moved", "half"):
        (made / name).write_text(name)
    git(made, "add", ".")
    git(made, "commit", "-qm", "more")
    monkeypatch.chdir(made)
    for name in ENV:
        monkeypatch.setenv(name, ENV[name])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return made


def git(project: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=project, env=ENV, capture_output=True, text=True, check=True).stdout


def dvc(*command: str) -> None:
    """dvc in this process, which takes a tenth of the time."""
    assert main([*command, "--quiet"]) == 0


def exp(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, "--project", ".", *arguments], capture_output=True, text=True)


def status(project: Path) -> str:
    return git(project, "status", "--porcelain")


def model(project: Path) -> str:
    return (project / "data" / "models" / "tokens").read_text()


def test_experiments_leave_a_new_clone_as_it_was_are_brought_here_and_left_again(project):
    done = exp("tokens=10")
    assert done.returncode == 0, done.stderr
    assert status(project) == "" and not (project / "data/models").exists()
    dvc("exp", "apply", "tokens-10")
    assert model(project) == "10" and status(project) == " M params.yaml\n?? dvc.lock\n"
    git(project, "checkout", ".")  # the way back that README names
    dvc("repro")
    assert model(project) == "5" and status(project) == "?? dvc.lock\n"
    git(project, "add", "dvc.lock")
    git(project, "commit", "-qm", "result")
    dvc("exp", "apply", "tokens-10")
    assert model(project) == "10" and status(project) == " M dvc.lock\n M params.yaml\n"
    git(project, "checkout", ".")
    dvc("repro")
    assert model(project) == "5" and status(project) == ""


def test_what_was_made_and_what_is_staged_stays_as_it_is(project):
    dvc("repro")
    git(project, "rm", "-q", "gone")
    git(project, "rm", "-q", "--cached", "untracked")
    git(project, "mv", "moved", "elsewhere")
    for name, staged in (("new", "1"), ("half", "1")):
        (project / name).write_text(staged)
        git(project, "add", name)
    (project / "half").write_text("2")
    before = status(project), git(project, "diff", "--cached")
    done = exp("--name", "no..name", "tokens=10")  # which DVC refuses at the end, and says itself why
    assert done.returncode == 1 and "ERROR: " in done.stderr and "no..name" in done.stderr
    assert (status(project), git(project, "diff", "--cached")) == before and model(project) == "5"
    done = exp("tokens=10")
    assert done.returncode == 0, done.stderr
    assert (status(project), git(project, "diff", "--cached")) == before and model(project) == "5"
    kept = git(project, "for-each-ref", "--format=%(refname)", "refs/exps/*/*/tokens-10").strip()
    held = git(project, "ls-tree", "-r", "--name-only", kept).split()
    assert {"new", "elsewhere", "untracked"} <= set(held) and not {"gone", "moved"} & set(held)


def test_ctrl_c_brings_back_what_was_made_before_also_beside_edited_settings(project):
    dvc("repro")
    (project / "params.yaml").write_text("tokens: 6\nseed: 0\n")
    with subprocess.Popen([*COMMAND, "--project", ".", "tokens=600"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as running:
        while not (project / "begun").exists():
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    assert model(project) == "5" and (project / "params.yaml").read_text() == "tokens: 6\nseed: 0\n"
