import csv
import shutil
import subprocess
import sys

import pytest

from maavt.clips import read_manifest
from maavt.errors import UsageError, UserError
from maavt.sources import folder
from maavt.stages import download
from tests.sources.common import ROOT, make_project, params, write_media

DIGITS = ROOT.parent / "shared" / "avdigits"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder `mine` in a project."""
    project = make_project(tmp_path / "project", dataset="folder", folder={"root": "mine"},
                           download={"min_coverage": 0})
    monkeypatch.chdir(project)
    (project / "mine").mkdir()
    return project / "mine"


def own(**changes):
    return folder.clips(params(dataset="folder", folder={"root": "mine"} | changes))


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_folders_are_classes_and_splits_come_from_the_name(root):
    fill(root, *(f"{label}/{n}.mp4" for label in ("dog", "cat, angry") for n in range(100)), "notes.txt",
         "dog/thumbs.db", "dog/.hidden.mp4")
    clips = own()
    assert len(clips) == len({clip.key for clip in clips}) == 200
    assert folder.labels(params(dataset="folder", folder={"root": "mine"})).classes == ("cat, angry", "dog")
    shares = [sum(clip.split == split for clip in clips) for split in ("train", "val", "test")]
    assert shares[0] > shares[2] > shares[1] > 0
    shutil.rmtree(root / "dog")
    kept = {clip.key: clip.split for clip in clips}
    assert all(clip.split == kept[clip.key] for clip in own())


def test_folders_of_splits_above_the_classes_are_the_splits(root):
    fill(root, "train/dog/a.mp4", "val/dog/a.mp4", "test/dog/a.mp4", "test/cat/b.MOV")
    assert [(clip.split, clip.label) for clip in own()] == [
        ("test", "cat"), ("test", "dog"), ("train", "dog"), ("val", "dog")]
    assert len({clip.key for clip in own()}) == 4


def test_names_that_are_alike_get_keys_of_their_own(root):
    fill(root, "dog/a.mp4", "dog/a.avi", "dog/A.mp4", "dog/a b.mp4", "dog/a-b.mp4", "dog/ä.mp4", "-x/-y.mp4")
    clips = own()
    assert len({clip.key for clip in clips}) == len({clip.path for clip in clips}) == 7
    assert all(clip.key[0].isalnum() for clip in clips)


def table(root, text: str) -> None:
    (root / "clips.csv").write_text(text)


def test_a_table_gives_labels_splits_times_and_groups(root):
    table(root, "path,label,split,start,end,speaker\n"
                'a.mp4,"dog, big",val,1,3.5,x\nsub/b.mp4,cat,,,,x\nc.mp4,cat,,,,y\n')
    first, second, third = own(table="clips.csv", group="speaker")
    assert (first.label, first.split, first.start, first.end, first.source) == ("dog, big", "val", 1, 3.5, "x")
    assert second.source == "x" and second.end == 3600
    assert folder.labels(params(dataset="folder", folder={"root": "mine", "table": "clips.csv"})).background


def test_a_group_stays_in_one_split(root):
    table(root, "path,label,speaker\n" + "".join(f"{n}.mp4,dog,{n % 40}\n" for n in range(400)))
    clips = own(table="clips.csv", group="speaker")
    splits = {}
    for clip in clips:
        splits.setdefault(clip.source, set()).add(clip.split)
    assert len(splits) == 40 and all(len(found) == 1 for found in splits.values())
    assert {clip.split for clip in clips} == {"train", "val", "test"}


def test_all_mistakes_of_a_table_are_told_at_once(root):
    table(root, "path,label,split,start,end\na.mp4,,train,,\n,dog,,,\nb.mp4,dog,devel,,\nc.mp4,dog,,5,2\n"
                "d.mp4,dog,,x,\ne.mp4,dog,,,\ne.mp4,dog,,,\n")
    with pytest.raises(UserError) as caught:
        own(table="clips.csv")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("6 mistakes in ")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        f"clips.csv, line {n}" + (", start" if n == 6 else "") for n in (2, 3, 4, 5, 6, 8)]


@pytest.mark.parametrize("text, message", [
    ("file,label\n", "no column path"), ("", "no column path, label"), (None, "expected a CSV in folder.root")])
def test_a_table_that_is_none_is_an_error(root, text, message):
    if text is not None:
        table(root, text)
    with pytest.raises(UserError, match=message):
        own(table="clips.csv")


def test_an_empty_or_missing_folder_is_an_error(root):
    with pytest.raises(UserError, match="no clips in"):
        own()
    with pytest.raises(UserError, match="is no folder"):
        own(root="elsewhere")


def test_without_a_folder_the_setting_is_named_and_nothing_is_looked_at():
    with pytest.raises(UsageError, match="folder.root is empty; set it in params.yaml"):
        folder.clips(params())


def test_ones_own_clips_are_copied_and_those_of_no_use_are_listed_with_the_reason(root):
    write_media(root / "dog" / "good.mp4")
    write_media(root / "dog" / "silent.mp4", sound=None)
    write_media(root / "dog" / "dark.mp4", picture=None)
    (root / "dog" / "empty.mp4").touch()
    (root / "dog" / "text.mp4").write_text("not media")
    (root / "dog" / "gone.mp4").symlink_to("nowhere")
    before = (root / "dog" / "good.mp4").stat()
    download.main()
    raw = root.parent / "data" / "raw" / "folder"
    clips, _ = read_manifest(raw)
    assert {clip.source.removeprefix("dog/"): clip.reason for clip in clips} == {
        "good.mp4": "", "silent.mp4": "content: no audio stream", "dark.mp4": "content: no video stream",
        "empty.mp4": "content: empty file",
        "text.mp4": "content: not media"}
    assert [path.name for path in (raw / "clips").iterdir()] == [
        next(clip.path for clip in clips if clip.status == "ok").removeprefix("clips/")]
    assert (root / "dog" / "good.mp4").stat().st_nlink == before.st_nlink == 1  # a copy, for DVC locks its files


def test_a_table_that_names_files_which_are_not_there_lists_them_as_missing(root):
    write_media(root / "a.mp4")
    table(root, "path,label,split\na.mp4,dog,train\nb.mp4,dog,train\n")
    make_project(root.parent, dataset="folder", folder={"root": "mine", "table": "clips.csv"},
                 download={"min_coverage": 0.5})
    download.main()
    clips, _ = read_manifest(root.parent / "data" / "raw" / "folder")
    assert [clip.reason for clip in clips] == ["", "permanent: no such file"]


def test_too_few_clips_fail_the_stage_and_say_why(root, capsys):
    write_media(root / "a.mp4")
    table(root, "path,label,split\na.mp4,dog,train\nb.mp4,cat,train\nc.mp4,cat,test\n")
    make_project(root.parent, dataset="folder", folder={"root": "mine", "table": "clips.csv"},
                 download={"min_coverage": 0.5})
    with pytest.raises(UserError, match="1 of 3 clips are here; expected at least 50%"):
        download.main()
    assert not (root.parent / "data").exists()
    out = capsys.readouterr().out
    assert "2  permanent: no such file" in out and "0%  cat (0 of 2)" in out


@pytest.mark.skipif(not DIGITS.is_dir(), reason="needs the example")
def test_a_table_with_given_splits_goes_through_the_stages(tmp_path):
    small = tmp_path / "digits"
    rows = [row for row in csv.DictReader(open(DIGITS / "clips.csv")) if row["path"].endswith(("_000.mp4", "_001.mp4"))]
    for row in rows:
        (small / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DIGITS / row["path"], small / row["path"])
    with open(small / "clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split"])
        writer.writeheader()
        writer.writerows(rows)
    project = make_project(tmp_path / "project", dataset="folder", folder={"root": str(small), "table": "clips.csv"})
    for stage in ("download", "shard"):
        subprocess.run([sys.executable, "-m", "maavt.cli", stage], cwd=project, check=True, capture_output=True,
                       env={"PATH": "/usr/bin", "PYTHONPATH": str(ROOT)})
    clips, labels = read_manifest(project / "data" / "raw" / "folder")
    assert len(clips) == len(rows) and labels.classes == tuple("0123456789")
    assert (project / "data" / "shards" / "folder" / "index.json").exists()
