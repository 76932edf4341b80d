import gzip
import io
import os
import tarfile
import zipfile

import pytest

from maavt.fetch import Failed
from maavt.fetch.budget import Budget
from maavt.sources import unpack as module
from maavt.sources.unpack import unpack


def member(name: str, data: bytes = b"clip", **facts) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def run(path, tmp_path, budget=None):
    """Unpack all that ends on .mp4 to a folder of its own."""
    folder = tmp_path / "raw"
    folder.mkdir(exist_ok=True)
    place = lambda name: folder / os.path.basename(name) if name.endswith(".mp4") else None  # noqa: E731
    result = unpack(path, place, budget or Budget(tmp_path))
    files = {str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*") if found.is_file() and found != path}
    assert all(name.startswith("raw/") and name.endswith(".mp4") for name in files)
    return result, {name.removeprefix("raw/"): (tmp_path / name).read_bytes() for name in files}


def test_only_what_is_asked_for_comes_out_of_a_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", [member("deep/er/a.mp4", b"A" * 5000), member("b.txt"), member("c.mp4")])
    result, files = run(path, tmp_path)
    assert files == {"a.mp4": b"A" * 5000, "c.mp4": b"clip"}
    assert (result.kept, dict(result.skipped), result.broken) == (2, {"not a clip of the list": 1}, "")


def test_hostile_members_of_a_tar_are_skipped_with_their_reason(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", [
        member("../up.mp4"), member("x/../../up2.mp4"), member("/etc/abs.mp4"), member("..\\win.mp4"),
        member("link.mp4", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard.mp4", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("device.mp4", b"", type=tarfile.CHRTYPE), member("pipe.mp4", b"", type=tarfile.FIFOTYPE),
        member("folder.mp4", b"", type=tarfile.DIRTYPE), member("a.mp4", b"first"), member("x/a.mp4", b"second"),
    ])
    result, files = run(path, tmp_path)
    assert files == {"a.mp4": b"first"}
    assert dict(result.skipped) == {"unsafe name": 4, "not a regular file": 4, "a folder": 1, "there twice": 1}
    assert not os.path.exists("/etc/abs.mp4")


def test_a_member_of_a_terabyte_ends_the_reading(tmp_path):
    info, _ = member("huge.mp4", size=1 << 40)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(member_bytes("a.mp4") + info.tobuf() + bytes(5000)))
    result, files = run(tmp_path / "a.tar.gz", tmp_path)
    assert files == {"a.mp4": b"clip"} and "huge" in result.broken


def member_bytes(name: str, data: bytes = b"clip") -> bytes:
    return member(name, data)[0].tobuf() + data + bytes(-len(data) % 512)


def test_a_large_member_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_MEMBER", 1000)
    path = write_tar(tmp_path / "a.tar.gz", [member("big.mp4", bytes(2000)), member("a.mp4")])
    result, files = run(path, tmp_path)
    assert files == {"a.mp4": b"clip"} and sum(result.skipped.values()) == 1 and not result.broken


def test_more_members_than_any_data_set_has_end_the_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_MEMBERS", 100)
    path = write_tar(tmp_path / "a.tar.gz", [member(f"{n}", b"") for n in range(200)])
    result, _ = run(path, tmp_path)
    assert sum(result.skipped.values()) == 100 and "more than 100 members" in result.broken


def test_a_header_of_a_gigabyte_is_not_read_into_memory(tmp_path):
    info, _ = member("././@LongLink", size=1 << 30, type=tarfile.GNUTYPE_LONGNAME)
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(member_bytes("a.mp4") + info.tobuf() + bytes(1 << 21))
    result, files = run(tmp_path / "a.tar.gz", tmp_path)
    assert files == {"a.mp4": b"clip"} and "header" in result.broken


