"""Archives of strangers: the wanted members of a tar.gz, tar or zip, each in place whole, and nothing else.

No member's name becomes a path: the caller says where each wanted one goes. Links, devices and sparse files are
skipped, as are members with unsafe names, larger than a clip can be, or there twice. By hand, since tarfile and zipfile
put no limit to what a hostile archive makes them read into memory.
"""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from maavt.fetch.budget import Budget
from maavt.work import atomic

LARGEST_MEMBER = 1 << 30  # bytes; longer ones are no clips
LARGEST_SKIP = 1 << 36  # bytes of unwanted members that a tar.gz is read past
MOST_MEMBERS = 1_000_000
LARGEST_HEADER = 1 << 20  # bytes of a member's own headers, or per member of a zip's table
CHUNK = 1 << 20


@dataclass
class Unpacked:
    """What came out of an archive: files now in place, and why other members were skipped."""

    kept: int = 0
    skipped: Counter = field(default_factory=Counter)
    broken: str = ""  # why the archive could not be read to its end
    twice: dict[Path, tuple[str, str]] = field(default_factory=dict)  # two that differ, of the same rank


class _Broken(Exception):
    pass


_DAMAGE = (_Broken, EOFError, ValueError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile,
           RuntimeError)  # RuntimeError: members in each other without end, or packed in a way that zipfile lacks


def unpack(archive: Path, place: Callable[[str], Path | None], budget: Budget,
           on_file: Callable[[], object] = int, rank: Callable[[str], int] | None = None) -> Unpacked:
    """Write each regular member for whose name `place` gives a path; files that are there already stay.

    Of several members for one path that with the lowest `rank` is taken, else the first.

    An archive that is damaged, cut off or hostile is read up to there: see `broken`. Raises Failed when the budget
    is used up, and OSError for trouble with this machine's disk.
    """
    result = Unpacked()
    seen: dict[Path, str] = {}
    members = _zip if zipfile.is_zipfile(archive) else _tar
    try:
        for name, size, trouble, read in members(archive):
            path = None if trouble else place(name)
            again = not trouble and path in seen and path.exists()
            if again and rank and rank(name) < rank(seen[path]):
                result.skipped["there twice"] += 1
                result.kept -= 1
                result.twice.pop(path, None)
                budget.give(path.stat().st_size)
                path.unlink()
                again = False
            if trouble or path is None or again:
                result.skipped[trouble or ("not a clip of the list" if path is None else "there twice")] += 1
                if again and rank and rank(name) == rank(seen[path]) and not _same(path, read(), size):
                    result.twice.setdefault(path, (seen[path], name))
            else:
                seen[path] = name
                if not path.exists():
                    budget.take(size)
                    try:
                        _write(path, read(), size)
                    except BaseException as error:
                        budget.give(size)
                        if members is _zip and isinstance(error, _DAMAGE):  # the others can still be had
                            result.skipped["damaged"] += 1
                            continue
                        raise
                result.kept += 1
                on_file()
    except _DAMAGE as error:
        result.broken = str(error) or type(error).__name__
    return result


def _same(path: Path, stream: IO[bytes], size: int) -> bool:
    """Whether a member has the bytes of a file, or cannot be read."""
    if path.stat().st_size != size:
        return False
    with open(path, "rb") as file, suppress(*_DAMAGE):
        while chunk := stream.read(CHUNK):
            if file.read(len(chunk)) != chunk:
                return False
    return True


def _write(path: Path, stream: IO[bytes], size: int) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        written = 0
        while chunk := stream.read(CHUNK):
            written += len(chunk)
            if written > size:
                raise _Broken(f"{path.name} is longer than it says")
            file.write(chunk)
        if written < size:
            raise _Broken(f"{path.name} is cut off")


def _tar(archive: Path) -> Iterator[tuple[str, int, str, Callable[[], IO[bytes]]]]:
    """(name, size, why it is not to be had, how to read it) of each member, from front to back."""
    with open(archive, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.GzipFile(fileobj=raw) if packed else raw as stream:
            tar = tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member)
            skipped = 0
            for number, member in enumerate(tar):
                tar.members.clear()  # it would keep them all in memory
                regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                trouble = "" if regular else "a folder" if member.isdir() else "not a regular file"
                trouble = trouble or _trouble(member.name, member.size)
                skipped += member.size if trouble else 0
                if number >= MOST_MEMBERS or skipped > LARGEST_SKIP:
                    raise _Broken(f"more than {MOST_MEMBERS} members, or a huge one")
                yield member.name, member.size, trouble, lambda member=member: tar.extractfile(member)
            rest = 0
            while chunk := stream.read(CHUNK):  # the sum of all bytes stands at the end of a gzip file
                rest += len(chunk)
                if rest > LARGEST_MEMBER:
                    raise _Broken("something without end behind the last member")


class _Member(tarfile.TarInfo):
    """A member whose headers cannot fill the memory: tarfile reads long names and PAX headers in one go.

    A header that makes no sense is an error, which tarfile takes for the end of the archive.
    """

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError) as error:
            raise _Broken(str(error)) from None

    def _proc_member(self, tar):
        if self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                         tarfile.SOLARIS_XHDTYPE) and self.size > LARGEST_HEADER:
            raise _Broken("a header of more than a megabyte")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _Broken("a sparse file")
        return super()._proc_member(tar)


def _zip(archive: Path) -> Iterator[tuple[str, int, str, Callable[[], IO[bytes]]]]:
    """(name, size, why it is not to be had, how to read it) of each member."""
    with open(archive, "rb") as file:
        end = zipfile._EndRecData(file)  # before zipfile reads a table of any size into memory
        if not end or end[zipfile._ECD_SIZE] > 1 << 28 or end[zipfile._ECD_ENTRIES_TOTAL] > MOST_MEMBERS:
            raise _Broken("its table of members is damaged or too large")
        with zipfile.ZipFile(file) as opened:
            if len(opened.filelist) > MOST_MEMBERS:
                raise _Broken(f"more than {MOST_MEMBERS} members")
            for member in opened.infolist():
                mode = member.external_attr >> 16
                regular = stat.S_IFMT(mode) in (0, stat.S_IFREG) and not member.flag_bits & 0x1  # 1: encrypted
                trouble = "a folder" if member.is_dir() else "" if regular else "not a regular file"
                yield (member.filename, member.file_size, trouble or _trouble(member.filename, member.file_size),
                       lambda member=member: opened.open(member))


def _trouble(name: str, size: int) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or ":" in path.parts[:1]:
        return "unsafe name"
    return f"more than {LARGEST_MEMBER >> 30} GB" if size > LARGEST_MEMBER else ""

