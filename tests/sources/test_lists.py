from collections import Counter

import pytest

from maavt import cli
from maavt.errors import UserError
from maavt.sources import SOURCES, ave, cremad, vggsound
from maavt.sources.lists import choose_split, safe_key, warnings
from tests.sources.common import ANNOTATIONS, ROOT, params, published


def counts(clips) -> dict[str, int]:
    return dict(Counter(clip.split for clip in clips))


@published
@pytest.mark.parametrize("dataset", ["ave", "vggsound", "cremad"])
def test_the_packaged_lists_are_the_published_ones(dataset):
    source = SOURCES[dataset]
    assert source.clips(params(), ANNOTATIONS) == source.clips(params())


@pytest.mark.parametrize("dataset, classes, background", [("ave", 28, True), ("vggsound", 309, False),
                                                          ("cremad", 6, False)])
def test_every_clip_has_a_class_of_the_list(dataset, classes, background):
    labels = SOURCES[dataset].labels(params())
    assert len(set(labels.classes)) == len(labels.classes) == classes
    assert labels.background == background
    assert {clip.label for clip in SOURCES[dataset].clips(params())} == set(labels.classes)


@pytest.mark.parametrize("dataset", ["ave", "vggsound", "cremad"])
def test_keys_are_unique_and_no_name_begins_with_a_dash(dataset):
    clips = SOURCES[dataset].clips(params())
    assert len({clip.key for clip in clips}) == len(clips)
    assert not [clip for clip in clips if clip.key.startswith("-") or clip.path.startswith("-")]


def test_ave_has_its_official_splits():
    assert counts(ave.clips(params())) == {"train": 3339, "val": 402, "test": 402}


def test_ave_keeps_rows_of_the_same_video_apart():
    clips = ave.clips(params())
    assert len(clips) - len({clip.source for clip in clips}) == 46  # of 45 ids, one is there three times
    assert len([count for count in Counter(clip.source for clip in clips).values() if count > 1]) == 45


def test_ave_row_26_has_no_event():
    clip = ave.clips(params())[26]
    assert clip.source == "VWi2ENBuTbw"
    assert set(clip.second_labels(10)) == {None}


def test_ave_names_the_videos_that_are_in_two_splits():
    lines = list(warnings(ave.clips(params())))
    assert [line.split(":")[0] for line in lines] == ["10 sources are in both train and val",
                                                      "8 sources are in both train and test"]
    assert "-9_5_2i4igQ" in lines[1]


def test_ave_reads_the_lists_of_the_zip_with_their_header(tmp_path):
    header = "Category&VideoID&Quality&StartTime&EndTime\n"
    rows = ["Bark&-abc&good&0&10\n", "Clock&d_ef&good&2&5\n", "Bark&-abc&good&3&4\n"]
    (tmp_path / "Annotations.txt").write_text(header + "".join(rows))
    for split, row in zip(("val", "test", "train"), rows, strict=True):
        (tmp_path / f"{split}Set.txt").write_text(header + row)
    clips = ave.clips(params(), tmp_path)
    assert [(clip.split, clip.key, clip.start, clip.end) for clip in clips if clip.source == "-abc"] == [
        ("val", "0000--abc", 0, 10), ("train", "0002--abc", 3, 4)]


@pytest.mark.parametrize("row, message", [
    ("Bark&abc&good&0", "line 1.*expected 5"),
    ("Dog&abc&good&0&10", "no class 'Dog'"),
    ("Bark&abc&good&0&ten", "'ten' is no time"),
    ("Bark&abc&good&6&5", "an event from 6 to 5"),
    ("Bark&abc&good&0&11", "within 10 s"),
])
def test_a_broken_row_of_ave_is_an_error_that_names_it(tmp_path, row, message):
    (tmp_path / "Annotations.txt").write_text(row + "\n")
    with pytest.raises(UserError, match=message):
        ave.clips(params(), tmp_path)


def test_vggsound_keeps_clips_of_the_same_video_apart():
    clips = vggsound.clips(params())
    assert len(clips) == 15446
    assert len({clip.source for clip in clips}) == 14851


def test_vggsound_reads_labels_with_commas_and_holds_out_videos(tmp_path):
    rows = [f'-video_{n:04d},{n},"bird chirping, tweeting",{"test" if n % 4 == 0 else "train"}\n'
            for n in range(2000)]
    rows += [row.replace(",", ",1", 1) for row in rows]  # a second clip of each video
    (tmp_path / "vggsound.csv").write_text("".join(rows))
    clips = vggsound.clips(params(), tmp_path)
    assert {clip.label for clip in clips} == {"bird chirping, tweeting"}
    assert counts(clips)["test"] == 1000
    assert 0.03 < counts(clips)["val"] / 3000 < 0.07
    assert not list(warnings(clips))


