"""The stage with data set cremad, from a server that plays GitLab with its LFS store, and from a clone."""

import hashlib
import json

import av
import pytest

from maavt.clips import read_manifest
from maavt.errors import UserError
from maavt.media.decode import Rejected, decode
from maavt.sources import cremad
from maavt.stages import download
from tests.server import Fault
from tests.sources.common import contents, make_project, media, write_media

NAMES = ("1001_DFA_ANG_XX", "1002_DFA_HAP_XX", "1003_DFA_SAD_XX", "1076_MTI_NEU_XX")


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    """A short list in the place of the packaged one; the last clip is one of the known bad."""
    listed = [{"clip": name, "label": name[9:12], "split": "test" if n == 2 else "train"}
              for n, name in enumerate(NAMES)]
    monkeypatch.setattr(cremad, "read_packaged", lambda name: listed)


@pytest.fixture
def files() -> dict[str, bytes]:
    """The repository: picture with a sound of its own, and sound."""
    found = {}
    for n, name in enumerate(NAMES[:3]):
        found[f"VideoFlash/{name}.flv"] = media(".flv", picture="flv", sound=None, seconds=2, mark=n)
        found[f"AudioWAV/{name}.wav"] = media(".wav", picture=None, sound="pcm_s16le", seconds=2, mark=n)
    return found


def pointer(data: bytes) -> bytes:
    oid = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()


class GitLab:
    """Serves the repository's files as pointers, and the real ones through the batch API."""

    def __init__(self, server, files: dict[str, bytes]):
        self.server, self.batches, self.errors = server, [], {}
        for name, data in files.items():
            server.files[f"/raw/{name}"] = pointer(data)
            server.files[f"/objects/{hashlib.sha256(data).hexdigest()}"] = data
        server.routes["/repo.git/info/lfs/objects/batch"] = self.batch

    def batch(self, handler, body: bytes) -> tuple[str, bytes]:
        asked = json.loads(body)["objects"]
        self.batches.append(asked)
        answers = [{"oid": o["oid"], "size": o["size"]} | (
            {"error": {"code": self.errors[o["oid"]], "message": "no"}} if o["oid"] in self.errors else
            {"actions": {"download": {"href": f"{self.server.url}/objects/{o['oid']}", "header": {"X-Key": "k"}}}})
            for o in asked]
        return "application/vnd.git-lfs+json", json.dumps({"objects": answers}).encode()


@pytest.fixture
def gitlab(server, files):
    return GitLab(server, files)


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project", dataset="cremad", download={"min_coverage": 0.2}, cremad={
        "files": f"{server.url}/raw/{{path}}", "lfs": f"{server.url}/repo.git/info/lfs"})
    monkeypatch.chdir(folder)
    return folder


def reasons(project) -> list[str]:
    return [clip.reason for clip in read_manifest(project / "data/raw/cremad")[0]]


def raw(project) -> dict[str, bytes]:
    return contents(project / "data/raw/cremad")


def test_pointers_are_followed_in_one_request_and_picture_and_sound_joined(gitlab, project):
    download.main()
    assert reasons(project) == ["", "", "", "content: known bad clip"]
    assert [len(batch) for batch in gitlab.batches] == [6]
    for name in NAMES[:3]:
        clip = decode(project / f"data/raw/cremad/clips/{name}.nut", seconds=2, frame_size=32, sample_rate=16000)
        assert clip.video_seconds == pytest.approx(2, abs=0.2) and clip.audio_seconds == pytest.approx(2, abs=0.1)
    assert [asked.headers.get("X-Key") for asked in gitlab.server.asked if "objects/" in asked.path][1:] == ["k"] * 6
    assert not [asked for asked in gitlab.server.asked if NAMES[3] in asked.path]
    assert not any((project / ".work").rglob("*.flv"))


def test_files_that_come_as_they_are_need_no_batch(server, files, project):
    server.files |= {f"/raw/{name}": data for name, data in files.items()}
    download.main()
    assert reasons(project)[:3] == [""] * 3


def test_the_same_files_make_the_same_clip(gitlab, project, tmp_path, monkeypatch):
    download.main()
    first = raw(project)
    other = make_project(tmp_path / "other", dataset="cremad", download={"min_coverage": 0.2}, cremad={
        "files": f"{gitlab.server.url}/raw/{{path}}", "lfs": f"{gitlab.server.url}/repo.git/info/lfs"})
    monkeypatch.chdir(other)
    download.main()
    assert raw(other) == first


def test_an_address_of_an_object_that_has_expired_is_asked_for_anew(gitlab, project, files):
    fresh = gitlab.batch

    def batch(handler, body):
        kind, answer = fresh(handler, body)
        return kind, answer.replace(b"/objects/", b"/expired/") if len(gitlab.batches) == 1 else answer

    gitlab.server.routes["/repo.git/info/lfs/objects/batch"] = batch
    gitlab.server.fault = lambda asked: Fault(status=403) if "/expired/" in asked.path else None
    download.main()
    assert reasons(project)[:3] == [""] * 3


