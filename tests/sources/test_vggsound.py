"""The stage with data set vggsound, against a server that plays the hub."""

import gzip
import io
import tarfile

import pytest

from maavt.clips import read_manifest
from maavt.errors import UserError
from maavt.fetch import Archive
from maavt.fetch.budget import Budget
from maavt.fetch.http import Http
from maavt.sources import vggsound
from maavt.sources.archives import fetch_archives
from maavt.sources.store import Store
from maavt.stages import download
from tests.server import Fault, Hub
from tests.sources.common import contents, make_project, media, params

BELOW = "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"


def test_a_missing_list_is_named_as_it_is_published(tmp_path):
    with pytest.raises(UserError, match=r"no .*/vggsound\.csv; expected the list"):
        vggsound.clips(params(), tmp_path)


def tar_gz(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{BELOW}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


class VggSound(Hub):
    """A mirror of a small VGGSound in a few archives."""

    def __init__(self, server, clips: int = 8, archives: int = 2):
        super().__init__(server)
        self.names = [f"{'-' if n % 2 else ''}video{n:05d}_{n:06d}" for n in range(clips)]
        self.clips = {f"video/{name}.mp4": media(mark=n) for n, name in enumerate(self.names)}
        rows = (f'{name[:-7]},{int(name[-6:])},"bird chirping, tweeting",{"test" if n % 4 == 3 else "train"}\n'
                for n, name in enumerate(self.names))
        server.files["/vggsound.csv"] = "".join(rows).encode()
        for n in range(archives):
            self.put(f"vggsound_{n:02d}.tar.gz", tar_gz({path.removeprefix("video/"): data for path, data in
                                                         list(self.clips.items())[n::archives]}))


@pytest.fixture
def hub(server):
    return VggSound(server)


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project", dataset="vggsound", download={"min_coverage": 0.5}, vggsound={
        "hub": server.url, "annotations": f"{server.url}/vggsound.csv"})
    monkeypatch.chdir(folder)
    return folder


def raw(project) -> dict[str, bytes]:
    return {name: data for name, data in contents(project / "data/raw/vggsound").items() if name.endswith(".mp4")}


def reasons(project) -> dict[str, str]:
    clips, _ = read_manifest(project / "data/raw/vggsound")
    return {clip.path: clip.reason for clip in clips}


def test_archives_are_unpacked_to_the_raw_folder_and_removed(hub, project):
    download.main()
    assert raw(project) == hub.clips
    assert set(reasons(project).values()) == {""}
    assert not list((project / ".work").rglob("parts/*"))


def test_another_run_asks_for_nothing_but_the_list_of_archives(hub, project):
    download.main()
    hub.server.asked.clear()
    download.main()
    assert not hub.fetched() and len(hub.server.asked) <= 1
    assert raw(project) == hub.clips


def test_what_precedes_the_break_of_a_truncated_archive_is_kept(hub, project, capsys):
    hub.put("vggsound_01.tar.gz", hub.archives["vggsound_01.tar.gz"][: -len(hub.archives["vggsound_01.tar.gz"]) // 2])
    make_project(project, dataset="vggsound", download={"min_coverage": 0.5}, vggsound={
        "hub": hub.server.url, "annotations": f"{hub.server.url}/vggsound.csv"})
    download.main()
    got = raw(project)
    assert 5 <= len(got) < 8 and got == {path: hub.clips[path] for path in got}
    missing = {reason for path, reason in reasons(project).items() if path not in got}
    assert missing == {"permanent: not in the archives"}
    assert "vggsound_01.tar.gz is damaged" in capsys.readouterr().err


def test_an_archive_that_cannot_be_had_is_tried_again_by_the_next_run(hub, project):
    hub.server.fault = lambda asked: Fault(status=500) if "_00.tar.gz" in asked.path else None
    download.main()
    assert set(reasons(project).values()) == {"", "transient: not in the archives that could be had"}
    hub.server.fault = lambda asked: None
    hub.server.asked.clear()
    download.main()
    assert raw(project) == hub.clips
    assert len(hub.fetched()) == 1 and "_00.tar.gz" in hub.fetched()[0]


def test_a_hub_without_the_data_set_says_so(hub, project):
    del hub.server.routes["/api/datasets/Loie/VGGSound/tree/main"]
    with pytest.raises(UserError, match="does not list the data set Loie/VGGSound"):
        download.main()


def test_an_archive_that_changed_on_the_hub_is_fetched_again_for_what_is_missing(hub, project):
    whole = hub.archives["vggsound_01.tar.gz"]
    hub.put("vggsound_01.tar.gz", whole[: len(whole) // 2])
    download.main()
    hub.put("vggsound_01.tar.gz", whole)
    download.main()
    assert raw(project) == hub.clips


def test_clips_of_ones_own_folder_and_archives_are_taken(hub, project, tmp_path):
    mine = tmp_path / "mine"
    (mine / "deep").mkdir(parents=True)
    (mine / "vggsound.csv").write_bytes(hub.server.files["/vggsound.csv"])
    (mine / "x.tar.gz").write_bytes(hub.archives["vggsound_00.tar.gz"])
    for path, data in hub.clips.items():
        (mine / "deep" / path.removeprefix("video/")).write_bytes(data)
    make_project(project, dataset="vggsound", vggsound={"local": str(mine)})
    download.main()
    assert raw(project) == hub.clips and not hub.server.asked


def test_a_hubs_file_name_never_leads_out_of_the_folder(hub, tmp_path):
    paths, budget = [], Budget(tmp_path)

    def get(archive, path):
        paths.append(path.resolve())
        path.write_bytes(hub.archives["vggsound_00.tar.gz"])

    with Store(tmp_path / "deep" / "store", vggsound.clips(params(), write_list(tmp_path, hub)), budget) as store:
        fetch_archives([Archive(name="../../../evil.tar.gz", url="-")], store, Http(budget), get)
        assert len(store.present) == 4
        assert [path.parent for path in paths] == [store.parts]


def write_list(folder, hub):
    (folder / "vggsound.csv").write_bytes(hub.server.files["/vggsound.csv"])
    return folder
