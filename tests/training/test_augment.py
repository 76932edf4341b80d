from dataclasses import replace

import pytest
import torch

from maavt.params import AugmentSound
from maavt.training.augment import augment_sound, drop_modality

NOTHING = AugmentSound(time_mask=0, frequency_mask=0, stretch=0, shift=0)


def changed(sound: torch.Tensor, seed: int = 0, **settings) -> torch.Tensor:
    torch.manual_seed(seed)
    return augment_sound(sound, replace(NOTHING, **settings))


SOUND = torch.randn(8, 20, 20, generator=torch.Generator().manual_seed(0)) + 10


@pytest.mark.parametrize("name", ["time_mask", "frequency_mask", "stretch", "shift"])
def test_every_pair_is_changed_in_its_own_way_which_the_seed_fixes(name):
    alike = SOUND[:1].expand(8, -1, -1)
    found, again, other = (changed(alike, seed, **{name: 0.5}) for seed in (0, 0, 1))
    assert torch.equal(found, again) and not torch.equal(found, other)
    assert len({tuple(one.flatten().tolist()) for one in found}) > 4


def test_nothing_is_changed_by_nothing():
    assert torch.equal(changed(SOUND), SOUND)


@pytest.mark.parametrize("name, side", [("time_mask", 1), ("frequency_mask", 2)])
def test_a_mask_is_one_stretch_of_the_mean_no_wider_than_asked(name, side):
    found = changed(SOUND, **{name: 0.3})
    gone = (found == 0).all(3 - side)  # whole frames, or whole bins
    assert torch.equal(found[found != 0], SOUND[found != 0]) and gone.sum() * 20 == (found == 0).sum()
    for one in gone:
        places = one.nonzero().flatten().tolist()
        assert places == list(range(*(places[0], places[-1] + 1) if places else (0, 0))) and len(places) <= 6


def test_a_shift_moves_the_time_and_loses_nothing():
    found = changed(SOUND, shift=0.25)
    moved = [next(by for by in range(-5, 6) if torch.equal(one.roll(-by, 0), SOUND[number]))
             for number, one in enumerate(found)]
    assert len(set(moved)) > 2


def test_stretching_scales_time_and_frequencies_each_on_its_own_and_within_the_bound():
    ramp = torch.arange(20.0)
    sound = (ramp[:, None] + 1000 * ramp).expand(64, -1, -1)  # what stood where, to be read off
    found = changed(sound, stretch=0.2)
    times, bins = found % 1000, found // 1000
    inner = slice(8, 12)  # never reached by what fills the edges
    pace = found[:, inner, 10].diff(dim=1).mean(1)
    pitch = found[:, 10, inner].diff(dim=1).mean(1) / 1000
    for scale in (pace, pitch):
        assert 0.8 <= scale.min() < 0.85 and 1.15 < scale.max() <= 1.2
    assert torch.corrcoef(torch.stack([pace, pitch]))[0, 1].abs() < 0.4
    assert times.min() >= 0 and bins.max() <= 19


def test_the_asked_share_of_pairs_that_have_both_loses_one_of_them_at_random_as_the_generator_says():
    absent = torch.tensor([0, 0, 0, 1, 2], dtype=torch.uint8).repeat(1000)
    found, again = (drop_modality(absent, 5000, 0.3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(found, again) and torch.equal(found[absent > 0], absent[absent > 0])
    counts = torch.bincount(found[absent == 0].long(), minlength=3) / 3000
    torch.testing.assert_close(counts, torch.tensor([0.7, 0.15, 0.15]), atol=0.03, rtol=0)
    assert not drop_modality(None, 5, 0.0, torch.Generator()).any()
    assert drop_modality(None, 5, 1.0, torch.Generator()).all()
