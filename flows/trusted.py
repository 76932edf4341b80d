"""What only the process that runs a flow may decide, and never a parameter of the flow.

Whoever reaches the Prefect API can start a run with any parameters. So the project and the command of --notify come
from this process: from its options or its environment (MAAVT_PROJECT, MAAVT_NOTIFY), which its children inherit.
"""

import json
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from flows import PROJECT
from maavt.errors import UsageError, redacted

# Numbers, words, and lists or tables of them: nothing that names a place outside the project, and nothing for a shell.
PLAIN = re.compile(r"(?!.*\.\.)(?:: |[\w.,=\[\]{} +-])*", re.ASCII)


def decide(project: Path, notify: str | None = None, settings: Sequence[str] = (), catch_up: bool = False) -> None:
    """Set what the flows of this process, and of its children, work with."""
    os.environ |= {"MAAVT_PROJECT": str(project), "MAAVT_SET": json.dumps(list(settings)),
                   "MAAVT_CATCH_UP": "1" if catch_up else ""}
    if notify:
        os.environ["MAAVT_NOTIFY"] = notify


def project() -> Path:
    """The project of this process."""
    return Path(os.environ.get("MAAVT_PROJECT") or PROJECT)


def catch_up() -> bool:
    """Whether all runs that were missed are started, not the latest alone."""
    return bool(os.environ.get("MAAVT_CATCH_UP"))


def tag(project: Path) -> str:
    """The tag of deployments and runs of this clone on this machine."""
    return f"clone:{socket.gethostname()}:{project}"


def check_settings(settings: Sequence[str]) -> None:
    """Raises UsageError where a run that was started through the API has a setting with a path, a URL or a pattern that
    the process which serves was not given."""
    from prefect.runtime import deployment

    if not deployment.id:  # started by this process itself
        return
    given = json.loads(os.environ.get("MAAVT_SET") or "[]")
    for setting in settings:
        if setting not in given and not PLAIN.fullmatch(setting):
            raise UsageError(f"{redacted(setting)}: a run that is started through the API takes numbers, words, and "
                             "lists of these; set a path, URL or pattern in params.yaml, or with --set of flows.serve")
