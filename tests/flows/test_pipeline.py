"""The flows against a real Prefect server on loopback, on small DVC projects in folders with a space."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[2]

DVC_YAML = """
stages:
  report:
    cmd: python stage.py report train-a train-b
    deps: [train-a, train-b]
    outs: [report]
  train:
    matrix:
      model: ${models}
    cmd: python stage.py train-${item.model} shard
    deps: [shard]
    outs: ["train-${item.model}"]
  shard:
    cmd: python stage.py shard
    outs: [shard]
"""

# A stage joins the files it depends on; behaviour.json makes it wait for a file, fail or ignore SIGINT.
STAGE_PY = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

name, *inputs = sys.argv[1:]
behaviour = json.loads(Path("behaviour.json").read_text()).get(name, {})
print(f"{name} begins")
with open("runs.txt", "a") as runs:
    print(name, file=runs)
for step in range(1, 101):
    print(f"\\r{name}: {step} of 100", end="", file=sys.stderr)
print(file=sys.stderr)
if behaviour.get("ignores SIGINT"):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if behaviour.get("waits"):
    child = subprocess.Popen(["sleep", "600"])
    Path("waiting.json").write_text(json.dumps([os.getpid(), child.pid]))
    while not Path("go on").exists():
        time.sleep(0.1)
    child.kill()
if "exit code" in behaviour:
    sys.exit(behaviour["exit code"])
Path(name).write_text(" ".join([*(Path(i).read_text() for i in inputs), name]))
"""


def make_project(folder: Path, **behaviour) -> Path:
    """A git and DVC project with four stages: shard, train@a, train@b, report."""
    folder.mkdir(parents=True)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("models: [a, b]\n")
    (folder / "stage.py").write_text(STAGE_PY)
    (folder / "behaviour.json").write_text(json.dumps(behaviour))
    return folder


def wait_for(what: str, condition, seconds: float = 60):
    """The first true value of condition(); fails the test when there is none in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s in vain for {what}")
        time.sleep(0.2)
    return value


def processes_of(project: Path) -> list[psutil.Process]:
    """The processes that work in the project's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(project) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def waiting_stage(project: Path) -> list[int]:
    """The process ids of the project's waiting stage and its child, once it waits."""
    file = project / "waiting.json"
    return json.loads(wait_for("a waiting stage", lambda: file.exists() and file.read_text()))