def test_a_sparse_member_ends_the_reading(tmp_path):
    info, _ = member("sparse.mp4", size=512, type=tarfile.GNUTYPE_SPARSE)
    (tmp_path / "a.tar").write_bytes(member_bytes("a.mp4") + info.tobuf(format=tarfile.GNU_FORMAT) + bytes(5000))
    result, files = run(tmp_path / "a.tar", tmp_path)
    assert files == {"a.mp4": b"clip"} and result.broken


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_what_precedes_the_break_of_a_truncated_tar_is_kept(tmp_path, share):
    clips = {f"{n}.mp4": os.urandom(10_000) for n in range(20)}
    path = write_tar(tmp_path / "a.tar.gz", [member(name, data) for name, data in clips.items()])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    result, files = run(path, tmp_path)
    assert result.broken and 20 * share - 2 <= len(files) == result.kept <= 20
    assert all(clips[name] == data for name, data in files.items())


def test_a_damaged_tar_is_called_broken_and_what_precedes_is_kept(tmp_path):
    clips = {f"{n}.mp4": os.urandom(100_000) for n in range(20)}
    path = write_tar(tmp_path / "a.tar.gz", [member(name, data) for name, data in clips.items()])
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = os.urandom(len(data) - len(data) // 2)
    path.write_bytes(data)
    result, files = run(path, tmp_path)
    assert result.broken
    assert all(files[f"{n}.mp4"] == clips[f"{n}.mp4"] for n in range(8))


def test_a_changed_byte_is_noticed_at_the_end_of_a_tar_gz(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", [member("a.mp4", os.urandom(10_000))])
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert run(path, tmp_path)[0].broken


@pytest.mark.parametrize("data", [b"", b"not an archive", b"\x1f\x8b", os.urandom(100_000)])
def test_a_file_that_is_no_archive_is_broken(tmp_path, data):
    (tmp_path / "a.tar.gz").write_bytes(data)
    result, files = run(tmp_path / "a.tar.gz", tmp_path)
    assert result.broken and not files


def test_hostile_members_of_a_zip_are_skipped_with_their_reason(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("../up.mp4", "/abs.mp4", "AVE/a.mp4", "AVE/notes.txt", "again/a.mp4"):
            file.writestr(name, name)
        link = zipfile.ZipInfo("link.mp4")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.mkdir("folder.mp4")
        file.writestr("locked.mp4", "secret")
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1  # encrypted
    path.write_bytes(data)
    result, files = run(path, tmp_path)
    assert files == {"a.mp4": b"AVE/a.mp4"}
    assert dict(result.skipped) == {"unsafe name": 2, "not a clip of the list": 1, "there twice": 1, "a folder": 1,
                                    "not a regular file": 2}


def test_a_damaged_member_of_a_zip_costs_only_itself(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("a.mp4", "b.mp4"):
            file.writestr(name, name * 1000)
    path.write_bytes(path.read_bytes().replace(b"a.mp4a.mp4", b"a.mp4X.mp4", 1))
    result, files = run(path, tmp_path)
    assert files == {"b.mp4": b"b.mp4" * 1000} and dict(result.skipped) == {"damaged": 1}


def test_a_zip_member_that_is_longer_than_it_says_is_not_written(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.mp4", bytes(10_000_000))
    data = path.read_bytes().replace((10_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(data)
    result, files = run(path, tmp_path)
    assert not files and dict(result.skipped) == {"damaged": 1}


def test_a_zip_with_a_table_of_a_hundred_million_members_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_MEMBERS", 3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for n in range(4):
            file.writestr(f"{n}.mp4", "x")
    result, files = run(tmp_path / "a.zip", tmp_path)
    assert result.broken and not files


def test_unpacking_stops_at_the_disk_budget(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", [member(f"{n}.mp4", os.urandom(1000)) for n in range(10)])
    budget = Budget(tmp_path, limit=path.stat().st_size + 4500)
    with pytest.raises(Failed, match="disk budget"):
        run(path, tmp_path, budget)
    assert len(list((tmp_path / "raw").iterdir())) == 4


def test_files_that_are_there_already_are_not_written_again(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", [member("a.mp4", b"new"), member("b.mp4", b"new")])
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"old")
    result, files = run(path, tmp_path)
    assert files == {"a.mp4": b"old", "b.mp4": b"new"} and result.kept == 2