def test_vggsound_ids_that_are_no_ids_are_refused(tmp_path):
    (tmp_path / "vggsound.csv").write_text("../../etc,3,air horn,train\n")
    with pytest.raises(UserError, match="no YouTube id"):
        vggsound.clips(params(), tmp_path)


VGG = "abc,1,air horn,train\nabc,30,air horn,train\n"


def test_a_row_that_is_there_twice_is_one_clip(tmp_path):
    (tmp_path / "vggsound.csv").write_text(VGG + "abc,000001,air horn,train\n" + VGG)
    assert [clip.key for clip in vggsound.clips(params(), tmp_path)] == ["vgg-abc_000001", "vgg-abc_000030"]
    (tmp_path / "vggsound.csv").unlink()
    (tmp_path / "test.csv").write_text("abc_000001.mp4,air horn\n" * 2)
    assert [clip.key for clip in vggsound.clips(params(), tmp_path)] == ["vgg-abc_000001"]
    (tmp_path / "train.csv").write_text("1001_DFA_ANG_XX,ANG\n" * 2)
    (tmp_path / "test.csv").write_text("1002_DFA_ANG_XX,ANG\n" * 3)
    assert [clip.key for clip in cremad.clips(params(), tmp_path)] == ["1001_DFA_ANG_XX", "1002_DFA_ANG_XX"]
    row, other = "Bark&abc&good&0&10\n", "Bark&def&good&0&10\n"
    (tmp_path / "Annotations.txt").write_text(row + other + row)
    for split, text in (("train", row * 2), ("val", other), ("test", "")):
        (tmp_path / f"{split}Set.txt").write_text(text)
    assert [(clip.key, clip.split) for clip in ave.clips(params(), tmp_path)] == [
        ("0000-abc", "train"), ("0001-def", "val")]


def test_rows_that_contradict_each_other_are_an_error_that_names_both(tmp_path):
    for row in ("abc,30,air horn,test\n", "abc,30,airplane,train\n"):
        (tmp_path / "vggsound.csv").write_text(VGG + row)
        with pytest.raises(UserError, match="line 3: abc_000030 with .* in .*line 2; expected each clip once"):
            vggsound.clips(params(), tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("1001_DFA_ANG_XX,ANG\n")
    with pytest.raises(UserError, match="test.csv, line 1: 1001_DFA_ANG_XX with .* in .*train.csv, line 1"):
        cremad.clips(params(), tmp_path)
    for name in ("Annotations", "trainSet", "valSet", "testSet"):
        (tmp_path / f"{name}.txt").write_text("Bark&abc&good&0&10\n")
    with pytest.raises(UserError, match="valSet.txt, line 1: the row is in trainSet.txt, too"):
        ave.clips(params(), tmp_path)


def test_cremad_holds_out_actors_of_the_published_train_list():
    clips = cremad.clips(params())
    assert counts(clips) == {"train": 6122, "val": 576, "test": 744}
    actors = {split: {clip.source for clip in clips if clip.split == split} for split in ("train", "val", "test")}
    assert not actors["train"] & actors["val"]
    assert len(actors["train"] | actors["val"]) == len(actors["test"]) == 91


def test_cremad_can_be_split_by_actor():
    clips = cremad.clips(params(cremad={"split": "actors"}))
    assert not list(warnings(clips))
    assert min(counts(clips).values()) > 300


def test_cremad_lists_its_four_bad_clips_as_failed():
    failed = {clip.key: clip.reason for clip in cremad.clips(params()) if clip.status != "ok"}
    assert failed == dict.fromkeys(("1064_IEO_DIS_MD", "1064_TIE_SAD_XX", "1076_MTI_NEU_XX", "1076_MTI_SAD_XX"),
                                   "content: known bad clip")


def test_a_split_depends_on_the_name_alone():
    names = [f"clip {n}" for n in range(5000)]
    chosen = [choose_split(name, val=0.1, test=0.2) for name in names]
    assert chosen[7:12] == ["train", "train", "test", "test", "train"]
    assert 0.08 < chosen.count("val") / 5000 < 0.12 and 0.17 < chosen.count("test") / 5000 < 0.23


@pytest.mark.parametrize("text", ["a/b", "-dash", "Zoë.mp4", "x" * 300, "", "..", "a b", "\udcff"])
def test_an_unsafe_name_becomes_a_safe_key_of_its_own(text):
    key = safe_key(text)
    assert key[0].isalnum() and "." not in key and "/" not in key and len(key) <= 80
    assert key != safe_key(text + "?")


def test_the_clips_command_prints_the_manifest(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    cli.command(["clips", "vggsound"])
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == [
        "key,path,label,split,start,end,source,status,reason,begin,seconds,events,batch,slot",
        "vgg-glLQrEijrKg_000300,video/glLQrEijrKg_000300.mp4,playing hammond organ,test,0,3600.0,glLQrEijrKg,"
        "ok,,,0.0,,0,-1"]
    assert "no clip in train and val" in err
