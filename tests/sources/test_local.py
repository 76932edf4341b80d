"""Copies of the field's data sets that lie on this disk, in the forms in which people have them."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from maavt.clips import read_manifest
from maavt.errors import UserError
from maavt.fetch.tree import walk
from maavt.media.decode import Rejected, decode
from maavt.sources import ave, cremad, vggsound
from maavt.stages import download
from tests.sources.common import make_project, media

IDS = ("-abc_5", "def-30", "ghi")
CREMAD = ("1001_DFA_ANG_XX", "1002_DFA_HAP_XX")


@pytest.fixture
def mine(tmp_path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


@pytest.fixture
def take(tmp_path, mine, monkeypatch):
    """A function that runs the stage on the folder `mine`, or a file in it, and returns the file of each clip or why
    there is none."""
    lists = {ave: [{"id": name, "label": "Bark", "split": "train", "start": 0, "end": 10} for name in IDS],
             cremad: [{"clip": name, "label": name[9:12], "split": "train"} for name in CREMAD]}
    for source, rows in lists.items():
        monkeypatch.setattr(source, "read_packaged", lambda name, rows=rows: rows)
    for source in (ave, vggsound):
        monkeypatch.setattr(source, "SHORTEST", 0.5)
    for module in ("store", "cremad"):
        monkeypatch.setattr(f"maavt.sources.{module}.fan_out", here)

    def run(dataset: str, below: str = "", coverage: float = 0) -> dict[str, bytes | str]:
        if dataset == "vggsound":
            rows = (f"{name},{30 + number},air horn,train\n" for number, name in enumerate(IDS))
            (mine / "vggsound.csv").write_text("".join(rows))
        project = make_project(tmp_path / "project", dataset=dataset, download={"min_coverage": coverage},
                               **{dataset: {"local": str(mine / below)}})
        monkeypatch.chdir(project)
        download.main()
        raw = project / "data" / "raw" / dataset
        return {clip.path: clip.reason or (raw / clip.path).read_bytes() for clip in read_manifest(raw)[0]}
    return run


def here(work, items, **_):
    """In the place of worker processes, which take seconds to start."""
    for item in items:
        try:
            yield item, work(item)
        except Rejected as rejected:
            yield item, rejected


def clip(mark: int, suffix: str = ".mp4") -> bytes:
    codecs = {"picture": "libvpx", "sound": "libopus"} if suffix == ".webm" else {}
    return media(suffix, seconds=1, mark=mark, **codecs)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", [
    "{id}_{s}_{e}.mp4", "{id}_{s}000_{e}000.mp4", "{id}_{s:06d}_{e:06d}.mp4", "{id}_{s}.mp4", "{id}_{s}.0_{e}.0.MP4",
    "{id}-{s}-{e}.webm", "air horn/{id}_{s:06d}.mkv", "deep/er/{id}_{s:06d}.avi", "{ID}_{s:06d}.mp4",
    "{id}_{s}000.mov"])
@pytest.mark.parametrize("dataset", ["vggsound", "ave"])
def test_clips_are_found_whatever_form_their_names_have(mine, take, capsys, form, dataset):
    files = {}
    for number, name in enumerate(IDS):
        file = form.format(id=name, ID=name.upper(), s=30 + number, e=40 + number)
        files[name] = put(mine / file, clip(number, Path(file).suffix.lower())).read_bytes()
    put(mine / "holiday.mp4", b"other")
    put(mine / "._holiday.mp4", b"hidden")
    found = take(dataset)
    assert list(found.values()) == list(files.values())
    expected = "AVE/-abc_5.mp4" if dataset == "ave" else "video/-abc_5_000030.mp4"
    assert (f"{dataset}.local: 1 of 4 videos match no clip of the list, such as holiday.mp4; expected names such as "
            f"{expected}") in capsys.readouterr().err


def test_nothing_is_said_of_other_files_and_a_folder_without_videos_is_told(mine, take, capsys):
    put(mine / "AVE" / "ghi.mp4", clip(1))
    put(mine / "ReadMe.txt", b"text")
    take("ave")
    assert "warning" not in capsys.readouterr().err
    (mine / "AVE" / "ghi.mp4").unlink()
    take("ave")
    assert "ave.local: there is no video in" in capsys.readouterr().err


@pytest.mark.parametrize("start, end", [("30", "330"), ("31", "41"), ("3", "13"), ("0", "30")])
def test_another_part_of_a_video_is_not_taken_for_the_clip(mine, take, capsys, start, end):
    put(mine / f"ghi_{start}_{end}.mp4", clip(0))
    assert take("vggsound")["video/ghi_000032.mp4"] == "permanent: not in the archives"
    assert "1 of 1 videos match no clip" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_with_backslashes_and_other_names_are_read(mine, take, capsys, kind):
    members = {f"AVE_Dataset\\AVE\\{IDS[0]}.mp4": clip(0), f"AVE_Dataset\\AVE\\{IDS[1]}_3_13.MKV": clip(1),
               "AVE_Dataset\\AVE\\other.mp4": b"x", "AVE_Dataset\\Annotations.txt": b"x"}
    pack(mine / f"AVE.{kind.upper()}", members)
    found = take("ave")
    assert list(found.values()) == [clip(0), clip(1), "permanent: not in the archive"]
    assert "1 of 3 videos match no clip" in capsys.readouterr().err


def pack(path: Path, members: dict[str, bytes]) -> None:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, data in members.items():
                packed.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_of_two_files_of_one_clip_that_in_the_documented_place_is_taken_else_both_are_named(mine, take, form):
    def fill(members):
        for name, data in members.items():
            if form == "folder":
                put(mine / "all" / name, data)
        if form != "folder":
            pack(mine / f"all.{form}", members)

    for first in ("thumbs", "AAA"):
        fill({f"{first}/ghi.mp4": clip(1), "AVE/ghi.mp4": clip(0), "zzz/ghi.mp4": clip(2), "zzz/ghi.mkv": b"worse"})
        assert take("ave")["AVE/ghi.mp4"] == clip(0)
    below = "all" if form == "folder" else f"all.{form}"
    if form == "folder":
        (mine / "all/AVE/ghi.mp4").unlink()
    fill({"AAA/ghi.mp4": clip(1), "zzz/ghi.mp4": clip(2)})
    for _ in range(2):
        with pytest.raises(UserError, match="(?s)ave.local: .*AAA/ghi.mp4 and .*(zzz|thumbs)/ghi.mp4"):
            take("ave", below)
        if form == "folder":
            break
    fill({"AAA/ghi.mp4": clip(1), "zzz/ghi.mp4": clip(1), "thumbs/ghi.mp4": clip(1)})  # the same twice is no question
    assert take("ave", below)["AVE/ghi.mp4"] == clip(1)


def test_a_file_that_was_mended_or_changed_is_looked_at_again(mine, take):
    for name in IDS[:2]:
        put(mine / f"AVE/{name}.mp4", clip(0))
    put(mine / "AVE/ghi.mp4", b"not media")
    with pytest.raises(UserError, match="2 of 3 clips are here"):
        take("ave", coverage=1)
    put(mine / "AVE/ghi.mp4", clip(1))
    put(mine / f"AVE/{IDS[0]}.mp4", clip(2))
    put(mine / f"AVE/{IDS[1]}.mp4", b"broken now")
    with pytest.raises(UserError, match="2 of 3 clips are here"):
        take("ave", coverage=1)
    put(mine / f"AVE/{IDS[1]}.mp4", clip(3))
    assert list(take("ave", coverage=1).values()) == [clip(2), clip(3), clip(1)]


def test_a_zip_that_was_mended_is_looked_at_again(mine, take):
    members = {f"AVE/{name}.mp4": clip(0) for name in IDS}
    pack(mine / "AVE.zip", members | {"AVE/ghi.mp4": b"not media"})
    with pytest.raises(UserError, match="2 of 3 clips are here"):
        take("ave", "AVE.zip", coverage=1)
    pack(mine / "AVE.zip", members)
    assert len(set(take("ave", "AVE.zip", coverage=1).values())) == 1


def test_links_to_files_and_folders_are_followed_and_loops_end(mine, take, tmp_path):
    put(tmp_path / "elsewhere" / f"{IDS[0]}.mp4", clip(0))
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    put(tmp_path / "one.mp4", clip(1))
    (mine / "AVE").symlink_to(tmp_path / "elsewhere")
    (mine / "ghi.mp4").symlink_to(tmp_path / "one.mp4")
    (mine / "up").symlink_to(mine.parent)
    (mine / "gone.mp4").symlink_to("nowhere")
    found = take("ave")
    assert (found[f"AVE/{IDS[0]}.mp4"], found["AVE/ghi.mp4"]) == (clip(0), clip(1))
    entries = {entry.name: entry.reason for entry in walk(mine)}
    assert {name for name, reason in entries.items() if not reason} == {f"AVE/{IDS[0]}.mp4", "ghi.mp4"}
    assert entries["gone.mp4"] == "a broken link" and "looked at anyway" in entries["up"] + entries["AVE/round"]


def sound(mark: int) -> bytes:
    return media(".wav", picture=None, sound="pcm_s16le", seconds=1, mark=mark)


@pytest.mark.parametrize("picture, voice", [
    ("VideoFlash/{}.flv", "AudioWAV/{}.wav"), ("CREMA-D/VideoFlash/{}.flv", "CREMA-D/AudioWAV/{}.wav"),
    ("videoflash/{}.FLV", "audiowav/{}.WAV"), ("VideoMP4/{}.mp4", "AudioWAV/{}.wav"), ("all/{}.mp4", ""),
    ("{}.mkv", "deep/er/{}.wav")])
def test_cremad_is_found_one_folder_deeper_as_mp4_and_with_its_own_sound(mine, take, capsys, picture, voice):
    suffix = Path(picture).suffix.lower()
    for number, name in enumerate(CREMAD):
        name = name.lower() if "FLV" in picture else name
        put(mine / picture.format(name), media(suffix, seconds=1, mark=number, **(
            {"picture": "flv", "sound": None} if suffix == ".flv" else {})))
        if voice:
            put(mine / voice.format(name), sound(number))
    put(mine / "9999_XXX_ANG_XX.mp4", b"other")
    found = take("cremad")
    assert all(isinstance(content, bytes) for content in found.values()), found
    for name in CREMAD:
        path = mine.parent / f"project/data/raw/cremad/clips/{name}.nut"
        read = decode(path, seconds=1, frame_size=32, sample_rate=16000)
        assert read.video_seconds == pytest.approx(1, abs=0.3) and read.audio_seconds == pytest.approx(1, abs=0.1)
    assert ("1 of 3 videos match no clip of the list, such as 9999_XXX_ANG_XX.mp4; expected names such as "
            f"VideoFlash/{CREMAD[0]}.flv") in capsys.readouterr().err


def test_cremad_prefers_the_repositorys_places_and_names_two_others(mine, take):
    for number, name in enumerate(CREMAD):
        put(mine / f"VideoMP4/{name}.mp4", clip(5))
        put(mine / f"Copies/{name}.mp4", clip(6))
        put(mine / f"VideoFlash/{name}.flv", media(".flv", picture="flv", sound=None, seconds=1, mark=number))
        put(mine / f"AudioMP3/{name}.mp3", b"not sound")
        put(mine / f"AudioWAV/{name}.wav", sound(number))
    assert all(isinstance(content, bytes) for content in take("cremad").values())
    for name in CREMAD:
        os.remove(mine / f"VideoFlash/{name}.flv")
    with pytest.raises(UserError, match=f"Copies/{CREMAD[0]}.mp4 and VideoMP4/{CREMAD[0]}.mp4 differ"):
        take("cremad")


def test_a_mended_clone_is_looked_at_again(mine, take):
    for number, name in enumerate(CREMAD):
        put(mine / f"VideoFlash/{name}.flv", media(".flv", picture="flv", sound=None, seconds=1, mark=number))
        put(mine / f"AudioWAV/{name}.wav", sound(number) if number else b"not sound")
    with pytest.raises(UserError, match="1 of 2 clips are here"):
        take("cremad", coverage=1)
    put(mine / f"AudioWAV/{CREMAD[0]}.wav", sound(0))
    assert all(isinstance(content, bytes) for content in take("cremad", coverage=1).values())
