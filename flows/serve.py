"""Serve the pipeline, or the ingest, on a schedule, until Ctrl-C.

    python -m flows.serve --cron "0 3 * * *" [--project PATH] [--set KEY=VALUE] [--push] [--retries N] [--notify CMD]

The runs appear on the Prefect server at `PREFECT_API_URL`, which must be up; they are started by this process,
as children of it. Of the runs that were missed while it was not there, the latest is started when it comes back; runs
whose process was killed are marked as Crashed.
"""

import argparse
import sys
from zoneinfo import ZoneInfo

from prefect.schedules import Cron

from flows import runs, trusted
from flows.ingest import ingest
from flows.pipeline import arguments, pipeline
from flows.server import need_server
from flows.settings import changed_text, check_project
from maavt import errors
from maavt.errors import UsageError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__.split("\n")[0])
    parser.add_argument("--cron", required=True, help='minute, hour, day, month, weekday, e.g. "0 3 * * *"')
    parser.add_argument("--flow", choices=("pipeline", "ingest"), default="pipeline", help="what is served (pipeline)")
    parser.add_argument("--timezone", default="UTC", help="e.g. Europe/Berlin (UTC)")
    parser.add_argument("--limit", type=int, default=1, metavar="N", help="runs at the same time (1)")
    parser.add_argument("--catch-up", action="store_true", help="start all missed runs, not the latest alone")
    parser.add_argument("--name", help="what the deployment is called (the name of the project's folder)")
    arguments(parser)
    options = vars(parser.parse_args())
    served = ingest if options.pop("flow") == "ingest" else pipeline
    cron, timezone, limit, catch_up, name, notify, project = (options.pop(option) for option in (
        "cron", "timezone", "limit", "catch_up", "name", "notify", "project"))
    try:
        ZoneInfo(timezone)
    except (ValueError, OSError, KeyError):  # what it raises depends on how the name is wrong
        raise UsageError(f"--timezone {timezone}: no such time zone; one is Europe/Berlin") from None
    try:
        schedule = Cron(cron, timezone=timezone)
    except ValueError:
        raise UsageError(f'--cron "{cron}": not a cron expression; one is "0 3 * * *"') from None
    project = check_project(project)
    changed_text(project, options["set"] or [])
    need_server()
    name = name or project.name
    runs.check_owner(project, f"{served.name}/{name}")
    trusted.decide(project, notify, options["set"] or [], catch_up)
    runs.watch(project, f"{served.name}/{name}")
    deployment = {"schedule": schedule, "parameters": options, "tags": [trusted.tag(project)]}
    served.to_deployment(name, **deployment).apply()  # which takes back the runs of an old schedule that are to come
    if not catch_up and (dropped := runs.drop_missed(f"{served.name}/{name}")):
        print(f"{dropped} missed runs are left out, the latest one follows (--catch-up starts all)", flush=True)
    # Not prefect.serve(), which loads the flow by what the server says at each run: whoever can write there could name
    # other code. The schedule goes on when this is started again.
    served.serve(name, **deployment, limit=limit, pause_on_shutdown=False)


if __name__ == "__main__":
    sys.exit(errors.run(main))
