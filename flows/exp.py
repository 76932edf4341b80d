"""One experiment: the graph with settings of its own, kept by DVC, in a workspace that gets back what it had.

    python -m flows.exp [--name NAME] KEY=VALUE [KEY=VALUE ...]

`dvc exp run -S KEY=VALUE` does the same, but leaves the settings in params.yaml, which it writes anew.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from flows import PROJECT
from flows.lock import drop_damaged
from flows.process import DVC, guarded, only_run
from flows.settings import changed, check_project, experiment_name, saving
from maavt import errors
from maavt.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.exp", description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="such as tokens=10 or models=[maavt,lavish]")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--name", help="what DVC calls it (made of the settings)")
    options = parser.parse_args()
    project = check_project(options.project)
    name = options.name or experiment_name(options.settings)
    with only_run(project, print):
        drop_damaged(project)
        with changed(project, options.settings, outputs=True):
            failed = _failed(project, "repro")
            if not failed:
                with saving(project, name) as command:
                    failed = _failed(project, *command, stdout=subprocess.DEVNULL)  # not its errors
    if failed:
        raise UserError(f"the experiment {name} failed; the workspace is as it was, and what was made is kept: the "
                        "same again goes on from there")
    print(f"the experiment {name} is kept, params.yaml is as it was. `dvc exp show --only-changed` compares, "
          f"`dvc exp apply {name}` brings its settings and results here")


def _failed(project: Path, *command: str, **options) -> bool:
    with guarded([*DVC, *command], cwd=project, **options) as process:
        return process.wait() != 0


if __name__ == "__main__":
    sys.exit(errors.run(main))
