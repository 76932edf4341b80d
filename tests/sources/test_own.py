"""A folder as people have them: everything in it is a clip, or in a list with the reason."""

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maavt.clips import Clip, Labels, read_manifest
from maavt.errors import UserError
from maavt.fetch.tree import fingerprint, shown
from maavt.shards.loader import Loader
from maavt.sources import folder
from maavt.sources.lists import choose_split
from maavt.sources.look import look
from maavt.sources.splits import share_out, tell
from maavt.stages import backbone, download, evaluate, listing, shard, train
from tests.conftest import make_project
from tests.sources.common import media, params, write_media


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that makes a tiny project for the clips in `mine` beside it, and goes there."""
    def make(**changes):
        place = make_project(tmp_path / "project", dataset="folder", models=["maavt"], **(
            {"folder": {"root": str(tmp_path / "mine")} | changes.pop("folder", {})} | changes))
        monkeypatch.chdir(place)
        return place
    (tmp_path / "mine").mkdir()
    return make


def put(path: Path | bytes, content: bytes) -> None:
    os.makedirs(os.path.dirname(os.fsencode(path)), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def fill(root: Path) -> None:
    """Some 300 files in four classes, among which is everything that people have beside their clips."""
    whole = [media(".mp4", seconds=1.2, mark=mark) for mark in range(4)]
    for label, count in (("dog", 120), ("cat", 90), ("background", 60), ("rare", 2)):
        for number in range(count):
            put(root / label / f"{number:03d}.mp4", whole[number % 4])
    for suffix, inside in (("m2ts", ".ts"), ("MOV", ".mov"), ("mk3d", ".mkv"), ("clip", ".mp4"), ("", ".mp4")):
        put(root / "dog" / f"odd.{suffix}".rstrip("."), media(inside, seconds=1.2))
    put(os.fsencode(root / "cat") + b"/caf\xe9.mp4", whole[0])
    put(root / "cat" / "deep" / "er" / "a.mp4", whole[1])
    put(root / "cat" / "silent.mp4", media(".mp4", seconds=1.2, sound=None))
    put(root / "cat" / "blink.mp4", media(".mp4", seconds=0.3))
    put(root / "cat" / "broken.mp4", b"\0" * 100)
    put(root / "cat" / "empty.mp4", b"")
    put(root / "cat" / "notes.txt", "größer".encode())
    put(root / "cat" / "labels.csv", b"a,b\n")
    put(root / "cat" / "thumb.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 50)
    put(root / "cat" / "song.mp3", media(".mp3", seconds=1.2, picture=None, sound="mp3"))
    put(root / "cat" / "noise.bin", bytes(range(128, 256)))
    put(root / "stray.mp4", whole[0])
    for hidden in (".git/objects/a.mp4", "__MACOSX/dog/._000.mp4", "@eaDir/000.mp4", "lost+found/#1", "dog/.DS_Store",
                   "dog/Thumbs.db"):
        put(root / hidden, whole[0])
    (root / "dog" / "gone.mp4").symlink_to("nowhere.mp4")
    (root / "dog" / "twice.mp4").symlink_to("000.mp4")
    (root / "dog" / "again").symlink_to(root / "cat")
    (root / "dog" / "up").symlink_to(root.parent)
    elsewhere = root.parent / "elsewhere"
    put(elsewhere / "far.mp4", whole[2])
    (elsewhere / "round").symlink_to(elsewhere)
    (root / "dog" / "linked").symlink_to(elsewhere)
    os.mkfifo(root / "dog" / "pipe.mp4")


def tree(root: Path) -> set[str]:
    """Every name that is no folder below root, in a readable form; the linked folder from elsewhere is looked into."""
    found = set()
    for place, folders, files in os.walk(root):
        for name in files + [name for name in folders if os.path.islink(os.path.join(place, name))]:
            found.add(shown(os.path.relpath(os.path.join(place, name), root)))
    return found - {"dog/linked"} | {"dog/linked/far.mp4", "dog/linked/round"}


def test_every_file_of_a_folder_of_300_is_a_clip_or_in_the_list_and_the_counts_add_up(tmp_path, project, capsys):
    root = tmp_path / "mine"
    fill(root)
    place = project(download={"min_coverage": 0.9}, shard={"frame_size": 48, "min_coverage": 0.9},
                    train={"epochs": 1})
    download.main()
    raw = place / "data/raw/folder"
    clips, labels = read_manifest(raw)
    aside = {row["path"]: row["reason"] for row in rows(raw / "not_taken.csv")}
    listed = [clip.source for clip in clips] + list(aside)
    assert len(listed) == len(set(listed)) and set(listed) == tree(root)
    assert labels.classes == ("background", "cat", "dog", "rare") and not labels.background
    assert {clip.source: clip.reason for clip in clips if clip.status != "ok"} == {
        "cat/silent.mp4": "content: no audio stream", "cat/blink.mp4": "content: too short (under 0.5 s)",
        "cat/broken.mp4": "content: not media", "cat/empty.mp4": "content: empty file"}
    assert {"dog/odd.m2ts", "dog/odd.MOV", "dog/odd.mk3d", "dog/odd.clip", "dog/odd", "cat/caf\\xe9.mp4",
            "cat/deep/er/a.mp4", "dog/twice.mp4", "dog/linked/far.mp4"} <= {
                clip.source for clip in clips if clip.status == "ok"}
    around = "a link to a folder that is looked at anyway, or around it"
    assert aside == {
        "cat/notes.txt": "text", "cat/labels.csv": "text", "cat/thumb.jpg": "a picture", "cat/noise.bin": "not media",
        "cat/song.mp3": "no video stream", "stray.mp4": "in no folder of a class", "dog/gone.mp4": "a broken link",
        "dog/again": around, "dog/up": around, "dog/linked/round": around, "dog/pipe.mp4": "no regular file",
        ".git/objects/a.mp4": "hidden", "dog/.DS_Store": "hidden", "__MACOSX/dog/._000.mp4": "the system's",
        "@eaDir/000.mp4": "the system's", "lost+found/#1": "the system's", "dog/Thumbs.db": "the system's"}
    out = capsys.readouterr().out
    assert "17 files are not taken: 4 the system's, 3 a link" in out
    assert "warning: no clip in val of rare" in out and "fewer than 3 clips of rare" in out
    assert "60 of the" not in out and "recall_macro_clips" in out

    shard.main([])
    index = json.loads((place / "data/shards/folder/index.json").read_text())
    assert index["spectrogram"]["seconds"] == 1 and "pairs of 1 s" in capsys.readouterr().out
    used = sum(split["samples"] for split in index["splits"].values())
    assert used + len(rows(place / "data/shards/folder/rejects.csv")) == len(clips)
    backbone.main([])
    train.main([])
    evaluate.main([])
    told = rows(place / "data/eval/maavt/predictions.csv")
    truth = {clip.key: clip.label for clip in clips}
    assert Counter(row["label"] for row in told)["background"] == 2 * 12
    assert all(row["label"] == truth[row["key"]] for row in told)


def test_usual_names_of_splits_are_understood_and_what_is_missing_is_held_out(tmp_path, project, capsys):
    root = tmp_path / "mine"
    for split, count in (("Training", 10), ("TEST", 2)):
        for label in ("a", "b"):
            for number in range(count):
                put(root / split / label / f"{number}.mp4", media(".mp4", seconds=1.2, mark=number % 2))
    put(root / "Training" / "loose.mp4", media(".mp4", seconds=1.2))
    project(folder={"val_share": 0.2})
    download.main()
    clips, labels = read_manifest(Path("data/raw/folder"))
    assert labels.classes == ("a", "b")
    assert Counter((clip.split, clip.label) for clip in clips) == {
        (split, label): count for split, count in (("train", 8), ("val", 2), ("test", 2)) for label in ("a", "b")}
    assert "no clip is given as val: 4 of 20 in train are held out for it" in capsys.readouterr().out
    assert rows(Path("data/raw/folder/not_taken.csv")) == [
        {"path": "Training/loose.mp4", "reason": "in no folder of a class"}]
    put(root / "annotations" / "a.json", b"{}")
    with pytest.raises(UserError, match=r"splits \(TEST, Training\) beside others \(annotations\); expected"):
        download.main()
    shutil.rmtree(root / "annotations")
    shutil.rmtree(root / "Training")
    with pytest.raises(UserError, match="none to train on"):
        download.main()


@pytest.mark.parametrize("count, expected", [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)),
                                             (10, (7, 1, 2)), (100, (70, 10, 20))])
def test_every_class_has_its_share_in_every_split(count, expected):
    groups = {f"{label}/{number}": Counter([label]) for label in "abcdef" for number in range(count)}
    chosen = share_out(groups, val=0.1, test=0.2)
    for label in "abcdef":
        found = Counter(split for group, split in chosen.items() if group.startswith(label))
        assert tuple(found[split] for split in ("train", "val", "test")) == expected


def test_a_clip_that_is_added_moves_one_other_at_most_and_none_of_another_class():
    groups = {f"{label}/{number}": Counter([label]) for label in "ab" for number in range(50)}
    before = share_out(groups, val=0.1, test=0.2)
    moved = []
    for number in range(50, 90):
        after = share_out(groups | {f"a/{number}": Counter("a")}, val=0.1, test=0.2)
        moved.append([group for group in before if before[group] != after[group]])
        assert not [group for group in moved[-1] if group.startswith("b")]
    assert max(map(len, moved)) <= 2 and sum(map(len, moved)) < 30
    assert sum(before[group] == choose_split(group, val=0.1, test=0.2) for group in groups) > 80


@given(sizes=st.lists(st.integers(1, 50), min_size=3, max_size=9), seed=st.integers(0, 999))
def test_uneven_groups_leave_no_split_without_a_class_that_has_three(sizes, seed):
    groups = {f"{seed} {number}": Counter(a=size) for number, size in enumerate(sizes)}
    assert set(share_out(groups, val=0.1, test=0.2).values()) == {"train", "val", "test"}


def test_speakers_who_say_every_class_stay_whole_and_every_class_is_in_every_split():
    groups = {f"speaker {number}": Counter({digit: 4 for digit in "0123456789"}) for number in range(12)}
    assert Counter(share_out(groups, val=0.1, test=0.2).values()) == {"train": 9, "test": 2, "val": 1}


def test_a_table_with_four_groups_leaves_no_split_empty(tmp_path, project):
    root = tmp_path / "mine"
    text = "path,label,who\n"
    for number in range(16):
        put(root / f"{number}.mp4", media(".mp4", seconds=1.2))
        text += f"{number}.mp4,{'ab'[number % 2]},{number // 4}\n"
    put(root / "clips.csv", text.encode())
    project(folder={"table": "clips.csv", "group": "who"})
    download.main()
    clips, _ = read_manifest(Path("data/raw/folder"))
    assert {clip.split for clip in clips} == {"train", "val", "test"}
    assert all(len({clip.split for clip in clips if clip.source == str(who)}) == 1 for who in range(4))


def table(root: Path, text: str, **settings):
    put(root / "clips.csv", text.encode())
    return folder.survey(params(dataset="folder", folder={"root": str(root), "table": "clips.csv"} | settings))


@pytest.mark.parametrize("text, message", [
    ("path,label,startt\na.mp4,a,1\n", "'startt' looks like 'start'"),
    ("path,label,Split,SPLIT\na.mp4,a,train,\n", "'Split' looks like 'split'"),
    ("path,lable\na.mp4,a\n", "no column label.*'lable' looks like 'label'"),
    ("path,label\n", "has a header and no row"),
    ("path,label,from,to\na.mp4,a,1,2\n", "expected folder.span: table with it, not head"),
    ("path,label,start,end\na.mp4,a,0,2\na.mp4,b,1,3\n", "line 3: 'b' from 1 s on, when 'a' of line 2 goes on"),
    ("path,label,start,end,split\na.mp4,a,0,2,val\na.mp4,b,3,4,test\n", "has the split 'test', but 'val' in line 2"),
    ("path,label,start,end\nlong.mp4,a,13,14\n", "line 2: the event goes on to 14 s, but of each clip the first 10 s"),
    ("path,label,start,end\nlong.mp4,a,10,10.4\n", "the event goes on to 10.4 s, but of each clip the first 10 s"),
    ("path,label,start,end\na.mp4,background,0,2\n", "could not be told apart; rename the class"),
    ("path,label,start,end\na.mp4,a;b,0,2\n", "clips of several labels .;. and events with start and end"),
    ("path,label\na.mp4, ; \n", "line 2: the labels '; '; expected a name"),
    ("path,label\na.mp4,a, b\n", "line 2: more fields than the header has columns, from 'b' on; expected quotes"),
    ("path,label,label\na.mp4,a,b\n", "the column 'label' is there twice"),
    ('path,label\na.mp4,"a\nlong.mp4,b\n', "is no CSV .*export it as one, in UTF-8"),
    ('path,label\na.mp4,"a\nlong.mp4,b"\n', "goes on over lines; expected a closing quote"),
    ("path,label,start,end\na.mp4,a,2,2\n", "line 2: the event goes from 2 to 2 s; expected a later end"),
    ("path,label\na.mp4,a\n./a.mp4,a\n", "line 3: 'a.mp4' is in line 2 already"),
    ("path,label\na.mp4,a\nno/../{root}/a.mp4,a\n", "line 3: 'a.mp4' is in line 2 already"),
    ("path,label,start,end\na.mp4,a,0,1\na.mp4,a,0,1\n", "line 3: the same as line 2; expected each event once"),
    ("path,label\na\0.mp4,a\n", "line 2: the path 'a.x00.mp4' holds a zero byte"),
    ("path;label;start\na.mp4;a;0,5\n", "'0,5' is no time in seconds; .* with a point, not a comma"),
])
def test_what_a_table_gets_wrong_is_named(tmp_path, text, message):
    write_media(tmp_path / "a.mp4")
    write_media(tmp_path / "long.mp4", seconds=20)
    with pytest.raises(UserError, match=message):
        table(tmp_path, text.replace("no/../{root}", str(tmp_path)))


def test_a_table_is_read_as_people_write_it(tmp_path):
    for name in ("1.mp4", "2.mp4", "3.mp4"):
        write_media(tmp_path / name, seconds=1)
    for separator in ",;\t":
        clips = table(tmp_path, "path,label,split\n1.mp4,caf\u00e9,Train\n./2.mp4,cafe\u0301,valid\n3.mp4,caf\u00e9,\n"
                      .replace(",", separator)).clips
        assert [(clip.label, clip.split) for clip in clips[:2]] == [("caf\u00e9", "train"), ("caf\u00e9", "val")]
        assert [clip.key.split("-")[0] for clip in clips] == ["1", "2", "3"]


def test_what_a_recording_lacks_is_said_of_its_row(tmp_path):
    write_media(tmp_path / "a.mp4", seconds=2)
    write_media(tmp_path / "b.mp4", seconds=2)
    late, cut = table(tmp_path, "path,label,start,end\na.mp4,a,2.2,\nb.mp4,a,3,9\n").clips
    assert late.reason.endswith("line 2: start 2.2 s, but the recording ends at 2 s")
    assert cut.reason.endswith("line 3: end 9 s, but the recording ends at 2 s")
    late, = table(tmp_path, "path,label,from,to\na.mp4,a,1.8,\n", span="table").clips
    assert late.reason.endswith("line 2: from 1.8 s, but the recording ends at 2 s")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert [look(str(tmp_path / name)).reason for name in ("pipe.mp4", "", "none.mp4")] == [
        "no regular file", "no regular file", "no such file"]


def test_a_clip_that_two_rows_cut_out_is_named_with_both(tmp_path):
    write_media(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="cut out twice.*\n  clips.csv, line 2 and clips.csv, line 3: 'a.mp4'"):
        table(tmp_path, "path,label,from,to\na.mp4,dog,0,\na.mp4,cat,0,6\n", span="table")
    beyond = table(tmp_path, "path,label,from,to\na.mp4,dog,7,8\na.mp4,cat,7,9\n", span="table")
    assert [clip.status for clip in beyond.clips] == ["failed", "failed"]  # each costs itself alone


def test_a_table_elsewhere_is_refused_since_nothing_would_notice_its_changes(tmp_path):
    write_media(tmp_path / "clips" / "a.mp4")
    (tmp_path / "clips.csv").write_text("path,label\na.mp4,a\n")
    with pytest.raises(UserError, match="clips.csv is not in folder.root"):
        folder.survey(params(dataset="folder", folder={"root": str(tmp_path / "clips"), "table": "../clips.csv"}))


def test_events_of_a_recording_are_rows_and_their_seconds_are_labelled_each(tmp_path):
    write_media(tmp_path / "a.mp4")
    write_media(tmp_path / "b.mp4")
    found = table(tmp_path, "path,label,start,end,note\na.mp4,dog,0,2,x\na.mp4,cat,4,,x\nb.mp4,cat,5,12,\n"
                  "c.mp4,cat,,,\nd.mp4,cat,,,\n")
    first, second, *missing = found.clips
    assert first.second_labels(6) == ["dog", "dog", None, None, "cat", "cat"]
    assert second.reason == "content: clips.csv, line 4: end 12 s, but the recording ends at 6 s"
    assert {clip.reason for clip in missing} == {"permanent: no such file"}
    assert found.notes == ["columns of clips.csv that nothing reads: note",
                           f"warning: 2 files of clips.csv are not in {tmp_path}: c.mp4, d.mp4",
                           "1 files are not taken: 1 the table"]


def test_a_clip_has_several_labels_where_a_table_says_so_and_a_folder_has_one_name(tmp_path):
    for name in ("1.mp4", "2.mp4", "3.mp4"):
        write_media(tmp_path / "x; y" / name, seconds=1)
    settings = {"root": str(tmp_path), "table": "clips.csv"}
    found = table(tmp_path, "path,label\nx; y/1.mp4,dog\nx; y/2.mp4,dog; cat\nx; y/3.mp4,cow;dog;\n").clips
    assert [clip.label for clip in found] == ["dog", "cat;dog", "cow;dog"]
    assert folder.labels(params(dataset="folder", folder=settings)) == Labels(
        classes=("cat", "cow", "dog"), background=False, multilabel=True)
    assert folder.labels(params(dataset="folder", folder={"root": str(tmp_path)})) == Labels(
        classes=("x; y",), background=False)


def test_each_of_several_labels_is_counted_and_shared_out():
    clips = [Clip(key=str(number), path="", label=label, split=split, start=0, end=1, source="")
             for number, (label, split) in enumerate([("a;b", "train"), ("b", "val"), ("a;b", "test")])]
    lines = list(tell(clips, Labels(classes=("a", "b"), background=False, multilabel=True)))
    assert [line.split() for line in lines[1:3]] == [["a", "1", "0", "1"], ["b", "1", "1", "1"]]
    assert "no clip in val of a:" in lines[3]


def test_recordings_are_cut_into_windows_that_stay_in_one_split(tmp_path, project):
    root = tmp_path / "mine"
    for label in "ab":
        for number in range(4):
            write_media(root / label / f"{number}.mp4", seconds=27 if number else 4, mark=number)
    place = project(folder={"span": "windows", "overlap": 2}, shard={"frame_size": 48, "min_coverage": 1.0})
    download.main()
    clips, _ = read_manifest(place / "data/raw/folder")
    found = {}
    for clip in clips:
        found.setdefault(clip.source, []).append((clip.begin, clip.seconds))
        assert clip.split == next(other.split for other in clips if other.source == clip.source)
    assert found["a/0.mp4"] == [(None, 4)]
    assert [begin for begin, _ in found["a/1.mp4"]] == [0, 8, 16, pytest.approx(17, abs=0.1)]
    shard.main([])
    index = json.loads((place / "data/shards/folder/index.json").read_text())
    assert sum(split["samples"] for split in index["splits"].values()) == len(clips)


def test_spans_of_a_table_are_cut_out_with_their_events(tmp_path):
    write_media(tmp_path / "a.mp4", seconds=40)
    found = table(tmp_path, "path,label,split,from,to,start,end\na.mp4,dog,train,20,26,21,23\n"
                  "a.mp4,cat,train,20,26,24,25\na.mp4,cat,val,30,,,\na.mp4,cat,test,38,45,,\n", span="table")
    first, second, third = found.clips
    assert (first.begin, first.seconds, first.second_labels(6)) == (20, 6, [None, "dog", "dog", None, "cat", None])
    assert (second.begin, second.seconds, second.second_labels(2)) == (30, 10, ["cat"] * 2)
    assert third.reason == "content: clips.csv, line 5: to 45 s, but the recording ends at 40 s"
    assert first.path == second.path and len({clip.key for clip in found.clips}) == 3
    with pytest.raises(UserError, match="line 2: the event starts at 3 s, outside the clip from 20 s to 26 s"):
        table(tmp_path, "path,label,from,to,start,end\na.mp4,dog,20,26,3,5\n", span="table")


@pytest.mark.parametrize("lengths, seconds", [([1.2] * 50 + [9] * 10, 1), ([2.0] * 9, 2), ([1.98, 2.5], 2), ([3.2], 3),
                                              ([10] * 3, 2), ([], 2), ([0.5], 1)])
def test_pairs_are_as_long_as_suits_the_clips(lengths, seconds):
    recipe = params().shard.spectrogram["folder"]
    assert recipe.seconds == "auto" and recipe.suited(lengths).seconds == seconds


def test_a_changed_folder_is_another_input_and_an_unchanged_one_is_the_same(tmp_path, project):
    root = tmp_path / "mine"
    put(root / "a" / "1.mp4", b"1")
    put(os.fsencode(root) + b"/a/\xff.mp4", b"2")
    (root / "a" / "gone").symlink_to("nowhere")
    put(tmp_path / "beside.mp4", b"1")
    put(root / "clips.csv", b"path,label\n../beside.mp4,a\n")
    project(folder={"table": "clips.csv"})
    states = []

    def look() -> dict:
        listing.main([])
        return json.loads(Path("data/listing/folder.json").read_text())

    states.append(look())
    put(root / ".git" / "HEAD", b"hidden")
    assert look() == states[0] and states[0]["files"] == 5
    put(root / "a" / "1.mp4", b"22")
    states.append(look())
    os.utime(root / "a" / "1.mp4", (1, 1))
    states.append(look())
    (root / "a" / "1.mp4").rename(root / "a" / "2.mp4")
    states.append(look())
    (root / "a" / "2.mp4").unlink()
    states.append(look())
    put(tmp_path / "beside.mp4", b"22")
    states.append(look())
    assert len({state["sha256"] for state in states}) == 6
    assert fingerprint(tmp_path / "nowhere")["files"] == 0
    alone = fingerprint(tmp_path / "beside.mp4")
    (tmp_path / "beside.mp4").rename(root / "beside.mp4")
    assert fingerprint(root / "beside.mp4") == alone and alone["files"] == 1
    make = Path("params.yaml").read_text()
    Path("params.yaml").write_text(make.replace("dataset: folder", "dataset: synth"))
    listing.main([])
    assert json.loads(Path("data/listing/synth.json").read_text()) == {}


def test_uneven_classes_are_told_with_what_to_do():
    clips = [Clip(key=f"{label}{number}", path="", label=label, split=split, start=0, end=1, source="")
             for label, count in (("many", 50), ("few", 4)) for number in range(count)
             for split in ("train", "val", "test")]
    lines = list(tell(clips, Labels(classes=("few", "many"), background=False)))
    assert lines[1].split() == ["few", "4", "4", "4"] and len(lines) == 4
    alike = [Clip(key=label, path="", label=label, split="train", start=0, end=1, source="")
             for label in ("Dog", "dog")]
    warned = [line for line in tell(alike, Labels(classes=("Dog", "dog"), background=False)) if "warning" in line]
    assert any("'Dog' and 'dog' differ in case or spaces alone" in line for line in warned)
    warned = [line for line in tell(alike[:1], Labels(classes=("Dog",), background=False)) if "warning" in line]
    assert any("'Dog' is the only class" in line for line in warned)
    assert "50 clips to train on of the largest class, 4 of the smallest: go by recall_macro_clips" in lines[3]


@pytest.mark.long
def test_forty_spans_of_a_long_recording_are_cut_out_by_seeking(tmp_path, project):
    """Eight minutes, whose second s is as bright as 10 (s modulo 24); each worker keeps within its memory limit."""
    root = tmp_path / "mine"
    write_media(root / "long.mp4", seconds=500, shade=lambda number: number // 5 % 24 * 10)
    text = "path,label,split,from,to\n"
    for number in range(40):
        begin = 7 + 12 * number
        text += f"long.mp4,{'ab'[number % 2]},{('train', 'val', 'test')[number % 3]},{begin},{begin + 4}\n"
    put(root / "clips.csv", text.encode())
    place = project(folder={"table": "clips.csv", "span": "table"}, shard={"frame_size": 48, "min_coverage": 1.0})
    download.main()
    clips, _ = read_manifest(place / "data/raw/folder")
    assert len(clips) == 40 and len(list((place / "data/raw/folder/clips").iterdir())) == 1
    shard.main([])
    begins = {clip.key: clip.begin for clip in clips}
    for split in ("train", "val", "test"):
        for batch in Loader(place / "data/shards/folder", split, batch=8, image_size=32).in_order():
            for key, second, frame in zip(batch.keys, batch.seconds, batch.frames, strict=True):
                shown = (begins[key] + second + 1) % 24 * 10  # pairs of 2 s have the frame of their second second
                assert frame.float().mean().item() == pytest.approx(shown, abs=3)
