"""What DVC's cache keeps of an output's last version. DVC removes the output itself before its stage runs again.

DVC itself cannot be asked: it holds its lock while a stage runs.
"""

import configparser
import hashlib
import json
import os
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from maavt.work import link


def restore(root: Path, output: str, folder: Path, paths: set[str]) -> None:
    """Give those of `paths` that are missing in `folder` a second name, where the cache has them.

    `output` is the path in dvc.lock of the project in `root`. Nothing is an error: what the cache lacks is missing.
    """
    names = sums(root, output)
    for path in sorted(paths & names.keys()):
        if not (folder / path).exists():
            take(root, names[path], folder / path)


def take(root: Path, md5: str, destination: Path) -> bool:
    """Give what the cache of the project in `root` has under that sum another name; whether it has it."""
    kept = _object(_cache(root) / "files" / "md5", md5)
    if not kept.exists():
        return False
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.tmp")
    temporary.unlink(missing_ok=True)
    link(kept, temporary)
    os.replace(temporary, destination)
    return True


def sums(root: Path, output: str) -> dict[str, str]:
    """Path in it -> MD5 of every file that a folder, an output in dvc.lock, had last; none where that is not known."""
    try:
        stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"].values()
        found = [out["md5"] for stage in stages for out in stage.get("outs", ()) if out["path"] == output]
        entries = json.loads(_object(_cache(root) / "files" / "md5", found[0]).read_text())
        return {entry["relpath"]: entry["md5"] for entry in entries}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError):
        return {}


def seed(root: Path, stage: str) -> int | None:
    """The seed that a stage was last made with."""
    try:
        return YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"][stage]["params"]["params.yaml"]["seed"]
    except (OSError, LookupError, TypeError, YAMLError):
        return None


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _cache(root: Path) -> Path:
    config = configparser.ConfigParser()
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"])
    return root / ".dvc" / config.get("cache", "dir", fallback="cache").strip('"')


def md5(path: Path) -> str:
    """A file's MD5, as DVC would name it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
