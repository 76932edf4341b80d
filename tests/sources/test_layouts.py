"""Which folders are read as classes and which as splits, by names alone: no file is opened."""

import re
from collections import Counter

import pytest

from maavt.clips import read_manifest, write_manifest
from maavt.errors import UserError
from maavt.sources import folder
from maavt.sources.lists import split_of
from maavt.sources.look import Look
from tests.sources.common import params


@pytest.fixture
def survey(tmp_path, monkeypatch):
    """A function that makes empty files with these names, and returns what is said of their folder."""
    monkeypatch.setattr(folder, "look_at", lambda paths, keep: {path: Look(seconds=1.0) for path in paths})

    def look(*names: str, **settings) -> folder.Survey:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return folder.survey(params(dataset="folder", folder={"root": str(tmp_path)} | settings))
    return look


def found(survey: folder.Survey) -> Counter:
    return Counter((clip.split, clip.label) for clip in survey.clips)


@pytest.mark.parametrize("name, split", [
    ("train", "train"), ("TrainSet", "train"), ("training_set", "train"), ("train_data", "train"),
    ("01_train", "train"), ("validation-split", "val"), ("Valid", "val"), ("devset", "val"), ("DEV", "val"),
    ("test set", "test"), ("TESTING", "test"),
    ("3. Eval", "test"), ("data-test-videos", "test"), ("trn", "train"), ("test1", "test"),
    ("train horning", ""), ("trains", ""), ("testimony", ""), ("train_test", ""), ("trainval", ""), ("data", ""),
    ("valley", ""), ("dog", ""), ("01", ""), ("évaltest", ""),
])
def test_folders_of_splits_are_known_by_the_words_in_their_names(name, split):
    assert split_of(name) == split


SPLITS = [("train", "val", "test"), ("training_set", "validation_set", "test_set"), ("TrainSet", "ValSet", "TestSet"),
          ("train_data", "valid_data", "test_data"), ("01_train", "02_dev", "03_eval"),
          ("LRW-train", "LRW-val", "LRW-test")]


@pytest.mark.parametrize("names", SPLITS)
@pytest.mark.parametrize("layout", ["{split}/{label}/{n}.mp4", "{label}/{split}/{n}.mp4",
                                    "{label}/{split}/deep/{n}.mp4"])
def test_splits_are_read_above_and_below_the_classes(survey, names, layout):
    files = [layout.format(split=split, label=label, n=n) for split in names for label in "ab" for n in range(2)]
    assert found(survey(*files, "a/list.txt" if layout[1] == "l" else "readme.txt")) == {
        (split, label): 2 for split in ("train", "val", "test") for label in "ab"}


def test_a_split_that_classes_lack_is_held_out_and_a_class_may_have_the_name_of_a_split(survey):
    clips = survey(*(f"{label}/{split}/{n}.mp4" for label in ("train", "bus") for split in ("train", "test")
                     for n in range(10)), val_share=0.2)
    assert found(clips)["val", "train"] == found(clips)["val", "bus"] == 2
    assert found(clips)["test", "train"] == 10


@pytest.mark.parametrize("files, message", [
    (("dog/train/a.mp4", "dog/test/a.mp4", "cat/b.mp4"), r"in them \(dog/test, dog/train\) and 1 clips .* cat/b.mp4"),
    (("train/dog/a.mp4", "annotations/b.mp4"), r"of splits \(train\) beside others \(annotations\)"),
    (("train/train/a.mp4", "train/test/a.mp4", "test/train/a.mp4"), "so no class can be told"),
    (("mydata/train/dog/a.mp4", "mydata/test/dog/a.mp4"), r"one folder alone, mydata.*Set folder.root to .*mydata$"),
    (("dog/test/a.mp4", "cat/test/a.mp4"), "none to train on"),
    (("test_1/dog/a.mp4", "test_2/dog/a.mp4"), "none to train on"),
])
def test_folders_that_may_mean_either_are_an_error_that_names_them(survey, files, message):
    with pytest.raises(UserError, match=message):
        survey(*files)


@pytest.mark.parametrize("files, message", [
    (("dog/tape 1/train/a.mp4", "dog/tape 1/test/b.mp4"), "2 files are in folders named like splits"),
    (("train/dog/test/a.mp4", "test/dog/b.mp4"), r"1 files .*not read as splits: train/dog/test;"),
    (("train-clean/a.mp4", "test-other/a.mp4"), "read as classes, though some look like splits"),
    (("anna/train/dog/a.mp4", "bob/train/dog/a.mp4"), "the classes are anna, bob, with the splits in them"),
])
def test_folders_that_look_like_splits_and_are_not_read_as_such_are_told(survey, files, message):
    warning, = (note for note in survey(*files).notes if note.startswith("warning"))
    assert re.search(message, warning)


def test_plain_classes_are_told_nothing(survey):
    assert survey("train horning/a.mp4", "railroad train/deep/a.mp4", "dog/a.mp4").notes == []


@pytest.mark.parametrize("odd", ["\r", "\n", "\t", "\x01", "\x7f", "\x85", "\u2028", "\u2029"])
def test_control_characters_in_names_become_escapes_and_are_told(survey, tmp_path, odd):
    clips = survey(*(f"cat{odd}/{odd}{n}{odd}.mp4" for n in range(3)), f"dog{odd}/a.mp4")
    escape = ascii(odd)[1:-1]
    assert {clip.label for clip in clips.clips} == {f"cat{escape}", f"dog{escape}"}
    assert [note for note in clips.notes if f"cat{escape}" in note]
    labels = folder.labels(params(), clips.clips)
    write_manifest(tmp_path / "raw", clips.clips, labels)
    read, _ = read_manifest(tmp_path / "raw")
    assert [clip.row() for clip in read] == [clip.row() for clip in clips.clips]
    assert len((tmp_path / "raw" / "clips.csv").read_text().splitlines()) == 5