@contextmanager
def background(command: list[str], log: Path, environment: dict):
    """A command in a process group of its own; the group is gone afterwards."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


class Api:
    """The few calls of the Prefect server's API that the tests need."""

    def __init__(self, url: str, deployment: str):
        self.client = httpx.Client(base_url=url, timeout=30)
        self.deployment = self.call("GET", f"/deployments/name/pipeline/{deployment}")["id"]

    def call(self, method: str, path: str, body: dict | None = None):
        for _ in range(30):  # a server whose database is busy says 503, and Prefect's own client asks again too
            response = self.client.request(method, path, json=body)
            if response.status_code != 503:
                break
            time.sleep(1)
        response.raise_for_status()
        return response.json()

    def start(self, project: Path, **parameters) -> str:
        """Trigger a run; returns its id."""
        body = {"parameters": {"project": str(project), **parameters}}
        return self.call("POST", f"/deployments/{self.deployment}/create_flow_run", body)["id"]

    def end(self, run: str) -> dict:
        """The final state of a run, when it has one."""

        def final():
            state = self.call("GET", f"/flow_runs/{run}")["state"]
            return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return wait_for("the end of the run", final, 90)

    def lines(self, run: str) -> list[str]:
        """The messages of a run's log."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [line["message"] for line in self.call("POST", "/logs/filter", body)]

    def tasks(self, run: str) -> list[str]:
        """The names of a run's tasks, in the order they began."""
        body = {"flow_runs": {"id": {"any_": [run]}}}
        tasks = self.call("POST", "/task_runs/filter", body)
        return [task["name"] for task in sorted(tasks, key=lambda task: task["start_time"])]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with a space in its name, for the projects and the server."""
    return tmp_path_factory.mktemp("flows") / "a folder"


@pytest.fixture(scope="session")
def environment(folder):
    """The variables of a shell in which nothing of Prefect is set but a home and an API address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "DVC"))}
    return inherited | {
        "PREFECT_HOME": str(folder / "prefect home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "DO_NOT_TRACK": "1",
    }


@pytest.fixture(scope="session")
def every_minute(folder):
    """The project that is served with a schedule of one run per minute."""
    return make_project(folder / "every minute")


@pytest.fixture(scope="session")
def api(folder, environment, every_minute):
    """A running server, and a running `flows.serve` whose deployment is `every minute`."""
    url = environment["PREFECT_API_URL"]
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    serve = [sys.executable, "-m", "flows.serve", "--cron", "* * * * *", "--limit", "4"]

    def answers(path):
        try:
            return httpx.get(f"{url}{path}").is_success
        except httpx.HTTPError:
            return False

    with background([*server, "--port", str(httpx.URL(url).port)], folder / "server.log", environment):
        wait_for("the Prefect server", lambda: answers("/health"), 120)
        with background([*serve, "--project", str(every_minute)], folder / "serve.log", environment):
            name = "/deployments/name/pipeline/every minute"
            wait_for("the deployment", lambda: answers(name))
            yield Api(url, "every minute")


def test_triggered_run_makes_every_stage_in_order_logs_its_lines_and_pushes(api, folder):
    project = make_project(folder / "complete")
    remote = [sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "store", str(folder / "dvc store")]
    subprocess.run(remote, cwd=project, check=True)
    run = api.start(project, push=True)
    assert api.end(run)["type"] == "COMPLETED"
    assert (project / "report").read_text() == "shard train-a shard train-b report"
    wait_for("the tasks' records", lambda: len(api.tasks(run)) == 5)
    assert api.tasks(run)[0] == "shard"
    assert sorted(api.tasks(run)[1:3]) == ["train@a", "train@b"]
    assert api.tasks(run)[3:] == ["report", "push"]
    wait_for("the log", lambda: any("files pushed" in line for line in api.lines(run)))
    begins = [line.split()[0] for line in api.lines(run) if line.endswith(" begins")]
    assert begins == (project / "runs.txt").read_text().split()
    assert list((folder / "dvc store").rglob("*"))


def test_progress_bar_becomes_a_few_lines_of_the_log_and_its_last_state_is_one(api, folder):
    project = make_project(folder / "progress")
    run = api.start(project)
    api.end(run)
    wait_for("the last line", lambda: "report: 100 of 100" in api.lines(run))
    assert len([line for line in api.lines(run) if line.startswith("shard: ")]) < 5


def test_failed_stage_fails_the_run_which_names_the_stage_and_its_exit_code(api, folder):
    project = make_project(folder / "fails", **{"train-b": {"exit code": 3}})
    state = api.end(api.start(project))
    assert (state["type"], state["message"]) == ("FAILED", "stage train@b failed with exit code 3")
    assert not (project / "report").exists()


def test_failed_stage_is_tried_again_as_often_as_asked(api, folder):
    project = make_project(folder / "retries", shard={"exit code": 1})
    assert api.end(api.start(project, retries=2))["type"] == "FAILED"
    assert (project / "runs.txt").read_text().split() == ["shard"] * 3


def test_cancelled_run_leaves_no_process(api, folder):
    project = make_project(folder / "cancelled", **{"train-a": {"waits": True}})
    run = api.start(project)
    pids = waiting_stage(project)
    processes = processes_of(project)
    assert set(pids) <= {process.pid for process in processes}
    state = {"type": "CANCELLING", "name": "Cancelling"}
    api.call("POST", f"/flow_runs/{run}/set_state", {"state": state})
    assert api.end(run)["type"] == "CANCELLED"
    _, alive = psutil.wait_procs(processes, 5)
    assert alive == []
    assert processes_of(project) == []
    assert not (project / "train-a").exists()


def test_killed_command_leaves_no_process_even_of_a_stage_that_ignores_interrupts(folder, environment):
    project = make_project(folder / "killed", shard={"waits": True, "ignores SIGINT": True})
    without_server = {name: value for name, value in environment.items() if name != "PREFECT_API_URL"}
    without_server["PREFECT_HOME"] = str(folder / "another home")
    command = [sys.executable, "-m", "flows.pipeline", "--project", str(project)]
    with background(command, folder / "killed.log", without_server) as flow:
        pids = waiting_stage(project)
        processes = psutil.Process(flow.pid).children(recursive=True)
        assert set(pids) <= {process.pid for process in processes}
        assert any("prefect.server.api.server:create_app" in process.cmdline() for process in processes)
        flow.kill()
        _, alive = psutil.wait_procs(processes, 30)
        assert alive == []
        assert processes_of(project) == []


def test_second_run_in_a_project_waits_for_the_first_and_finds_everything_done(api, folder):
    project = make_project(folder / "twice", shard={"waits": True})
    first = api.start(project)
    waiting_stage(project)
    second = api.start(project)
    wait_for("the second run's word", lambda: any("another run is at work" in x for x in api.lines(second)))
    (project / "go on").touch()
    assert api.end(first)["type"] == "COMPLETED"
    assert api.end(second)["type"] == "COMPLETED"
    assert sorted((project / "runs.txt").read_text().split()) == ["report", "shard", "train-a", "train-b"]


def test_run_while_another_dvc_command_works_says_so(api, folder):
    project = make_project(folder / "busy", shard={"waits": True})
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    dvc = [sys.executable, "-m", "dvc", "repro", "-q"]
    with subprocess.Popen(dvc, cwd=project, env=environment, stderr=subprocess.DEVNULL) as by_hand:
        try:
            waiting_stage(project)
            state = api.end(api.start(project))
        finally:
            (project / "go on").touch()
    assert by_hand.returncode == 0
    assert state["type"] == "FAILED"
    assert state["message"] == f"stage shard was not run: another dvc command works in {project}"


@pytest.mark.parametrize(
    "cron, api_url, code, message",
    [
        ("every day", "http://127.0.0.1:9/api", 2, '--cron "every day": not a cron expression'),
        ("0 3 * * *", "http://127.0.0.1:9/api", 1, "no Prefect server answers at http://127.0.0.1:9/api"),
    ],
)
def test_serve_ends_with_one_line_and_a_code(environment, every_minute, cron, api_url, code, message):
    command = [sys.executable, "-m", "flows.serve", "--cron", cron, "--project", str(every_minute)]
    wrong = {**environment, "PREFECT_API_URL": api_url}
    done = subprocess.run(command, cwd=PROJECT, env=wrong, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_cron_run_appears_by_itself_and_completes(api, every_minute):
    def completed():
        body = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        return [run for run in api.call("POST", "/flow_runs/filter", body) if run["auto_scheduled"]]

    run = wait_for("a cron run", completed, 100)[0]
    assert run["parameters"]["project"] == str(every_minute)
    assert (every_minute / "report").exists()


def test_nothing_in_maavt_imports_prefect():
    sources = list((PROJECT / "maavt").rglob("*.py"))
    assert sources
    assert not [path for path in sources if re.search(r"^\s*(from|import) prefect", path.read_text(), re.M)]
