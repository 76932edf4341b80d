"""Where unfinished work lives: .work/STAGE/FINGERPRINT, locked, continued after a kill, moved into place when whole.

DVC deletes a stage's outputs before it runs the stage again, so what is to survive a kill lives elsewhere until
the stage ends: what is published before has second names here, and the next start goes by the hashes noted with them.
"""

import codecs
import csv
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shutil
import string
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from maavt.errors import UserError

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # of mallopt, in malloc.h


def project_root() -> Path:
    """The folder of dvc.yaml, found by walking up from here. Raises UserError when there is none.

    DVC_ROOT is no help: in experiments that DVC runs in a folder of their own it names the original project.
    """
    for folder in (here := Path.cwd(), *here.parents):
        if (folder / "dvc.yaml").exists():
            return folder
    raise UserError(f"no dvc.yaml in {here} or above it; run this inside a maavt project")


def fingerprint(*inputs) -> str:
    """A short hash of parameters, input files (given as Path) and of the package's own code."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            digest.update(sha256(item).encode())
        else:
            plain = asdict(item) if is_dataclass(item) else item
            digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
    package = Path(__file__).parent
    for source in sorted(package.rglob("*.py")):
        digest.update(str(source.relative_to(package)).encode() + source.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def workspace(stage: str, *inputs) -> Iterator[Path]:
    """The locked folder .work/STAGE/FINGERPRINT of this project, kept for the next run unless the work ends well.

    What was published from it is there again, but for files that changed since. Raises UserError when another process
    holds it.
    """
    folder = project_root() / ".work" / stage / fingerprint(*inputs)
    done = folder.with_suffix(".done")
    with _locked(folder, stage):
        for old in folder.parent.glob("*.done"):
            shutil.rmtree(old, ignore_errors=True)
        _distrust(folder)
        yield folder
        os.replace(folder, done)  # in one moment, so that a kill leaves all or nothing to go on from
        shutil.rmtree(done, ignore_errors=True)


def _distrust(folder: Path) -> None:
    """Remove what is no longer as it was when it was published: it may have been changed under its other name."""
    for note in folder.glob("*.published"):
        for name, digest in json.loads(note.read_text()).items():
            path = folder / name
            if path.exists() and sha256(path) != digest:
                path.unlink()


@contextmanager
def kept(stage: str, name: str) -> Iterator[Path]:
    """The locked folder .work/STAGE/NAME of this project, which outlives changes of code and the end of the work.

    Experiments that DVC runs in a folder of their own share it: DVC_ROOT names the original project. Raises UserError
    when another process holds it.
    """
    folder = Path(os.environ.get("DVC_ROOT") or project_root()) / ".work" / stage / name
    with _locked(folder, stage):
        yield folder


@contextmanager
def _locked(folder: Path, stage: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"process {lock.read().strip() or '?'} is already doing this work ({stage}, {folder}); "
                "wait until it ends, or stop it, and run the same command again"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Note in .work/times how long a stage took, and where, for the report to tell; what a run that was stopped took
    counts for the one that goes on."""
    begin = time.monotonic()
    try:
        yield
    except SystemExit:  # --help
        raise
    except BaseException:
        _note(stage, begin, whole=False)
        raise
    _note(stage, begin, whole=True)


