"""Settings of one run alone: told before anything runs where they are wrong, and gone from params.yaml afterwards.

What a run with settings of its own changes in the workspace (params.yaml, dvc.lock, the metrics that git has) is kept
in .dvc/tmp/before until it is put back, be it by the next run because this one was killed.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from hashlib import sha256
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from maavt.errors import UsageError, redacted
from maavt.params import check_weights, parse_params
from maavt.work import atomic

LONGEST = 80  # bytes of an experiment's name, without its hash
PLAIN = re.compile(r"\[?\w+(\.\d+)?(,\w+(\.\d+)?)*\]?", re.ASCII)  # values that no other one shares its name with


def check_project(project: Path) -> Path:
    """The folder, in full. Raises UsageError when it is no DVC project."""
    project = project.expanduser().resolve()
    if not (project / ".dvc").is_dir():
        raise UsageError(f"{project} is not a DVC project: it has no folder .dvc")
    return project


def changed_text(project: Path, settings: Sequence[str]) -> str:
    """params.yaml with these settings (KEY=VALUE) in their places; its comments stay. Raises UsageError for wrong ones:
    what is no setting, keys that there are not, and, in a project of this package, values, all at once."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 120
    try:
        values = yaml.load((project / "params.yaml").read_text())
    except (FileNotFoundError, UnicodeDecodeError, YAMLError) as error:
        raise UsageError(f"{project / 'params.yaml'} cannot be read: {' '.join(str(error).split())}") from None
    mistakes = []
    for setting in settings:
        try:
            _set(values, setting)
        except UsageError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UsageError("\n  ".join(mistakes))
    if "maavt.cli" in (project / "dvc.yaml").read_text():
        parsed = parse_params(values, " and ".join(["params.yaml", *settings][:2]) + (" ..." if settings[1:] else ""))
        check_weights(parsed, project)
    written = StringIO()
    yaml.dump(values, written)
    return written.getvalue() if settings else (project / "params.yaml").read_text()


def _set(values: dict, setting: str) -> None:
    """Put KEY=VALUE in its place; raises UsageError where it has none."""
    key, equals, text = setting.partition("=")
    if not (key and equals and text):
        raise UsageError(f"{setting!r} is no setting; expected KEY=VALUE")
    here, parts = values, key.split(".")
    for part in parts:
        if not isinstance(here, dict) or part not in here:
            near = get_close_matches(part, here if isinstance(here, dict) else [])
            raise UsageError(f"{setting}: params.yaml has no {key}" + (f"; is {near[0]} meant?" if near else
                             "; expected one of its keys, such as tokens or maavt.lsa"))
        outer, here = here, here[part]
    try:
        outer[parts[-1]] = YAML(typ="safe").load(text)
    except YAMLError:
        raise UsageError(f"{setting!r}: the value is not YAML; expected such as 10, false or [maavt,lavish]") from None


def check_free(settings: Sequence[str], **options: str) -> None:
    """Raises UsageError where one of the settings (KEY=VALUE, or several with + between) is told by an option instead:
    `seed="--seeds"`."""
    for setting in settings:
        for change in setting.split("+"):
            key = change.partition("=")[0]
            if key in options:
                raise UsageError(f"{setting}: {key} differs from run to run here; expected {options[key]} instead")


def experiment_name(settings: Sequence[str]) -> str:
    """A name that DVC and file systems take: tokens=10 and maavt.lsa=false become tokens-10-maavt-lsa-false; one
    that is long, or in which signs matter that it cannot have (a path, a minus), ends in a hash of all."""
    told = " ".join(settings)
    name = "-".join("".join(c if c.isalnum() else " " for c in redacted(told)).split())
    short = name.encode()[:LONGEST].decode(errors="ignore")
    values = [change.rpartition("=")[2] for setting in settings for change in setting.split("+")]
    plain = short == name and redacted(told) == told and all(map(PLAIN.fullmatch, values))
    return name if plain else f"{short}-{sha256(told.encode()).hexdigest()[:12]}"


@contextmanager
def changed(project: Path, settings: Sequence[str]) -> Iterator[None]:
    """Within the block params.yaml has these settings; afterwards the workspace has what it had before.

    Call it with the project's lock held. Raises UsageError as changed_text does.
    """
    put_back(project)
    text = changed_text(project, settings)
    if not settings:
        yield
        return
    keep, making = _kept(project), _kept(project).with_name("before.tmp")
    shutil.rmtree(making, ignore_errors=True)
    (making / "files").mkdir(parents=True)
    for name in ("params.yaml", "dvc.lock", *_seen_by_git(project, "data")):
        if (project / name).exists():
            (making / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(project / name, making / "files" / name)
    (making / "params.yaml").write_text(text)
    making.rename(keep)
    try:
        _write(project / "params.yaml", text.encode())
        yield
    finally:
        put_back(project)


def put_back(project: Path) -> bool:
    """Give the workspace what it had before a run with settings of its own; returns whether there was such a run.

    A params.yaml that somebody has edited since stays as it is, which is said.
    """
    kept = _kept(project)
    if not kept.exists():
        return False
    for file in (path for path in (kept / "files").rglob("*") if path.is_file()):
        name = str(file.relative_to(kept / "files"))
        if name == "params.yaml" and (project / name).read_bytes() not in (file.read_bytes(),
                                                                          (kept / name).read_bytes()):
            print(f"warning: {project / name} was edited while a run had settings of its own; it stays as it is",
                  file=sys.stderr)
            continue
        _write(project / name, file.read_bytes())
    for name in ("dvc.lock", *_seen_by_git(project, "data")):
        if not (kept / "files" / name).exists():
            (project / name).unlink(missing_ok=True)
    shutil.rmtree(done := kept.with_name("before.done"), ignore_errors=True)
    kept.rename(done)
    shutil.rmtree(done)
    return True


def saving(project: Path, name: str, targets: Sequence[str] = ()) -> list[str]:
    """The arguments of dvc that make the workspace an experiment of that name, instead of an older one; where only
    `targets` were made, the others' outputs need not be there."""
    untracked = _seen_by_git(project, "dvc.lock", "data", option="-o")
    include = [part for path in untracked for part in ("--include-untracked", path)]
    return ["exp", "save", "--force", "--name", name, *include, *targets]


def _seen_by_git(project: Path, *paths: str, option: str = "-co") -> list[str]:
    """The files there that git has or would take."""
    command = ["git", "ls-files", "-z", option, "--exclude-standard", *paths]
    return sorted(filter(None, subprocess.run(command, cwd=project, capture_output=True, text=True).stdout.split("\0")))


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def _kept(project: Path) -> Path:
    return project / ".dvc" / "tmp" / "before"
