"""When the graph runs: schedules, retries, experiments, and what is told of a run."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
for name, value in {
    "PREFECT_HOME": str(PROJECT / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(name, value)  # before any import of Prefect, which reads them there


def served_project() -> Path:
    """The project that this process runs: MAAVT_PROJECT, or the one that holds this package.

    It is no parameter of a flow, and neither is the command of --notify (MAAVT_NOTIFY): whoever reaches Prefect's API
    chooses a flow's parameters.
    """
    return Path(os.environ.get("MAAVT_PROJECT") or PROJECT)


def take(options: dict) -> dict:
    """Options of a command without those that are not the API's to choose; these go to this process's environment."""
    project, command = options.pop("project"), options.pop("notify", None)
    os.environ["MAAVT_PROJECT"] = str(project)
    if command:
        os.environ["MAAVT_NOTIFY"] = command
    return options
