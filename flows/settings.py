"""Settings of one run alone: told before anything runs where they are wrong, and gone from params.yaml afterwards.

What a run with settings of its own changes in the workspace (params.yaml, dvc.lock, files in data/ that git has) is
kept in .dvc/tmp/before until it is put back, be it by the next run because this one was killed.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from hashlib import sha256
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from flows.process import DVC
from maavt.errors import UsageError, UserError, redacted
from maavt.params import check_weights, parse_params
from maavt.work import atomic

LONGEST = 80  # bytes of an experiment's name, without its hash
UNFINISHED = {"MERGE_HEAD": "merge", "rebase-merge": "rebase", "rebase-apply": "rebase", "REVERT_HEAD": "revert",
              "CHERRY_PICK_HEAD": "cherry-pick"}  # a file in .git -> the command that is not finished
OUTPUTS_BACK = ("checkout", "--quiet", "--force")  # also where a stopped stage left half of one
PLAIN = re.compile(r"\[?\w+(\.\d+)?(,\w+(\.\d+)?)*\]?", re.ASCII)  # values that no other one shares its name with


def check_project(project: Path) -> Path:
    """The folder, in full. Raises UsageError when it is no DVC project, and UserError, with git's own words, when git
    cannot be used in it or has no commit."""
    project = project.expanduser().resolve()
    if not (project / ".dvc").is_dir():
        raise UsageError(f"{project} is not a DVC project: it has no folder .dvc")
    _git(project, "rev-parse", "--verify", "HEAD")
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
def changed(project: Path, settings: Sequence[str], *, outputs: bool = False) -> Iterator[None]:
    """Within the block params.yaml has these settings; afterwards the workspace has what it had before, with `outputs`
    also those of the stages, as far as DVC's cache has them.

    Call it with the project's lock held. Raises UsageError as changed_text does, and UserError where DVC could not
    save an experiment.
    """
    put_back(project)
    text = changed_text(project, settings)
    if not settings:
        yield
        return
    _check_finished(project)
    keep, making = _kept(project), _kept(project).with_name("before.tmp")
    shutil.rmtree(making, ignore_errors=True)
    (making / "files").mkdir(parents=True)
    for name in ("params.yaml", "dvc.lock", *_seen_by_git(project, "data")):
        if (project / name).exists():
            (making / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(project / name, making / "files" / name)
    (making / "params.yaml").write_text(text)
    (making / "revision").write_text(_git(project, "rev-parse", "HEAD"))
    making.rename(keep)
    try:
        _write(project / "params.yaml", text.encode())
        yield
    finally:
        put_back(project)
        if outputs:  # in a plain process: a stopped run stops those of flows.process at once
            subprocess.run([*DVC, *OUTPUTS_BACK], cwd=project, capture_output=True)


def _check_finished(project: Path) -> None:
    """Raises UserError in the middle of a merge and the like, where DVC can save no experiment, or ends it unasked."""
    folder = Path(_git(project, "rev-parse", "--absolute-git-dir").strip())
    for name, command in UNFINISHED.items():
        if (folder / name).exists():
            raise UserError(f"a {command} is not finished in {project}, so DVC could not save an experiment; finish "
                            f"it (git status says how) or give it up (git {command} --abort), and run this again")
    if conflicts := _names(project, "diff", "--name-only", "--diff-filter=U"):
        raise UserError(f"{', '.join(conflicts)}: conflicts that are not resolved, so that DVC could not save an "
                        "experiment; resolve them, git add the files, and run this again")


def put_back(project: Path) -> bool:
    """Give the workspace what it had before a run with settings of its own; returns whether there was such a run.

    What does not belong to the revision that is checked out now stays as it is, and so does a params.yaml that somebody
    has edited since; both are said.
    """
    kept = _kept(project)
    if not kept.exists():
        return False
    before = {str(file.relative_to(kept / "files")): file for file in (kept / "files").rglob("*") if file.is_file()}
    ours, others = _same_revision(project, kept), []
    for name in dict.fromkeys((*before, "dvc.lock", *_seen_by_git(project, "data"))):
        path, old = project / name, before[name].read_bytes() if name in before else None
        now = path.read_bytes() if path.exists() else None
        if now == old:
            continue
        if not ours(name):
            others.append(name)
        elif name == "params.yaml" and now != (kept / name).read_bytes():
            print(f"warning: {path} was edited while a run had settings of its own; it stays as it is", file=sys.stderr)
        elif old is None:
            path.unlink()
        else:
            _write(path, old)
    if others:
        print(f"warning: an experiment was stopped in another revision of {project}; what git has checked out since "
              f"stays as it is: {', '.join(others)}", file=sys.stderr)
    shutil.rmtree(done := kept.with_name("before.done"), ignore_errors=True)
    kept.rename(done)
    shutil.rmtree(done)
    return True


def _same_revision(project: Path, kept: Path) -> Callable[[str], bool]:
    """Whether a file is still of the revision in which it was kept: all are as long as that is checked out; later those
    that were carried over, changed, to a revision in which git has the same."""
    then, now = (kept / "revision").read_text(), _git(project, "rev-parse", "HEAD")
    if then == now:
        return lambda name: True
    try:
        other = _names(project, "diff", "--name-only", "--relative", then.strip(), now.strip())
    except UserError:  # git has thrown it away
        return lambda name: False
    carried = {*_names(project, "diff", "--name-only", "--relative", "HEAD"), *_seen_by_git(project, option="-o")}
    return lambda name: name in carried.difference(other)


@contextmanager
def saving(project: Path, name: str, targets: Sequence[str] = ()) -> Iterator[list[str]]:
    """The arguments of dvc that make the workspace an experiment of that name, instead of an older one; where only
    `targets` were made, the others' outputs need not be there.

    Run it within the block: DVC unstages all that is staged, and fails where a removal is. Afterwards git's index is as
    it was.
    """
    top = Path(_git(project, "rev-parse", "--show-toplevel").strip())
    index = project / _git(project, "rev-parse", "--git-path", "index").strip()
    before = index.read_bytes()
    try:
        if removed := _names(top, "diff", "--cached", "--name-only", "--no-renames", "--diff-filter=D"):
            _git(top, "--literal-pathspecs", "reset", "--quiet", "--pathspec-from-file=-", "--pathspec-file-nul",
                 given="\0".join(removed))
        untracked = _seen_by_git(project, "dvc.lock", "data", option="-o")
        include = [part for path in untracked for part in ("--include-untracked", path)]
        yield ["exp", "save", "--force", "--name", name, *include, *targets]
    finally:
        _write(index, before)


def _seen_by_git(project: Path, *paths: str, option: str = "-co") -> list[str]:
    """The files there that git has or would take."""
    return sorted(_names(project, "ls-files", option, "--exclude-standard", "--", *paths))


def _names(project: Path, command: str, *arguments: str) -> list[str]:
    """The files that a git command names."""
    return [name for name in _git(project, command, "-z", *arguments).split("\0") if name]


def _git(project: Path, *arguments: str, given: str | None = None) -> str:
    """What a git command prints. Raises UserError with its own words when it fails."""
    done = subprocess.run(["git", *arguments], cwd=project, input=given, capture_output=True, text=True,
                          errors="surrogateescape", env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        told = " ".join(done.stderr.split())
        unborn = "not a git repository" in told or "Needed a single revision" in told
        raise UserError(f"{project}: git cannot be used here: {told}" + (
            "; DVC needs a git repository with a commit: clone the project with git, or run: git init && git add . && "
            "git commit -m start" if unborn else ""))
    return done.stdout


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def _kept(project: Path) -> Path:
    return project / ".dvc" / "tmp" / "before"
