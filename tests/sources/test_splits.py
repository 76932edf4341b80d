"""What the splits of clips that come without promise to every class."""

import hashlib
import itertools
import json
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maavt.sources.lists import choose_split
from maavt.sources.splits import share_out

SPLITS = ("train", "val", "test")


def lacking(groups: dict[str, Counter], chosen: dict[str, str]) -> list[tuple[str, str]]:
    """(class, split) of what was promised and is not there."""
    members = defaultdict(list)
    for group, counts in groups.items():
        for label in counts:
            members[label].append(chosen[group])
    return [(label, split) for label, own in members.items() for split in (SPLITS if len(own) >= 3 else SPLITS[:1])
            if split not in own]


def some_table(seed: int) -> dict[str, Counter]:
    """Groups with one to three of up to ten classes each."""
    rng = random.Random(seed)
    classes = "abcdefghij"[: rng.randint(2, 10)]
    return {f"{seed}/{number}": Counter({
        label: rng.randint(1, 5) for label in rng.sample(classes, rng.choice((1, 1, 2, 3)) if len(classes) > 2 else 1)})
        for number in range(rng.randint(3, 30))}


TABLES = st.lists(st.sets(st.sampled_from("abcde"), min_size=1, max_size=3), min_size=1, max_size=7)


@settings(deadline=None, max_examples=150)
@given(TABLES, st.integers(0, 999))
def test_every_class_of_three_groups_is_in_every_split_wherever_that_can_be(table, seed):
    groups = {f"{seed} {number}": Counter(sorted(labels)) for number, labels in enumerate(table)}
    chosen = share_out(groups, val=0.1, test=0.2)
    short = lacking(groups, chosen)
    assert not [label for label, split in short if split == "train"]
    if short:
        others = (dict(zip(groups, splits, strict=True)) for splits in itertools.product(SPLITS, repeat=len(groups)))
        assert all(lacking(groups, other) for other in others)


def test_tables_of_several_labels_seldom_lack_a_class_in_a_split():
    assert sum(bool(lacking(table, share_out(table, val=0.1, test=0.2))) for table in map(some_table, range(200))) <= 10


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_class_whose_groups_all_hash_into_test_keeps_one_in_train(count):
    names = [name for name in map(str, range(999)) if choose_split(name, val=0.1, test=0.2) == "test"][:count]
    chosen = share_out({name: Counter("a") for name in names}, val=0.1, test=0.2)
    assert "train" in chosen.values()


def test_splits_that_kept_the_promise_before_stay_as_they_were():
    """By hashes: a model must not be tested on what an earlier one was trained on."""
    chosen = [share_out(table, val=0.1, test=0.2) for table in map(some_table, KEPT)]
    assert hashlib.sha256(json.dumps([sorted(each.items()) for each in chosen]).encode()).hexdigest() == DIGEST


KEPT = [2, 3, 10, 13, 14, 15, 19, 21, 22, 28, 31, 36, 37, 43, 51, 56, 57, 59, 62, 66, 69, 70, 72, 79, 86, 87, 89,
        91, 100, 104, 106, 107, 108, 113, 117, 122, 123, 126, 127, 134, 137, 139, 143, 144, 147, 149, 151, 154, 162,
        163, 164, 165, 168, 174, 176, 178, 180, 181, 183, 190, 195, 197, 198, 199, 200, 201, 203, 206, 211, 215,
        224, 226, 229, 231, 233, 239, 240, 242, 246, 252, 255, 258, 259, 266, 267, 269, 273, 275, 281, 282, 283,
        284, 292, 296, 299, 303, 304, 306, 307, 312, 313, 316, 318, 322, 326, 327, 334, 336, 337, 338, 339, 342,
        345, 353, 355, 356, 359, 360, 361, 363, 364, 366, 367, 370, 372, 373, 378, 379, 382, 384, 385, 386, 390,
        396, 399, 400, 404, 405, 407, 409, 416, 419, 420, 422, 425, 426, 428, 440, 441, 450]
DIGEST = "1c4c677002849b9584cc4ca43d6045e64dd1660f1b468ac49a6b40bbbc70e665"
