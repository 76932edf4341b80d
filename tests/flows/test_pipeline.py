"""The flows against a real Prefect server on loopback, on small DVC projects in folders with a space."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import GIT, clone, free_port

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = float(os.environ.get("MAAVT_TEST_PATIENCE", "1"))  # more where others keep the machine busy

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
    params: [tokens]
    outs: ["train-${item.model}"]
    metrics: ["metrics-${item.model}.json"]
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
while "beside" in behaviour and behaviour["beside"] not in Path("runs.txt").read_text():
    time.sleep(0.1)
if "exit code" in behaviour and Path("runs.txt").read_text().split().count(name) <= behaviour.get("times", 99):
    sys.exit(f"error: {name} is ill") if behaviour["exit code"] == 1 else sys.exit(behaviour["exit code"])
if name.startswith("train"):
    tokens = int(Path("params.yaml").read_text().split("tokens: ")[1].split()[0])
    Path(f"metrics-{name[-1]}.json").write_text(json.dumps({"accuracy": tokens / 100}))
Path(name).write_text(" ".join([*(Path(i).read_text() for i in inputs), name]))
"""


def make_project(folder: Path, graph: str = DVC_YAML, **behaviour) -> Path:
    """A git and DVC project with four stages: shard, train@a, train@b, report."""
    folder.mkdir(parents=True)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(graph)
    (folder / "params.yaml").write_text("models: [a, b]   # both\ntokens: 5\n")
    (folder / "stage.py").write_text(STAGE_PY)
    (folder / "behaviour.json").write_text(json.dumps(behaviour))
    (folder / ".gitignore").write_text("/*.txt\n/*.json\n/.work\n")
    for command in (["add", "."], ["commit", "-qm", "a project"]):
        subprocess.run(["git", *command], cwd=folder, check=True, env=os.environ | GIT)
    return folder


def wait_for(what: str, condition, seconds: float = 60):
    """The first true value of condition(); fails the test when there is none in time."""
    end = time.monotonic() + seconds * PATIENCE
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


@contextmanager
def served(project: Path, cron: str, folder: Path, environment: dict, *options: str):
    """A running `flows.serve` of a project."""
    command = [sys.executable, "-m", "flows.serve", "--cron", cron, "--project", str(project), *options]
    with background(command, folder / f"serve {project.name}.log", environment) as process:
        yield process


