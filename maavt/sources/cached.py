"""What DVC's cache keeps of an output's last version. DVC removes the output itself before its stage runs again.

DVC itself cannot be asked: it holds its lock while a stage runs.
"""

import configparser
import json
import os
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from maavt.work import link


def restore(root: Path, output: str, folder: Path, paths: set[str]) -> None:
    """Give those of `paths` that are missing in `folder` a second name, where the cache has them.

    `output` is the path in dvc.lock of the project in `root`. Nothing is an error: what the cache lacks is missing.
    """
    cache = _cache(root) / "files" / "md5"
    try:
        stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"].values()
        sums = [out["md5"] for stage in stages for out in stage.get("outs", ()) if out["path"] == output]
        entries = json.loads(_object(cache, sums[0]).read_text())
        names = {entry["relpath"]: entry["md5"] for entry in entries}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError):
        return
    for path in sorted(paths & names.keys()):
        kept = _object(cache, names[path])
        if kept.exists() and not (folder / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            temporary = (folder / path).with_name(f".{Path(path).name}.tmp")
            temporary.unlink(missing_ok=True)
            link(kept, temporary)
            os.replace(temporary, folder / path)


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _cache(root: Path) -> Path:
    config = configparser.ConfigParser()
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"])
    return root / ".dvc" / config.get("cache", "dir", fallback="cache").strip('"')
