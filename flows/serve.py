"""Serve the pipeline on a schedule, until Ctrl-C.

    python -m flows.serve --cron "0 3 * * *" [--project PATH] [--push] [--retries N]

The runs appear on the Prefect server at `PREFECT_API_URL`, which must be up; they are started by this process,
as children of it. Missed runs (this process was not there) are started when it comes back.
"""

import argparse
import sys
from pathlib import Path
from zoneinfo import ZoneInfo

from flows.pipeline import PROJECT, answers, pipeline
from maavt import errors
from maavt.errors import UsageError, UserError


def main():
    from prefect.schedules import Cron
    from prefect.settings import get_current_settings

    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__.split("\n")[0])
    parser.add_argument("--cron", required=True, help='minute, hour, day, month, weekday, e.g. "0 3 * * *"')
    parser.add_argument("--timezone", default="UTC", help="e.g. Europe/Berlin (UTC)")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--push", action="store_true", help="push the cache to the default remote after a run")
    parser.add_argument("--retries", type=int, default=0, help="how often a failed stage is tried again")
    parser.add_argument("--limit", type=int, default=1, help="runs at the same time (1)")
    options = parser.parse_args()

    try:
        ZoneInfo(options.timezone)
    except (ValueError, OSError, KeyError):  # what it raises depends on how the name is wrong
        raise UsageError(f"--timezone {options.timezone}: no such time zone; one is Europe/Berlin") from None
    try:
        schedule = Cron(options.cron, timezone=options.timezone)
    except ValueError:
        raise UsageError(f'--cron "{options.cron}": not a cron expression; one is "0 3 * * *"') from None
    project = options.project.resolve()
    if not (project / ".dvc").is_dir():
        raise UserError(f"{project} is not a DVC project: it has no folder .dvc")
    url = get_current_settings().api.url
    if not url or not answers(url):
        at = f"at {url} (PREFECT_API_URL)" if url else "because PREFECT_API_URL is not set"
        raise UserError(
            f"no Prefect server answers {at}; `prefect server start --host 127.0.0.1` starts one, and "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api` points here to it"
        )
    pipeline.serve(
        name=project.name,
        schedule=schedule,
        parameters={"project": str(project), "push": options.push, "retries": options.retries},
        limit=options.limit,
        pause_on_shutdown=False,  # the schedule goes on when this process is started again
    )


if __name__ == "__main__":
    sys.exit(errors.run(main))