class Api:
    """The few calls of the Prefect server's API that the tests need."""

    def __init__(self, environment: dict, ends: ExitStack):
        self.environment, self.ends, self.served = environment, ends, {}
        self.client = httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=30 * PATIENCE)
        token = self.client.get("/csrf-token", params={"client": "tests"}).json()["token"]
        self.client.headers.update({"Prefect-Csrf-Client": "tests", "Prefect-Csrf-Token": token})

    def call(self, method: str, path: str, body: dict | None = None):
        for _ in range(30):  # a server whose database is busy says 503, and Prefect's own client asks again too
            response = self.client.request(method, path, json=body)
            if response.status_code != 503:
                break
            time.sleep(1)
        response.raise_for_status()
        return response.json()

    def serve(self, project: Path, *options: str, cron: str = "0 0 1 1 *") -> subprocess.Popen:
        """Have a project served until the test ends, once its deployment is there."""
        process = self.ends.enter_context(served(project, cron, project.parent, self.environment, *options))
        name = f"/deployments/name/pipeline/{project.name}"
        wait_for("the deployment", lambda: process.poll() is not None or self.client.get(name).is_success)
        self.served[project] = self.call("GET", name)["id"]
        return process

    def start(self, project: Path, /, **parameters) -> str:
        """Trigger a run of a project, which is served if it is not yet; returns the run's id."""
        if project not in self.served:
            self.serve(project, "--limit", "4")
        path = f"/deployments/{self.served[project]}/create_flow_run"
        return self.call("POST", path, {"parameters": parameters})["id"]

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

    def errors(self, run: str) -> list[str]:
        """The messages of a run's log at the level of errors."""
        body = {"logs": {"flow_run_id": {"any_": [run]}, "level": {"ge_": 40}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [line["message"] for line in self.call("POST", "/logs/filter", body)]

    def tasks(self, run: str, key: str = "name") -> list[str]:
        """The names (or states) of a run's tasks, in the order they began."""
        body = {"flow_runs": {"id": {"any_": [run]}}}
        tasks = self.call("POST", "/task_runs/filter", body)
        return [task[key] for task in sorted(tasks, key=lambda task: task["start_time"])]

    def artifacts(self, run: str) -> dict[str, object]:
        """The artifacts of a run, by what their keys begin with."""
        found = self.call("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {artifact["key"].partition("-")[0]: artifact["data"] for artifact in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a space in its name, for the projects and the server."""
    (made := tmp_path_factory.mktemp("flows") / "a folder").mkdir()
    return made


def address() -> str:
    """The API of a server that may be started on a free port."""
    return f"http://127.0.0.1:{free_port()}/api"


def answers(address: str) -> bool:
    try:
        return httpx.get(address).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def prefect_server(log: Path, environment: dict):
    """A Prefect server that answers at the environment's address."""
    url = environment["PREFECT_API_URL"]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port",
               str(httpx.URL(url).port)]
    with background(command, log, environment):
        wait_for("the Prefect server", lambda: answers(f"{url}/health"), 120)
        yield


@pytest.fixture(scope="module")
def environment(folder):
    """The variables of a shell in which nothing of Prefect is set but a home and an API address."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "DVC"))}
    return inherited | {
        "PREFECT_HOME": str(folder / "prefect home"),
        "PREFECT_API_URL": address(),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",  # as docs/schedule.md has it
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:4200",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "DO_NOT_TRACK": "1",
    }


@pytest.fixture(scope="module")
def server(folder, environment):
    """A running server."""
    with prefect_server(folder / "server.log", environment):
        yield


@pytest.fixture
def api(server, environment):
    """The server's API; projects are served as a test starts runs of them."""
    with ExitStack() as ends:
        yield Api(environment, ends)


def test_triggered_run_makes_every_stage_in_order_logs_its_lines_pushes_and_says_what_came_of_it(api, folder):
    project = make_project(folder / "complete")
    remote = [sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "store", str(folder / "dvc store")]
    subprocess.run(remote, cwd=project, check=True)
    (project / "params.yaml").write_text("models: [a, b]   # both\ntokens: 7\n")
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
    assert not [line for line in api.lines(run) if "git add" in line or "autostage" in line]
    assert list((folder / "dvc store").rglob("*"))

    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=project, capture_output=True, text=True)
    head = head.stdout.strip()
    known = api.call("GET", f"/flow_runs/{run}")
    assert known["name"].startswith(f"complete {head}+ tokens=7 ")
    assert {"project:complete", f"git:{head}+", "tokens=7", "push"} <= set(known["tags"])
    told = api.artifacts(run)
    assert "| report | train@a, train@b | Completed |" in told["graph"]
    assert {(row["value"], row["change"]) for row in json.loads(told["metrics"])} == {(0.07, "")}

    assert_cached_and_compared(api, project)


def assert_cached_and_compared(api, project: Path) -> None:
    """A second run finds all done; an experiment is kept under its name, beside the last run's numbers."""
    second = api.start(project)
    assert api.end(second)["type"] == "COMPLETED"
    wait_for("the tasks' records", lambda: api.tasks(second, "state_name") == ["Cached"] * 4)
    before = {name: (project / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    third = api.start(project, set=["tokens=9"])
    assert api.end(third)["type"] == "COMPLETED"
    assert {name: (project / name).read_bytes() for name in before} == before
    dvc = [sys.executable, "-m", "dvc", "exp", "list", "--name-only"]
    assert subprocess.run(dvc, cwd=project, capture_output=True, text=True).stdout.split() == ["tokens-9"]
    rows = json.loads(api.artifacts(third)["experiment"])
    assert {(row["value"], row["last run"], row["change"]) for row in rows} == {(0.09, 0.07, 0.02)}
    assert {"tokens=9"} <= set(api.call("GET", f"/flow_runs/{third}")["tags"])
    assert (project / "metrics-a.json").read_text() == '{"accuracy": 0.07}'


def test_progress_bar_becomes_a_few_lines_and_a_push_without_a_remote_is_a_state_that_warns(api, folder):
    project = make_project(folder / "progress")
    run = api.start(project, push=True)
    state = api.end(run)
    assert (state["type"], state["name"]) == ("COMPLETED", "NotPushed") and "no default dvc remote" in state["message"]
    wait_for("the last line", lambda: "report: 100 of 100" in api.lines(run))
    assert len([line for line in api.lines(run) if line.startswith("shard: ")]) < 5


def test_failed_stage_fails_the_run_which_names_it_with_its_last_words_and_tells_a_command(api, folder):
    project = make_project(folder / "fails", **{"train-b": {"exit code": 1}})
    api.serve(project, "--notify", f"cat > '{folder}/told.json'")
    run = api.start(project, retries=3)
    state = api.end(run)
    assert (state["type"], state["message"]) == ("FAILED", "stage train@b failed with exit code 1")
    assert not (project / "report").exists()
    assert (project / "runs.txt").read_text().split().count("train-b") == 1  # another try cannot help
    told = json.loads((folder / "told.json").read_text())
    assert (told["state"], told["message"]) == ("Failed", state["message"])
    assert "error: train-b is ill" in told["last_lines"]
    assert "error: train-b is ill" in Path(told["log"]).read_text()
    wait_for("the error", lambda: "error: train-b is ill" in api.errors(run))


@pytest.mark.long
def test_only_a_failed_download_and_a_stopped_stage_are_tried_again(api, folder):
    graph = DVC_YAML.replace("shard", "download")
    project = make_project(folder / "retries", graph, download={"exit code": 1, "times": 2},
                           **{"train-a": {"exit code": 75, "times": 1}, "train-b": {"exit code": 3}})
    assert api.end(api.start(project, retries=2, pause=0.1))["message"] == "stage train@b failed with exit code 3"
    runs = (project / "runs.txt").read_text().split()
    assert [runs.count(name) for name in ("download", "train-a", "train-b")] in ([3, 2, 1], [3, 0, 1])
    wrong = make_project(folder / "wrong", graph, download={"exit code": 2})
    assert api.end(api.start(wrong, retries=2, pause=0.1))["type"] == "FAILED"
    assert (wrong / "runs.txt").read_text().split() == ["download"]


@pytest.mark.long
def test_stages_that_do_not_need_one_another_run_at_the_same_time_when_asked(api, folder, environment):
    project = make_project(folder / "parallel", **{"train-a": {"beside": "train-b"}, "train-b": {"beside": "train-a"}})
    done = subprocess.run([sys.executable, "-m", "flows.pipeline", "--project", str(project)], cwd=PROJECT, timeout=600,
                          env=environment | {"MAAVT_PARALLEL_STAGES": "2"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (project / "report").read_text() == "shard train-a shard train-b report"
    again = [sys.executable, "-m", "dvc", "repro"]
    assert "Running" not in subprocess.run(again, cwd=project, capture_output=True, text=True, check=True).stdout


def test_wrong_settings_are_told_before_anything_runs(folder, environment):
    project = make_project(folder / "wrong settings")
    done = subprocess.run([sys.executable, "-m", "flows.pipeline", "--project", str(project), "--set", "tokenz=1"],
                          cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: tokenz=1: params.yaml has no tokenz; is tokens meant?\n"


def test_cancelled_run_leaves_no_process_and_notify_is_told(api, folder):
    project = make_project(folder / "cancelled", **{"train-a": {"waits": True}})
    api.serve(project, "--notify", f"cat >> '{folder}/told of the cancelled.json'")
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
    told = wait_for("the command", lambda: (folder / "told of the cancelled.json").exists()
                    and (folder / "told of the cancelled.json").read_text().endswith("}")
                    and json.loads((folder / "told of the cancelled.json").read_text()))  # once, or it were no JSON
    assert (told["state"], told["run_id"], told["project"]) == ("Cancelled", run, str(project))


@pytest.mark.long
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


@pytest.mark.long
def test_a_server_that_restarts_in_the_middle_of_a_run_costs_nothing(folder, environment):
    project = make_project(folder / "restarted", shard={"waits": True})
    environment = environment | {"PREFECT_HOME": str(folder / "restarted home"), "PREFECT_API_URL": address()}
    with ExitStack() as ends:
        with prefect_server(folder / "server before.log", environment):
            command = [sys.executable, "-m", "flows.pipeline", "--project", str(project)]
            flow = ends.enter_context(background(command, folder / "restarted.log", environment))
            waiting_stage(project)
        (project / "go on").touch()  # the stage ends while nobody listens
        with prefect_server(folder / "server after.log", environment):
            assert flow.wait(120 * PATIENCE) == 0, (folder / "restarted.log").read_text()
            (run,) = Api(environment, ends).call("POST", "/flow_runs/filter", {})
    assert run["state_type"] == "COMPLETED"
    assert sorted((project / "runs.txt").read_text().split()) == ["report", "shard", "train-a", "train-b"]


@pytest.mark.long
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


def test_a_run_that_the_api_starts_executes_no_command_and_keeps_to_its_project(api, folder):
    project, other, made = make_project(folder / "attacked"), make_project(folder / "another"), folder / "executed"
    api.serve(project, "--limit", "4")
    known = api.call("GET", f"/deployments/{api.served[project]}")
    known = {key: known[key] for key in ("name", "flow_id", "entrypoint", "path", "tags", "parameter_openapi_schema")}
    steps = [{"prefect.deployments.steps.run_shell_script": {"script": f"touch '{made}'"}}]
    api.call("POST", "/deployments/", known | {"pull_steps": steps, "enforce_parameter_schema": False})
    runs = [api.start(project, **parameters) for parameters in (
        {"notify": f"touch '{made}'"}, {"project": str(other)}, {"set": [f"tokens='; touch {made}'"]})]
    assert [api.end(run)["type"] for run in runs] == ["CRASHED", "CRASHED", "FAILED"]  # Prefect knows no such parameter
    assert "a run that is started through the API takes numbers, words" in api.end(runs[-1])["message"]
    assert api.end(api.start(project, set=["tokens=9"]))["type"] == "COMPLETED"
    assert not made.exists() and not (other / "runs.txt").exists()


def test_a_page_of_another_origin_can_start_nothing(api):
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST",
              "Access-Control-Request-Headers": "content-type,prefect-csrf-token"}
    url = f"{api.environment['PREFECT_API_URL']}/flow_runs/filter"
    asked = httpx.options(url, headers=origin)
    assert asked.status_code == 400 and "access-control-allow-origin" not in asked.headers
    assert httpx.post(url, json={}, headers={"Origin": "https://elsewhere.example"}).status_code == 403
    allowed = httpx.options(url, headers=origin | {"Origin": "http://127.0.0.1:4200"})
    assert allowed.headers["access-control-allow-origin"] == "http://127.0.0.1:4200"


def test_a_second_clone_of_the_same_name_is_refused_unless_it_gets_a_name_of_its_own(api, folder):
    clones = [make_project(folder / number / "cloned") for number in ("one", "two")]
    api.serve(clones[0])
    serve = [sys.executable, "-m", "flows.serve", "--cron", "0 0 1 1 *", "--project", str(clones[1])]
    done = subprocess.run(serve, cwd=PROJECT, env=api.environment, capture_output=True, text=True)
    assert done.returncode == 1 and "--name OTHER" in done.stderr
    assert f'deployment "pipeline/cloned" of another project ({socket.gethostname()}:{clones[0]})' in done.stderr
    with served(clones[1], "0 0 1 1 *", clones[1].parent, api.environment, "--name", "second"):
        wait_for("the deployment", lambda: api.client.get("/deployments/name/pipeline/second").is_success)


def test_of_the_runs_that_were_missed_while_serve_was_suspended_the_latest_runs(api, folder):
    project = make_project(folder / "suspended")
    serve = api.serve(project)
    os.kill(serve.pid, signal.SIGSTOP)
    since, until = (f"{datetime.now(UTC).year + years}-06-01T00:00:00Z" for years in (-5, -1))
    body = {"start_time": since, "end_time": until, "min_runs": 4, "max_runs": 10}  # one each New Year's Day
    api.call("POST", f"/deployments/{api.served[project]}/schedule", body)

    def states() -> list[str]:
        runs = sorted(runs_of(api, "suspended"), key=lambda run: run["expected_start_time"])
        return [run["state_type"] for run in runs if run["expected_start_time"] < until]

    assert states() == ["SCHEDULED"] * 4
    os.kill(serve.pid, signal.SIGCONT)
    wait_for("the runs", lambda: not {"SCHEDULED", "PENDING", "RUNNING"} & {*states()}, 120)
    assert states() == ["CANCELLED"] * 3 + ["COMPLETED"]
    assert (project / "runs.txt").read_text().split().count("shard") == 1


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


def runs_of(api, deployment: str) -> list[dict]:
    body = {"deployments": {"name": {"any_": [deployment]}}, "limit": 200}
    return api.call("POST", "/flow_runs/filter", body)


@pytest.mark.long
def test_cron_starts_runs_a_killed_one_is_marked_as_crashed_and_of_missed_ones_one_follows(api, folder, environment):
    project = make_project(folder / "power cut", shard={"waits": True})
    with served(project, "* * * * * */3", folder, environment) as runner:  # every three seconds
        waiting_stage(project)
        processes = psutil.Process(runner.pid).children(recursive=True)
        for process in [psutil.Process(runner.pid), *processes]:
            process.kill()
    killed = wait_for("the run", lambda: [run for run in runs_of(api, "power cut") if run["state_type"] == "RUNNING"])
    assert killed[0]["auto_scheduled"]
    psutil.wait_procs(processes, 30)
    (project / "go on").touch()
    time.sleep(30)  # ten periods
    with served(project, "0 0 1 1 *", folder, environment, "--notify", f"cat > '{folder}/told '$$"):
        state = wait_for("the mark", lambda: [
            run["state"] for run in runs_of(api, "power cut") if run["id"] == killed[0]["id"]
            and run["state_type"] == "CRASHED"])[0]
        assert "is gone" in state["message"]
        wait_for("the run that was missed", lambda: [
            run for run in runs_of(api, "power cut") if run["state_type"] == "COMPLETED"])
        time.sleep(5)
    states = [run["state_name"] for run in runs_of(api, "power cut") if run["state_type"] != "CANCELLED"
              and run["expected_start_time"] < run["updated"]]
    assert sorted(states) == ["Completed", "Crashed"]
    told = [json.loads(path.read_text()) for path in folder.glob("told [0-9]*")]
    assert sorted(one["state"] for one in told) == ["Completed", "Crashed"]


@pytest.mark.parametrize(
    "cron, api_url, code, message",
    [
        ("every day", "http://127.0.0.1:9/api", 2, '--cron "every day": not a cron expression'),
        ("0 3 * * *", "http://127.0.0.1:9/api", 1, "no Prefect server answers at http://127.0.0.1:9/api"),
    ],
)
def test_serve_ends_with_one_line_and_a_code(environment, folder, cron, api_url, code, message):
    project = make_project(folder / "not served" / str(code))
    command = [sys.executable, "-m", "flows.serve", "--cron", cron, "--project", str(project)]
    wrong = {**environment, "PREFECT_API_URL": api_url}
    done = subprocess.run(command, cwd=PROJECT, env=wrong, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.long
def test_an_ingest_makes_the_shards_of_new_clips_alone_and_says_what_came_and_went(api, folder, environment, made):
    own = folder / "my clips"
    for number, clip in enumerate(sorted((made / "data/raw/synth").rglob("*.mp4"))):
        (place := own / "train test val".split()[number % 3] / "cat dog".split()[number % 2]).mkdir(
            parents=True, exist_ok=True)
        shutil.copy(clip, place / clip.name)
    later = [own / "train" / name / f"{number}.mp4" for number, name in enumerate(("cat", "dog", "cat"))]
    project = clone(folder / "of my own", dataset="folder", folder={"root": str(own)}, shard={
        "clips_per_shard": 2, "min_coverage": 1.0})

    def ingest() -> tuple[dict[str, str], str]:
        done = subprocess.run([sys.executable, "-m", "flows.ingest", "--project", str(project)], cwd=project,
                              env=environment | {"PYTHONPATH": str(project)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        index = json.loads((project / "data/shards/folder/index.json").read_text())
        return {name: shard["sha256"] for name, shard in index["shards"].items()}, done.stdout + done.stderr

    before, told = ingest()
    assert "18 new, 0 gone, 0 missing" in told and len(before) == 9
    for path, clip in zip(later, sorted((made / "data/raw/synth/test").glob("*.mp4")), strict=False):
        shutil.copy(clip, path)
    after, told = ingest()
    assert "3 new, 0 gone, 0 missing" in told and "9 of 11 shards are as before" in told
    assert before.items() <= after.items() and len(after) == 11
    next((own / "val" / "cat").glob("*.mp4")).unlink()
    last, told = ingest()
    assert "0 new, 1 gone, 0 missing" in told and "10 of 11 shards are as before" in told
    assert len(after.items() - last.items()) == 1 and set(last) == set(after)


@pytest.mark.long
def test_a_worker_takes_the_runs_of_the_deployments_in_prefect_yaml(api, folder, environment):
    home = folder / "deployed"
    for name in ("flows", "maavt"):
        shutil.copytree(PROJECT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "prefect.yaml", home)
    project = make_project(folder / "for the worker")
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    options = {"cwd": home, "check": True, "capture_output": True,
               "env": environment | {"PYTHONPATH": str(home), "PWD": str(home)}}
    subprocess.run([*prefect, "work-pool", "create", "maavt", "--type", "process"], **options)
    subprocess.run([*prefect, "deploy", "--all"], **options)
    deployed = {(one["name"], one["schedules"][0]["schedule"]["cron"] if one["schedules"] else "")
                for one in api.call("POST", "/deployments/filter", {}) if one["work_pool_name"] == "maavt"}
    assert deployed == {("nightly", "0 3 * * *"), ("weekly", "0 1 * * 0"), ("weekly", "0 12 * * 6"), ("by-hand", "")}
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "maavt"]
    with background(worker, folder / "worker.log", environment | {"PREFECT_WORKER_QUERY_SECONDS": "2",
                                                                  "MAAVT_PROJECT": str(project)}):
        by_hand = api.call("GET", "/deployments/name/pipeline/by-hand")["id"]
        body = {"parameters": {"set": ["tokens=8"]}}
        run = api.call("POST", f"/deployments/{by_hand}/create_flow_run", body)["id"]
        assert api.end(run)["type"] == "COMPLETED"
    dvc = [sys.executable, "-m", "dvc", "exp", "list", "--name-only"]
    assert subprocess.run(dvc, cwd=project, capture_output=True, text=True).stdout.split() == ["tokens-8"]


def test_nothing_in_maavt_imports_prefect():
    sources = list((PROJECT / "maavt").rglob("*.py"))
    assert sources
    assert not [path for path in sources if re.search(r"^\s*(from|import) prefect", path.read_text(), re.M)]
