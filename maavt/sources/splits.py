"""Splits of clips that come without: each class has its share in every split, groups stay together, and a clip that is
added moves one other or none.

scikit-learn's StratifiedGroupKFold shares out as well, but anew with every clip that is added: a model would be tested
on what the last one was trained on.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from maavt.clips import SPLITS, Clip, Labels
from maavt.sources.lists import choose_split, fraction

FEW = 3  # groups of a class that are needed for one in every split
UNEVEN = 5  # times as many clips in the largest class as in the smallest
SHOWN = 40  # classes


def share_out(groups: Mapping[str, Counter], *, val: float, test: float) -> dict[str, str]:
    """The split of each group, given its clips of each class.

    A hash of its name places every group; then, class by class, those nearest to the border move until the class has
    the share of clips in test and val that comes nearest to what was asked for, and one group at least in train.
    """
    shares = {"test": test, "val": val}
    chosen = {group: choose_split(group, val=val, test=test) for group in groups}
    places = {group: fraction(group) for group in groups}
    members = defaultdict(list)
    for group in sorted(groups, key=places.get):
        for label in groups[group]:
            members[label].append(group)
    for label in sorted(members, key=lambda label: (len(members[label]), label)):  # the rarest first
        own = members[label]
        if "train" not in map(chosen.get, own):
            chosen[own[-1]] = "train"
        for split, share in shares.items():
            wanted = share * sum(groups[group][label] for group in own)
            _shift(own, chosen, groups, label, split, wanted, least=share > 0 and len(own) >= FEW - (split == "test"))
    return _mended(chosen, groups, members, [split for split, share in shares.items() if share > 0])


MENDING = 2000  # moves that are tried at most
UNLEARNABLE, BROKEN, POOR = 10_000, 100, 1  # weights of a class without train, of one of FEW groups or more without
#                                             another split, and of one of two groups without test


def _mended(chosen: dict[str, str], groups: Mapping[str, Counter], members: Mapping[str, list[str]],
            asked: list[str]) -> dict[str, str]:
    """The splits as they are where every class has what it needs: one group in train, and from FEW groups on one in
    each split. Else those that a tabu search finds which lack least: with several labels, what one class gets another
    may lose, and not every table has a way out."""
    needs = {(label, "train"): UNLEARNABLE for label in members}
    needs |= {(label, split): BROKEN if len(own) >= FEW else POOR for label, own in members.items() for split in asked
              if len(own) >= FEW - (split == "test")}
    counts = Counter((label, chosen[group]) for group in chosen for label in groups[group])
    lacking = {need for need in needs if not counts[need]}
    if all(needs[need] < BROKEN for need in lacking):
        return chosen
    now, best, least = dict(chosen), chosen, sum(needs[need] for need in lacking)
    moved = dict.fromkeys(now, -len(now))

    def change(group: str, split: str) -> tuple[int, float, int]:
        """What a move would add to the sum of the weights; and for even moves the size and the last time."""
        added = sum(needs.get((label, now[group]), 0) * (counts[label, now[group]] == 1)
                    - needs.get((label, split), 0) * (not counts[label, split]) for label in groups[group])
        return added, groups[group].total(), moved[group]

    for number in range(MENDING):
        label, split = max(sorted(lacking), key=lambda need: (needs[need], fraction(f"{number} {need}")))
        tenure = min(3, len(members[label]) - 1)
        free = [group for group in members[label] if number - moved[group] > tenure] or members[label]
        group = min(free, key=lambda group: change(group, split))
        for other in groups[group]:
            for place, step in ((now[group], -1), (split, 1)):
                counts[other, place] += step
                if (other, place) in needs:
                    (lacking.discard if counts[other, place] else lacking.add)((other, place))
        now[group], moved[group] = split, number
        weight = sum(needs[need] for need in lacking)
        if weight < least:
            best, least = dict(now), weight
        if weight < BROKEN:
            break
    return best


def _shift(own: list[str], chosen: dict[str, str], groups: Mapping[str, Counter], label: str, split: str,
           wanted: float, least: bool) -> None:
    """Move groups of one class between `split` and train while that brings its clips there nearer to `wanted`; `least`
    asks for one group at any rate."""
    here = sum(groups[group][label] for group in own if chosen[group] == split)
    for group in reversed(own):
        size = groups[group][label]
        if chosen[group] == split and abs(here - size - wanted) < abs(here - wanted):
            chosen[group] = "train"
            here -= size
    left = sum(chosen[group] == "train" for group in own)
    for group in own:
        size = groups[group][label]
        if chosen[group] == "train" and left > 1 and abs(here + size - wanted) < abs(here - wanted):
            chosen[group] = split
            here += size
            left -= 1
    if least and not here:  # the smallest, of another split only where train has no second one
        chosen[min((group for group in own if chosen[group] != "train" or left > 1),
                   key=lambda group: (chosen[group] != "train", groups[group][label]))] = split


def tell(clips: Iterable[Clip], labels: Labels) -> Iterator[str]:
    """How many clips each class has in each split, and what of it bodes ill, with what to do."""
    clips = list(clips)
    counts = defaultdict(Counter)
    for clip in clips:
        for label in labels.of(clip.label):
            counts[label][clip.split] += 1
    ranked = sorted(counts, key=lambda label: (counts[label].total(), label))
    width = max(map(len, ranked), default=0)
    yield f"{'clips in':{width}} {'train':>8} {'val':>8} {'test':>8}"
    for label in sorted(ranked[:SHOWN]):
        yield f"{label:{width}} " + " ".join(f"{counts[label][split]:8d}" for split in SPLITS)
    if len(ranked) > SHOWN:
        yield f"and {len(ranked) - SHOWN} classes with more"
    for split in SPLITS:
        if lacking := [label for label in ranked if not counts[label][split]]:
            what = {"train": "it cannot be learned", "val": "the best epoch is chosen without it",
                    "test": "nothing is known of it"}[split]
            yield (f"warning: no clip in {split} of {_some(lacking)}: {what}; add clips (from {FEW} on, "
                   f"or {FEW} groups of folder.group, every split gets one), name the splits in a table, or leave the "
                   "class out")
    if len(ranked) == 1:
        yield f"warning: {ranked[0]!r} is the only class, so there is nothing to tell apart; add clips of another one"
    alike = defaultdict(list)
    for label in sorted(ranked):
        alike[" ".join(label.casefold().split())].append(repr(label))
    if alike := [" and ".join(same) for same in alike.values() if len(same) > 1]:
        yield f"warning: {_some(alike)} differ in case or spaces alone; if they are one class, give it one name"
    if few := [label for label in ranked if counts[label].total() < FEW]:
        yield (f"warning: fewer than {FEW} clips of {_some(few)}: add some, join it with another class, or leave it "
               "out; what is said of it means nothing")
    sizes = [counts[label]["train"] for label in ranked]
    if sizes and max(sizes) >= UNEVEN * max(min(sizes), 1):
        yield (f"warning: {max(sizes)} clips to train on of the largest class, {min(sizes)} of the smallest: go by "
               f"{'map' if labels.multilabel else 'recall_macro_clips'}, not by accuracy")


def _some(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more classes" if len(labels) > 5 else "")
