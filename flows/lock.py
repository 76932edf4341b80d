"""Remove a dvc.lock that a full disk or a kill cut short: `python -m flows.lock`.

DVC writes the file in place and refuses it afterwards. Nothing is lost: it makes it anew, and finds finished stages
in its cache.
"""

import sys
from pathlib import Path

from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML, YAMLError
from voluptuous import Invalid


def drop_damaged_lock(project: Path) -> None:
    """Remove the project's dvc.lock when DVC would refuse it, and say so."""
    path = project / "dvc.lock"
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(path.read_bytes()))
    except FileNotFoundError:
        return
    except (YAMLError, Invalid):
        path.unlink()
        print(f"{path} was cut short and is removed; DVC makes it anew from its cache", file=sys.stderr)


if __name__ == "__main__":
    drop_damaged_lock(Path.cwd())
