"""Remove what a full disk or a kill cut short of DVC's own: dvc.lock, and .dvc/tmp/rwlock.

DVC writes both in place and refuses them afterwards. Nothing is lost: it makes them anew, and finds finished stages in
its cache.
"""

import json
import sys
import time
from pathlib import Path

from dvc.rwlock import SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML, YAMLError
from voluptuous import Invalid

WRITING = 1  # seconds that another command may take to write a file


def drop_damaged(project: Path) -> None:
    """Remove those of the project's files that DVC would refuse, and say so."""
    for path, whole in ((project / "dvc.lock", _lock), (project / ".dvc" / "tmp" / "rwlock", _rwlock)):
        if not whole(path):
            time.sleep(WRITING)
            if not whole(path):
                path.unlink()
                print(f"{path} was cut short and is removed; DVC makes it anew", file=sys.stderr)


def _lock(path: Path) -> bool:
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(path.read_bytes()))
    except FileNotFoundError:
        return True
    except (YAMLError, Invalid):
        return False
    return True


def _rwlock(path: Path) -> bool:
    try:
        SCHEMA(json.loads(path.read_text()))
    except FileNotFoundError:
        return True
    except (ValueError, Invalid):
        return False
    return True
