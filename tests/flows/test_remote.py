"""DVC's cache in S3, against a real S3 server (moto's) on loopback: what one clone pushes another one pulls."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.conftest import GIT

SECRET = "planted-secret-wJalrXUtnFEMI"
STAGES = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    outs: [made]
"""
MAKE = """
import os
for number in range(30):
    os.makedirs("made", exist_ok=True)
    with open(f"made/{number}", "w") as file:
        file.write(f"{number} " * 5000)
"""


@pytest.fixture(scope="module")
def server():
    """The variables with which S3's clients find the server and its bucket `lab`."""
    running = ThreadedMotoServer("127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    variables = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "planted-key-AKIA",
                 "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="lab")
    yield variables
    running.stop()


@pytest.fixture
def project(server, tmp_path) -> Path:
    """A project whose stage has run, with an empty folder of the bucket as its remote."""
    folder = tmp_path / "a project"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "make.py").write_text(MAKE)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"],
                    ["dvc", "remote", "add", "-q", "-d", "store", f"s3://lab/{tmp_path.name}"], ["git", "add", "."],
                    ["git", "commit", "-qm", "a project"]):
        assert run(folder, server, *command).returncode == 0
    return folder


def environment(server: dict) -> dict:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | GIT | server | {"PATH": path}


def run(folder: Path, server: dict, *command: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *command] if command[0] == "dvc" else command
    return subprocess.run(command, cwd=folder, env=environment(server), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def clone(project: Path, server: dict, name: str) -> Path:
    folder = project.with_name(name)
    assert run(project.parent, server, "git", "clone", "-q", str(project), str(folder)).returncode == 0
    return folder


def objects(project: Path, server: dict) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.items():
            patch.setenv(name, value)
        found = boto3.client("s3").list_objects_v2(Bucket="lab", Prefix=f"{project.parent.name}/")
    return [item["Key"] for item in found.get("Contents", [])]


def test_what_one_clone_pushes_in_two_attempts_another_one_pulls_and_then_nothing_runs(project, server):
    with subprocess.Popen([sys.executable, "-m", "dvc", "push", "-q"], cwd=project, env=environment(server),
                          start_new_session=True) as push:
        while push.poll() is None and not objects(project, server):
            time.sleep(0.02)
        os.killpg(push.pid, signal.SIGKILL)
    assert run(project, server, "dvc", "push").returncode == 0
    other = clone(project, server, "another clone")
    assert run(other, server, "dvc", "pull", "-q").returncode == 0
    done = run(other, server, "dvc", "repro")
    assert "Running stage" not in done.stdout and "up to date" in done.stdout
    assert {path.name: path.read_bytes() for path in (other / "made").iterdir()} == {
        path.name: path.read_bytes() for path in (project / "made").iterdir()}


@pytest.mark.long
def test_an_object_that_is_missing_is_named_and_secrets_are_nowhere(project, server):
    assert run(project, server, "dvc", "push", "-q").returncode == 0
    lock = (project / "dvc.lock").read_text()
    gone = next(key for key in objects(project, server) if not key.endswith(".dir"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.items():
            patch.setenv(name, value)
        boto3.client("s3").delete_object(Bucket="lab", Key=gone)
    other = clone(project, server, "another clone")
    done = run(other, server, "dvc", "pull")
    assert done.returncode and "".join(gone.split("/")[-2:]) in done.stdout, done.stdout
    wrong = run(other, server | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "dvc", "pull", "-v")
    assert wrong.returncode
    shutil.rmtree(other / ".git")
    for text in (lock, done.stdout, wrong.stdout, *(path.read_bytes().decode(errors="replace")
                                                   for path in (*other.rglob("*"), *project.rglob("*"))
                                                   if path.is_file())):
        assert "planted" not in text