def _note(stage: str, begin: float, whole: bool) -> None:
    with suppress(OSError, UserError):
        before = read_times().get(stage, {"whole": True})
        seconds = time.monotonic() - begin + (0 if before["whole"] else before["seconds"])
        facts = {"stage": stage, "seconds": seconds, "whole": whole, "machine": machine(),
                 "ended": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
        with atomic(_times() / "".join(c if c.isalnum() else "-" for c in stage)) as path:
            path.write_text(json.dumps(facts))


def read_times() -> dict[str, dict]:
    """What was noted of the last run of each stage: seconds, ended, machine, and whether it ended well (whole)."""
    found = {}
    for path in _times().glob("[!.]*"):
        with suppress(ValueError, KeyError):
            facts = json.loads(path.read_text())
            found[facts["stage"]] = facts
    return found


def _times() -> Path:
    return Path(os.environ.get("DVC_ROOT") or project_root()) / ".work" / "times"


def processor() -> str:
    """The name of this machine's CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> str:
    """This machine in words: processor, cores lent to this process, memory, and the GPU that torch uses."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    told = f"{processor()}, {cores} cores, {memory:.0f} GB"
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        told += f", {torch.cuda.get_device_name()}"
    return told


def link_tree(source: Path, destination: Path) -> None:
    """A second name for every file below `source`: no second copy, where the disk can do that."""
    shutil.rmtree(destination, ignore_errors=True)
    shutil.copytree(source, destination, copy_function=link)


def link(source: Path | str, destination: Path | str) -> None:
    """A second name for a file, or a copy where the disk cannot do that."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def publish(finished: Path, destination: Path, *, keep: bool = True) -> None:
    """Put a finished folder into place, replacing what was there.

    With `keep` by second names, so that the workspace has it until the stage ends, where the disk can do that; else it
    is moved.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    leaving = finished.with_name(f"{finished.name}.leaving")
    try:
        if keep:
            files = [path for path in finished.rglob("*") if path.is_file()]
            with atomic(finished.with_name(f"{finished.name}.published")) as path:
                path.write_text(json.dumps({str(file.relative_to(finished.parent)): sha256(file) for file in files}))
            shutil.rmtree(leaving, ignore_errors=True)
            shutil.copytree(finished, leaving, copy_function=os.link)
    except (OSError, shutil.Error):  # the disk is full, or knows no second names
        keep = False
    if destination.is_dir() and not destination.is_symlink():
        shutil.rmtree(destination)
    os.replace(leaving if keep else finished, destination)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it becomes `path`, on disk, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            yield temporary
        except Exception as error:
            said = re.search(r"\(os error (\d+)\)", str(error))  # by safetensors; torch does not say why
            full = errno.ENOSPC if shutil.disk_usage(path.parent).free < 1 << 16 else 0
            if code := int(said[1]) if said else full:
                raise OSError(code, os.strerror(code), str(path)) from error
            raise
        with open(temporary, "rb") as file:
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: Path, known: Sequence[str]) -> tuple[list[str], Iterator[tuple[int, dict[str | None, str]]]]:
    """The columns of somebody's table, and its rows, each with the number of its line: as spreadsheets write them.

    Fields are separated as gives most of the `known` columns in the header, or as a first line such as `sep=;` says.
    Blank rows do not count, nor do columns without a name. A known column may be written with capitals and spaces,
    where no other is meant. Fields beyond the header, unless they are blank, are a list under None.

    Raises UserError for what is no text in UTF-8 or UTF-16, and csv.Error for quotes that do not match.
    """
    lines = io.StringIO(_decoded(path), newline="")
    while (first := lines.readline()) and not first.strip():
        pass
    declared = re.fullmatch(r"\s*\"?sep=(.)\"?[,;\t\s]*", first, re.IGNORECASE)
    begin = lines.tell() if declared else 0

    def records(delimiter: str, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
        lines.seek(0)
        skipped = lines.read(begin)
        before = skipped.count("\n") or skipped.count("\r")
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != " ", strict=strict)
        for record in reader:
            if any(field.strip(BLANK) for field in record):
                yield before + reader.line_num, record

    def header(delimiter: str) -> list[str]:
        return _columns(next(records(delimiter, strict=False), (0, []))[1], known)

    delimiter = declared[1] if declared else max(
        ",;\t|", key=lambda each: (len({*header(each)} & {*known}), len(header(each))))
    names = header(delimiter)

    def rows() -> Iterator[tuple[int, dict[str | None, str]]]:
        found = records(delimiter)
        next(found, None)
        for line, record in found:
            row: dict = {name: field for name, field in zip(names, record, strict=False) if name}
            if beyond := [field for field in record[len(names):] if field.strip(BLANK)]:
                row[None] = beyond
            yield line, dict.fromkeys(filter(None, names), "") | row

    return [name for name in names if name], rows()


BLANK = string.whitespace + "\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NO-BREAK SPACE}"


def _columns(header: list[str], known: Sequence[str]) -> list[str]:
    """The names in a header, without spaces around, and the known ones as they are known."""
    names = [name.strip(BLANK) for name in header]
    plain = Counter(name.casefold() for name in names)
    spelt = {column.casefold(): column for column in known if column not in names and plain[column.casefold()] == 1}
    return [spelt.get(name.casefold(), name) for name in names]


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"PK\3\4"):
        raise UserError(f"{path} is a workbook or another zip, not a CSV; save the table as \"CSV UTF-8\"")
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        zeros = data[:1000:2].count(0), data[1:1000:2].count(0)  # plain letters in UTF-16 have one zero byte each
        if max(zeros) > min(len(data), 1000) / 4:
            return data.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = len(data[: error.start].splitlines())
        odd = data[error.start : error.start + 1]
        raise UserError(f"{path}, line {max(where, 1)}: the byte {odd.hex()} is not UTF-8, as expected (in "
                        f"Windows-1252, which Excel calls CSV, it is {odd.decode('cp1252', 'replace')!r}); save the "
                        "table as \"CSV UTF-8\"") from None


def write_table(path: Path, columns: Iterable[str], rows: Iterable[dict]) -> None:
    """Rows as CSV with these columns; one temporary name, then in place."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(UnixLines(file), list(columns))
        writer.writeheader()
        writer.writerows(rows)


class UnixLines:
    """A file for csv.writer to write to, whose lines end with a newline alone.

    csv.writer(lineterminator="\\n") would do the same, but leaves a carriage return in a field without quotes, and
    readers take that for the end of the row.
    """

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, line: str) -> int:
        return self.file.write(line.removesuffix("\r\n") + "\n")


def sha256(path: Path | int) -> str:
    """The SHA-256 in hexadecimal of a file, or of what a file descriptor, which stays open, has from here on."""
    with open(path, "rb", closefd=not isinstance(path, int)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_workers() -> int:
    """MAAVT_WORKERS, or one worker per CPU core that this process may use (Slurm, containers and taskset lend a part).

    Raises UserError for anything but a positive whole number.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return positive("MAAVT_WORKERS", cores or 1)


def positive(variable: str, default: int) -> int:
    """The number in an environment variable. Raises UserError for anything but a positive whole one."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{variable}={text!r}: expected a positive whole number; set it to one, or unset it")
    return int(text)


def keep_freed(spare: int, largest: int) -> None:
    """Keep up to `spare` freed bytes in this process, of pieces up to `largest` bytes; only with GNU's C library.

    The next clip or training step asks for the same again. To get it anew from the system, page by page, took a
    twentieth of the time of sharding and a tenth or more of training on a CPU.
    """
    with suppress(AttributeError):  # another library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, spare)
        mallopt(MMAP_THRESHOLD, largest)


def one_heap() -> None:
    """Let threads take memory from the heap of the process, for which alone keep_freed holds; before there are any.

    A model that ran in a thread on a CPU took a quarter longer with a heap of the thread's own.
    """
    with suppress(AttributeError):  # another library
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)
