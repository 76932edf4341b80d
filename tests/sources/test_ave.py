"""The stage with data set ave, from a server that plays Google Drive, and from copies of one's own."""

import io
import zipfile

import pytest

from maavt.clips import read_manifest
from maavt.errors import UserError
from maavt.sources import ave
from maavt.stages import download
from tests.server import QUOTA, Fault, put_on_drive
from tests.sources.common import contents, make_project, media

ROWS = [("-abc", "Bark", "train", 0, 10), ("def_", "Clock", "val", 2, 4), ("-abc", "Bark", "train", 4, 5),
        ("ghi", "Bus", "test", 0, 0), ("gone", "Bus", "test", 0, 10)]


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """A short list in the place of the packaged one."""
    columns = ("id", "label", "split", "start", "end")
    monkeypatch.setattr(ave, "read_packaged", lambda name: (dict(zip(columns, row, strict=True)) for row in ROWS))


@pytest.fixture
def clips():
    return {f"AVE/{name}.mp4": media(mark=n) for n, name in enumerate(("-abc", "def_", "ghi"))}


@pytest.fixture
def packed(clips) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in ({"Annotations.txt": b"Category&VideoID\n"} | clips).items():
            archive.writestr(f"AVE_Dataset/{name}", data)
    return file.getvalue()


def project_for(tmp_path, monkeypatch, coverage: float = 0.5, **settings):
    project = make_project(tmp_path / "project", dataset="ave", ave=settings, download={"min_coverage": coverage})
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def url(drive, packed) -> str:
    return put_on_drive(drive, "1F", packed)


def check(project, clips) -> None:
    listed, labels = read_manifest(project / "data/raw/ave")
    assert [(clip.key, clip.status) for clip in listed] == [
        ("0000--abc", "ok"), ("0001-def_", "ok"), ("0002--abc", "ok"), ("0003-ghi", "ok"), ("0004-gone", "failed")]
    assert listed[4].reason == "permanent: not in the archive" and labels.background
    raw = contents(project / "data/raw/ave")
    assert {name: data for name, data in raw.items() if name.endswith(".mp4")} == clips


def test_the_zip_is_fetched_from_drive_over_broken_connections(drive, url, tmp_path, monkeypatch, clips):
    project = project_for(tmp_path, monkeypatch, url=url)
    left = iter(range(3))
    drive.fault = lambda asked: Fault(break_after=3000) if "download" in asked.path and next(left, 9) < 9 else None
    download.main()
    check(project, clips)
    assert not list((project / ".work").rglob("parts/*"))
    drive.asked.clear()
    download.main()
    assert not drive.asked
    check(project, clips)


def test_a_used_up_quota_says_what_to_do_and_keeps_the_state(drive, url, tmp_path, monkeypatch):
    project = project_for(tmp_path, monkeypatch, url=url)
    drive.routes["/uc"] = lambda *_: ("text/html", QUOTA.encode())
    with pytest.raises(UserError, match="quota for this file is used up.*set ave.local"):
        download.main()
    (manifest,) = (project / ".work").rglob("clips.csv")
    clips, _ = read_manifest(manifest.parent)
    assert {clip.reason for clip in clips} == {"transient: not fetched yet"}


def test_ones_own_zip_and_folder_do_as_well(tmp_path, monkeypatch, packed, clips):
    (tmp_path / "my.zip").write_bytes(packed)
    project = project_for(tmp_path, monkeypatch, local=str(tmp_path / "my.zip"))
    download.main()
    check(project, clips)
    assert (tmp_path / "my.zip").read_bytes() == packed
    with zipfile.ZipFile(tmp_path / "my.zip") as archive:
        archive.extractall(tmp_path / "unzipped")
    project = project_for(tmp_path, monkeypatch, local=str(tmp_path / "unzipped"))
    download.main()
    listed, _ = read_manifest(project / "data/raw/ave")
    assert sum(clip.status == "ok" for clip in listed) == 4


def test_ones_own_zip_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    project_for(tmp_path, monkeypatch, local="elsewhere.zip")
    with pytest.raises(UserError, match="ave.local: there is no .*elsewhere.zip"):
        download.main()


def test_a_zip_that_arrived_damaged_is_fetched_again(drive, url, tmp_path, monkeypatch, clips, packed):
    project = project_for(tmp_path, monkeypatch, coverage=0.1, url=url)
    put_on_drive(drive, "1F", packed[: len(packed) // 2])
    with pytest.raises(UserError, match="0 of 5 clips are here"):
        download.main()
    put_on_drive(drive, "1F", packed)
    download.main()
    check(project, clips)


def test_drives_refusal_says_how_else_to_get_the_zip(drive, url, tmp_path, monkeypatch):
    project_for(tmp_path, monkeypatch, url=url)
    drive.fault = lambda asked: Fault(status=403, headers={"Content-Type": "text/html"})
    with pytest.raises(UserError, match="refuses access.*set ave.local"):
        download.main()


def test_a_zip_at_a_plain_address_does_as_well(server, tmp_path, monkeypatch, packed, clips):
    server.files["/AVE.zip"] = packed
    project = project_for(tmp_path, monkeypatch, url=f"{server.url}/AVE.zip")
    left = iter(range(3))
    server.fault = lambda asked: Fault(break_after=4000) if next(left, 9) < 9 else None
    download.main()
    check(project, clips)
    assert [asked.headers.get("Range") for asked in server.asked].count(None) < len(server.asked)


def test_clips_that_are_damaged_in_the_zip_are_fetched_again(drive, url, tmp_path, monkeypatch, clips, packed):
    project = project_for(tmp_path, monkeypatch, coverage=0.1, url=url)
    place = packed.index(clips["AVE/def_.mp4"]) + 500
    put_on_drive(drive, "1F", packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1:])
    download.main()
    listed, _ = read_manifest(project / "data/raw/ave")
    assert {clip.reason for clip in listed} == {"", "transient: not in the damaged archive"}
    put_on_drive(drive, "1F", packed)
    download.main()
    check(project, clips)
