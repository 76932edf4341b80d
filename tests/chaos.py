"""The whole pipeline, killed again and again: `python -m tests.chaos --kills 25 --seed 0`, or `make chaos`.

Two clones with the tests' tiny settings run the flow. One is left alone; of the other a process is killed with SIGKILL
at a random moment (the flow, DVC, the shell between them, a stage, one of a stage's workers), and it is started again,
until so many were killed and a run came through. Both must end with the same dvc.lock, but for what holds timings.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import yaml

from tests.conftest import GIT, clone, free_port

TIMINGS = ("data/benchmark/", "data/report/", "data/timing/")  # outputs that are never twice the same
LIMIT = 1800  # seconds for one run
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "DVC", "MAAVT"))} | GIT


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect server; yields the variables with which flows find it."""
    port = free_port()
    variables = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
                 "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "server.log", "w") as log, subprocess.Popen(
            command, env=ENV | variables, stdout=log, stderr=log, start_new_session=True) as process:
        try:
            for _ in range(LIMIT):
                with suppress(httpx.HTTPError):
                    if httpx.get(f"{variables['PREFECT_API_URL']}/health").is_success:
                        break
                time.sleep(1)
            yield variables
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def start(project: Path, log: Path, variables: dict[str, str]) -> subprocess.Popen:
    with open(log, "a") as output:
        return subprocess.Popen([sys.executable, "-m", "flows.pipeline", "--pause", "0.1"], cwd=project, stdout=output,
                                stderr=output, env=ENV | variables | {"PYTHONPATH": str(project)},
                                start_new_session=True)


def kind(process: psutil.Process, flow: int) -> str:
    """What a process of a run is: flow, dvc, stage, worker or shell."""
    command = process.cmdline()
    if process.pid == flow:
        return "flow"
    if "dvc" in command:
        return "dvc"
    if "maavt.cli" in command:
        return "stage"
    return "worker" if command and "python" in Path(command[0]).name else "shell"


def victims(flow: int) -> list[tuple[str, psutil.Process]]:
    """The processes of a run; of equal kinds as many as there are, so that a kind is chosen first."""
    found = []
    with suppress(psutil.Error):
        for process in [psutil.Process(flow), *psutil.Process(flow).children(recursive=True)]:
            with suppress(psutil.Error):
                found.append((kind(process, flow), process))
    return found


def kill_one(flow: subprocess.Popen, rng: random.Random) -> str | None:
    """Kill a process of a run of a random kind; what it was."""
    found = victims(flow.pid)
    kinds = sorted({name for name, _ in found})
    if not kinds or flow.poll() is not None:
        return None
    chosen = rng.choice(kinds)
    process = rng.choice([process for name, process in found if name == chosen])
    with suppress(psutil.Error):
        what = " ".join(process.cmdline()[-3:])[:60]
        process.send_signal(signal.SIGKILL)
        return f"{chosen}: {what}"
    return None


def outputs(project: Path) -> dict[str, str]:
    """Stage and path -> sum of every output in dvc.lock, but for timings."""
    stages = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    return {f"{name} {out['path']}": out["md5"] for name, stage in stages.items() for out in stage["outs"]
            if not out["path"].startswith(TIMINGS)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=40, help="seconds from a start to a kill, at most")
    parser.add_argument("--folder", type=Path, help="where to work, and to leave what was made")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="maavt-chaos-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with server(folder) as variables:
        code = chaos(folder, options, variables)
    time.sleep(1)
    if left := [process for process in psutil.process_iter() if inside(process, folder)]:
        print(f"processes are left: {left}")
        return 1
    if not code and not options.folder:
        shutil.rmtree(folder)
    return code


def chaos(folder: Path, options: argparse.Namespace, variables: dict[str, str]) -> int:
    """A quiet run, and one that is killed as often as wanted; 0 when both end with the same outputs."""
    rng, killed = random.Random(options.seed), Counter()
    settings = {"models": ["maavt", "linear"], "train": {"epochs": 3}, "benchmark": {"rounds": 0}}
    quiet, wild = (clone(folder / name, **settings) for name in ("a quiet one", "a wild one"))
    begin = time.monotonic()
    print(f"in {folder}", flush=True)
    if code := start(quiet, folder / "quiet.log", variables).wait(LIMIT):
        print(f"the quiet run failed with {code}; see {folder / 'quiet.log'}")
        return 1
    print(f"quiet run: {time.monotonic() - begin:.0f} s", flush=True)
    wanted, rounds = outputs(quiet), 1
    while True:
        flow = start(wild, folder / "wild.log", variables)
        if killed.total() < options.kills:
            with suppress(subprocess.TimeoutExpired):
                flow.wait(rng.uniform(0, options.longest))
            if what := kill_one(flow, rng):
                killed[what.partition(":")[0]] += 1
                print(f"{time.monotonic() - begin:6.0f} s  kill {killed.total():3d}  {what}", flush=True)
        code = flow.wait(LIMIT)
        if code == 0:
            found = outputs(wild)
            differing = {name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)}
            print(f"{time.monotonic() - begin:6.0f} s  round {rounds} came through after {killed.total()} kills: "
                  + ("the same dvc.lock" if not differing else f"other outputs: {sorted(differing)}"), flush=True)
            if differing:
                return 1
            if killed.total() >= options.kills:
                print(f"killed: {dict(killed)}")
                break
            rounds += 1  # from the start again
            for name in ("data", ".work", "dvc.lock", ".dvc/cache"):
                path = wild / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            subprocess.run(["git", "checkout", "-q", "."], cwd=wild, check=True)
    return 0


def inside(process: psutil.Process, folder: Path) -> bool:
    with suppress(psutil.Error):
        return Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    sys.exit(main())
