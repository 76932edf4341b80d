import pytest

from maavt.clips import Clip, Labels, pair_label, read_manifest, write_manifest
from maavt.errors import UserError


def clip(**changes) -> Clip:
    facts = dict(key="a", path="train/a.mp4", label="dog", split="train", start=2, end=5, source="here")
    return Clip(**{**facts, **changes})


def test_seconds_outside_the_event_are_background():
    assert clip().second_labels(7) == [None] * 2 + ["dog"] * 3 + [None] * 2


def test_a_clip_without_an_event_is_all_background():
    assert clip(start=0, end=0).second_labels(3) == [None] * 3


def test_several_events_label_the_seconds_whose_middle_they_are_on():
    several = clip(start=0.4, end=1.6, events=(("cat", 3.6, 3.9), ("background", 5, 9)))
    assert several.second_labels(6) == ["dog", "dog", None, "cat", None, "background"]


def test_a_last_event_without_an_end_lasts_as_long_as_the_clip():
    assert clip(start=2.8, end=3600).second_labels(3) == [None, None, "dog"]


@pytest.mark.parametrize("labels, begin, seconds, told", [
    (["a", None], 0, 1, "a"), (["a", None], 1, 1, None), (["a", None], 0, 2, "a"), ([None, "a"], 0, 2, "a"),
    (["a", "b"], 0, 2, "b"), ([None, "a", None], 0, 3, "a"), (["a", None, None], 0, 3, None),
    (["a", None], 0.4, 1, "a"),
])
def test_a_pair_has_the_label_of_its_middle_and_is_no_background_where_an_event_reaches_it(
        labels, begin, seconds, told):
    assert pair_label(labels, begin, seconds) == told


@pytest.mark.parametrize("meet, told", [(0.8, "b"), (1.2, "a"), (1.0, "a")])
def test_of_two_events_that_meet_inside_a_pair_it_has_the_one_that_covers_more_of_it(meet, told):
    both = clip(label="a", start=0, end=meet, events=(("b", meet, 10),))
    events = [("a", 0, meet), ("b", meet, 10)]
    assert pair_label(both.second_labels(4), 0, 2, events) == told
    assert pair_label(both.second_labels(4), 2, 2, events) == "b"


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    labels = Labels(classes=("dog", "cat, angry"), background=True)
    clips = [clip(begin=0.5, seconds=3.25, events=(("dog", 1, 2.5),)),
             clip(key="-b", label="cat, angry", status="failed", reason='gone, "for good"')]
    write_manifest(tmp_path, clips, labels)
    assert read_manifest(tmp_path) == (clips, labels)


@pytest.mark.parametrize("changes", [{"key": "a.b"}, {"key": ""}, {"key": "../a"}, {"split": "dev"}])
def test_a_clip_that_would_break_a_shard_is_refused(changes):
    with pytest.raises(ValueError):
        clip(**changes)


def test_a_missing_manifest_says_which_stage_makes_it(tmp_path):
    with pytest.raises(UserError, match="run the download stage first"):
        read_manifest(tmp_path)


def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path):
    write_manifest(tmp_path, [clip()], Labels(classes=("dog",), background=True))
    text = (tmp_path / "clips.csv").read_text()
    (tmp_path / "clips.csv").write_text(text.replace("2,5", "two,5"))
    with pytest.raises(UserError, match="manifest is damaged"):
        read_manifest(tmp_path)


def test_a_label_that_is_no_class_is_an_error(tmp_path):
    write_manifest(tmp_path, [clip()], Labels(classes=("cat",), background=True))
    with pytest.raises(UserError, match="dog"):
        read_manifest(tmp_path)
