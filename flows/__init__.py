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
