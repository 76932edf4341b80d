"""What a run says of itself on Prefect's page, and to a command that is told how it ended."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import Artifact, create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import MissingContextError
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for
from ruamel.yaml import YAML

from flows import trusted
from maavt.errors import redacted
from maavt.params import flat

NOTIFY_LIMIT = 60  # seconds for the command that is told
KEEP = 50  # runs whose logs are kept
TOLD = 1000  # runs of which is kept that --notify has been told


def introduce(project: Path, settings: Sequence[str], **options) -> str:
    """Give the run a name and tags: project, revision, settings that differ from the commit; returns the name.

    Raises UsageError for settings that a run may not have which was started through the API.
    """
    trusted.check_settings(settings)
    settings = [redacted(setting) for setting in settings]
    revision = _git(project, "rev-parse", "--short", "HEAD") or "no commit"
    differing = [redacted(f"{key}={value}") for key, value in changed_settings(project).items()]
    if _git(project, "status", "--porcelain", "--untracked-files=no"):
        revision += "+"  # with changes that are not committed
    given = [f"{name}={value}" if value is not True else name for name, value in options.items() if value]
    name = " ".join([project.name, revision, *(settings or differing)])
    name = f"{name if len(name) <= 100 else name[:97] + '...'} {flow_run.id[-4:] if flow_run.id else ''}".strip()
    if flow_run.id:
        tags = [*flow_run.tags, f"project:{project.name}", trusted.tag(project), f"git:{revision}", *settings,
                *differing, *given]
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=name, tags=list(dict.fromkeys(tags)),
                                   infrastructure_pid=f"{socket.gethostname()}:{os.getpid()}")
    return name


def changed_settings(project: Path) -> dict[str, object]:
    """The keys of params.yaml whose values are not those of the commit."""
    with suppress(Exception):  # no commit, or a file that is not YAML: which others tell
        yaml = YAML(typ="safe")
        before = flat(yaml.load(_git(project, "show", "HEAD:./params.yaml")))
        now = flat(yaml.load((project / "params.yaml").read_text()))
        return {key: value for key, value in now.items() if key not in before or before[key] != value}
    return {}


def logs(project: Path, name: str) -> Path:
    """The folder for the whole logs of a run; those of the oldest runs are removed."""
    folder = project / ".work" / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[: -KEEP + 1]:
        shutil.rmtree(old, ignore_errors=True)
    return folder / _plain(name)


def publish(project: Path, rows: list[dict[str, str]], settings: Sequence[str]) -> dict[str, float]:
    """Leave the artifacts of a run: metrics beside the last run's, the graph, rejects by reason, a link to the report.

    `rows` say of each stage what became of it. Returns the metrics.
    """
    key = slug(project.name)
    metrics = read_metrics(project)
    last = _last(f"metrics-{key}")
    table = [{"metric": name, "value": value, "last run": last.get(name, ""),
              "change": round(value - last[name], 6) if name in last else ""} for name, value in metrics.items()]
    if table:
        # An experiment is compared with the last run that had no settings of its own, and is none for the next one.
        kind = "experiment" if settings else "metrics"
        of = redacted(" ".join(settings)) or project.name
        create_table_artifact(table, key=f"{kind}-{key}", description=f"Metrics: {of}")
    lines = ["| stage | after | state | seconds |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row[key] for key in ("stage", "after", "state", "seconds")) + " |" for row in rows]
    create_markdown_artifact("\n".join(lines), key=f"graph-{key}", description="The stages, in their order")
    if rejects := read_rejects(project):
        create_table_artifact([{"stage": stage, "reason": reason, "clips": count}
                               for (stage, reason), count in rejects.most_common()],
                              key=f"rejects-{key}", description="Clips that cannot be used, by reason")
    report = project / "data" / "report" / "index.html"
    if report.exists():
        create_link_artifact(report.as_uri(), key=f"report-{key}", link_text=str(report),
                             description="On the machine that ran it")
    return metrics


def read_metrics(project: Path) -> dict[str, float]:
    """All numbers of the project's metrics: `data/eval/maavt/metrics: accuracy` and the like."""
    from dvc.repo import Repo

    found = {}
    with Repo(str(project)) as repo:
        files = repo.metrics.show().get("", {}).get("data", {})
    for file, content in sorted(files.items()):
        numbers = content.get("data", {})
        for name, value in numbers.items() if isinstance(numbers, dict) else ():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{Path(file).with_suffix('')}: {name}"] = value
    return found


def read_rejects(project: Path) -> Counter:
    """(stage, reason) -> clips, of the data set of the settings."""
    with suppress(OSError, KeyError, TypeError):
        dataset = YAML(typ="safe").load((project / "params.yaml").read_text())["dataset"]
        with open(project / "data" / "shards" / dataset / "rejects.csv", newline="") as file:
            return Counter((row["stage"], row["reason"]) for row in csv.DictReader(file))
    return Counter()


def ended(flow, flow_run, state) -> None:
    """Tell the command of --notify of a run's end; a hook of flows, for ends that a flow cannot tell itself: cancelled,
    crashed, and errors that nobody expected. It runs in the process that serves."""
    given = flow_run.parameters
    settings = [*(given.get("shared") or []), *(given.get("set") or given.get("settings") or [])]
    logs = trusted.project() / ".work" / "logs" / _plain(flow_run.name)
    notify({"project": str(trusted.project()), "settings": settings, "run_id": str(flow_run.id), "run": flow_run.name,
            "url": url_for(flow_run), "state": "Cancelled" if state.is_cancelling() else state.name,
            "message": state.message or "", **({"logs": str(logs)} if logs.exists() else {})})


def notify(facts: Mapping) -> None:
    """Run the command of --notify, if there is one, in a shell with the facts as JSON on its standard input; it fails
    alone. A run is told of once."""
    command = os.environ.get("MAAVT_NOTIFY")
    if not command or not _first(facts["run_id"]):
        return
    facts = {**facts, "settings": [redacted(setting) for setting in facts.get("settings", ())]}
    with subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True) as process:
        try:
            said, _ = process.communicate(json.dumps(facts, default=str), timeout=NOTIFY_LIMIT)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, code = "", f"no end within {NOTIFY_LIMIT} s"
    if code:
        message = f"--notify: the command failed ({code}): {redacted(said.strip()[-500:])}"
        try:
            get_run_logger().warning(message)
        except MissingContextError:  # a hook, or whoever found that a run has crashed
            print(f"warning: {message}", file=sys.stderr, flush=True)


def _first(run: str) -> bool:
    """Whether nobody has told of this run yet; from now on somebody has."""
    folder = trusted.project() / ".dvc" / "tmp" / "told"
    try:
        folder.mkdir(exist_ok=True)
        for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[: -TOLD + 1]:
            old.unlink(missing_ok=True)
        (folder / str(run)).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # no project, or a full disk: better twice than never
        pass
    return True


def _plain(name: str) -> str:
    """What a run's folder of logs is called."""
    return re.sub(r"[^\w.=+-]+", "_", name)


def _last(key: str) -> dict[str, float]:
    """What the table of that key said last."""
    with suppress(Exception):  # no such artifact yet, or one of another form
        artifact = Artifact.get(key)
        return {row["metric"]: float(row["value"]) for row in json.loads(artifact.data)}
    return {}


def slug(name: str) -> str:
    """What the keys of artifacts may have: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "project"


def _git(project: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True).stdout.strip()
