"""What must hold before DVC starts: `python -m flows.check`.

Wrong settings are told; files that a kill cut short, and what a killed experiment left, are put right.
"""

import sys
from pathlib import Path

from flows.lock import drop_damaged
from flows.process import only_run
from flows.settings import changed_text, check_project, put_back
from maavt import errors


def main() -> None:
    project = check_project(Path.cwd())
    with only_run(project, print):
        drop_damaged(project)
        put_back(project)
        changed_text(project, [])


if __name__ == "__main__":
    sys.exit(errors.run(main))
