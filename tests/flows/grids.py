"""What the tests of grids of experiments share: a small project, and a flow run in it as people run it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import GIT, ROOT


def make_project(folder: Path, *, stage: str, graph: str, params: str) -> Path:
    """A DVC project with a commit, whose stages run `stage` as stage.py and note in `begun` that they have."""
    folder.mkdir()
    files = {"stage.py": stage, "dvc.yaml": graph, "params.yaml": params, ".gitignore": "/data\n/.prefect\n/begun\n"}
    for name, text in files.items():
        (folder / name).write_text(text)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], ["git", "add", "."],
                    ["git", "commit", "-qm", "a project"]):
        subprocess.run(command, cwd=folder, check=True, env=os.environ | GIT)
    return folder


def run_flow(flow: str, project: Path, *arguments: str) -> subprocess.CompletedProcess:
    """python -m flows.FLOW in a project, with a Prefect server of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "DVC"))}
    return subprocess.run([sys.executable, "-m", f"flows.{flow}", "--project", str(project), *arguments], cwd=ROOT,
                          env=environment | {"PREFECT_HOME": str(project / ".prefect")}, capture_output=True, text=True)