def test_an_object_with_other_bytes_is_refused(gitlab, project, files):
    oid = hashlib.sha256(files[f"AudioWAV/{NAMES[0]}.wav"]).hexdigest()
    gitlab.server.files[f"/objects/{oid}"] = bytes(len(gitlab.server.files[f"/objects/{oid}"]))
    download.main()
    assert reasons(project)[0].startswith("transient: the bytes are not those")
    gitlab.server.files[f"/objects/{oid}"] = files[f"AudioWAV/{NAMES[0]}.wav"]
    download.main()
    assert reasons(project)[0] == ""


def test_an_object_that_the_store_lacks_is_gone_for_good_until_asked_again(gitlab, project, files):
    oid = hashlib.sha256(files[f"VideoFlash/{NAMES[1]}.flv"]).hexdigest()
    gitlab.errors[oid] = 404
    del gitlab.server.files[f"/raw/AudioWAV/{NAMES[2]}.wav"]
    download.main()
    assert reasons(project)[1:3] == ["permanent: the LFS server has no such file (code 404)",
                                     "permanent: gone (HTTP 404)"]
    gitlab.server.asked.clear()
    download.main()
    assert not gitlab.server.asked
    gitlab.errors.clear()
    download.main(["--retry", "permanent"])
    assert reasons(project)[1:3] == ["", "permanent: gone (HTTP 404)"]


def test_a_server_that_refuses_stops_the_run_and_the_next_one_goes_on(gitlab, project):
    gitlab.server.fault = lambda asked: Fault(status=403) if NAMES[1] in asked.path else None
    with pytest.raises(UserError, match="refuses access.*\n.*the same command goes on"):
        download.main()
    gitlab.server.fault = lambda asked: None
    download.main()
    assert reasons(project)[:3] == [""] * 3
    assert sum(asked.path.endswith(f"{NAMES[0]}.flv") for asked in gitlab.server.asked) == 1


def test_clips_without_content_are_final(gitlab, project, files, tmp_path):
    silence = files[f"AudioWAV/{NAMES[2]}.wav"]
    gitlab.server.files |= {f"/raw/VideoFlash/{NAMES[0]}.flv": b"", f"/raw/AudioWAV/{NAMES[1]}.wav": b"not sound",
                            f"/raw/AudioWAV/{NAMES[2]}.wav": silence[: silence.index(b"data") + 4] + bytes(4)}
    make_project(project, dataset="cremad", download={"min_coverage": 0}, cremad={
        "files": f"{gitlab.server.url}/raw/{{path}}", "lfs": f"{gitlab.server.url}/repo.git/info/lfs"})
    download.main()
    assert reasons(project)[:3] == ["content: empty file", "content: not media", "content: too short"]


def clone(tmp_path, files, *, pointers: bool, store: bool):
    root = tmp_path / "clone"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(pointer(data) if pointers else data)
        oid = hashlib.sha256(data).hexdigest()
        if store:
            real = root / ".git/lfs/objects" / oid[:2] / oid[2:4] / oid
            real.parent.mkdir(parents=True, exist_ok=True)
            real.write_bytes(data)
    return root


@pytest.mark.parametrize("pointers, store", [(False, False), (True, True)])
def test_a_clone_of_ones_own_does_as_well(project, tmp_path, files, pointers, store):
    root = clone(tmp_path, files, pointers=pointers, store=store)
    (root / f"AudioWAV/{NAMES[1]}.wav").unlink()
    make_project(project, dataset="cremad", cremad={"local": str(root)}, download={"min_coverage": 0.5})
    download.main()
    assert reasons(project) == ["", "permanent: not in the clone", "", "content: known bad clip"]
    assert contents(root).keys() >= {f"VideoFlash/{NAMES[0]}.flv"}


def test_a_clone_without_its_lfs_files_says_what_to_run(project, tmp_path, files):
    root = clone(tmp_path, files, pointers=True, store=False)
    make_project(project, dataset="cremad", cremad={"local": str(root)})
    with pytest.raises(UserError, match="run `git lfs pull` in"):
        download.main()


def test_joining_takes_the_sound_of_the_second_file(tmp_path):
    picture = write_media(tmp_path / "a.flv", picture="flv", sound="pcm_s16le", seconds=2, mark=0)
    sound = write_media(tmp_path / "a.wav", picture=None, sound="pcm_s16le", seconds=1, mark=5)
    cremad.join((None, picture, sound, tmp_path / "a.nut"))
    with av.open(str(tmp_path / "a.nut")) as joined:
        assert [stream.type for stream in joined.streams] == ["video", "audio"]
    assert decode(tmp_path / "a.nut", seconds=1, frame_size=32, sample_rate=16000).audio_seconds == 1
    with pytest.raises(Rejected, match="no audio stream"):
        cremad.join((None, picture, write_media(tmp_path / "b.flv", picture="flv", sound=None), tmp_path / "b.nut"))
    assert not (tmp_path / "b.nut").exists()
