import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maavt.models.output import Output
from maavt.training.losses import (
    TEMPERATURE,
    contrastive,
    contrastive_chance,
    losses,
    mine_background,
    whole_batch,
)


def info_nce(visual: list[list[float]], audio: list[list[float]], labels: list[int], same: str) -> float:
    """Symmetric InfoNCE over the foreground, written as a plain loop."""
    kept = [number for number, label in enumerate(labels) if label >= 0]

    def one_way(queries, keys):
        total = 0.0
        for i in kept:
            scores = {j: math.exp(sum(a * b for a, b in zip(queries[i], keys[j], strict=True)) / TEMPERATURE)
                      for j in kept if j == i or same != "left_out" or labels[j] != labels[i]}
            total -= math.log(scores[i] / sum(scores.values()))
        return total / len(kept)

    return (one_way(visual, audio) + one_way(audio, visual)) / 2 if kept else 0.0


def unit(rows: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(drawn, dim=-1)


labels_of_a_batch = st.lists(st.integers(-1, 4), min_size=1, max_size=12)


ways = st.sampled_from(["negatives", "left_out"])


@given(labels=labels_of_a_batch, seed=st.integers(0, 1000), same=ways)
@settings(max_examples=100, deadline=None)
def test_contrastive_loss_equals_a_plain_loop_over_foreground_pairs(labels, seed, same):
    visual, audio = unit(len(labels), seed).requires_grad_(), unit(len(labels), seed + 1)
    mine = contrastive(visual, audio, torch.tensor(labels), same)
    assert mine.item() == pytest.approx(info_nce(visual.tolist(), audio.tolist(), labels, same), abs=1e-9)
    mine.backward()
    assert visual.grad.isfinite().all()


@given(labels=labels_of_a_batch, same=ways)
@settings(max_examples=60, deadline=None)
def test_chance_is_the_contrastive_loss_of_projections_that_are_all_alike(labels, same):
    alike, labels = unit(1, 0).expand(len(labels), -1), torch.tensor(labels)
    assert contrastive(alike, alike, labels, same).item() == pytest.approx(
        contrastive_chance(labels, same).item(), abs=1e-6)


def test_the_contrastive_loss_counts_with_its_weight():
    output = Output(torch.randn(2, 4), projections=[(unit(2, 1).float(), unit(2, 2).float())])
    parts = losses(output, torch.tensor([0, 1]), contrastive_weight=0.5)
    assert parts.total == parts.classes + 0.5 * parts.contrastive


def test_the_loss_of_each_stream_alone_counts_with_its_weight_and_only_where_both_are_there():
    torch.manual_seed(0)
    logits, streams, labels = torch.randn(4, 3), [torch.randn(4, 3), torch.randn(4, 3)], torch.tensor([0, 2, 1, -1])
    parts = losses(Output(logits, streams=streams), labels, whole=torch.tensor([True, True, False, True]),
                   stream_weight=2.0)
    expected = [-stream[row].log_softmax(-1)[label] for stream in streams for row, label in ((0, 0), (1, 2))]
    assert parts.streams.item() == pytest.approx((sum(expected) / 2).item(), rel=1e-5)
    assert parts.total.item() == pytest.approx((parts.classes + 2 * parts.streams).item(), rel=1e-6)


def test_background_pairs_add_nothing_to_class_and_contrastive_loss():
    torch.manual_seed(0)
    logits, background, labels = torch.randn(6, 4), torch.randn(6), torch.tensor([0, -1, 3, 2, -1, 1])
    projections = [(unit(6, 1).float(), unit(6, 2).float())]
    whole = losses(Output(logits, background, projections), labels)
    kept = labels >= 0
    alone = losses(Output(logits[kept], background[kept], [(v[kept], a[kept]) for v, a in projections]), labels[kept])
    torch.testing.assert_close(whole.classes, alone.classes)
    torch.testing.assert_close(whole.contrastive, alone.contrastive)


def test_background_loss_is_over_all_pairs_and_positive_means_background():
    sure = Output(torch.zeros(3, 4), torch.tensor([-20.0, 20.0, -20.0]))
    assert losses(sure, torch.tensor([0, -1, 2])).background < 1e-6
    assert losses(sure, torch.tensor([0, 1, -1])).background > 10


def test_a_batch_of_background_alone_has_finite_losses_and_gradients():
    logits, background = torch.randn(3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    visual, audio = unit(3, 1).requires_grad_(), unit(3, 2)
    parts = losses(Output(logits, background, [(visual, audio)]), torch.tensor([-1, -1, -1]))
    parts.total.backward()
    assert parts.classes == 0 and parts.contrastive == 0 and parts.background > 0
    assert all(tensor.grad.isfinite().all() for tensor in (logits, background, visual))


def test_a_part_that_does_not_apply_is_zero():
    parts = losses(Output(torch.randn(2, 4)), torch.tensor([0, 1]))
    for part in (parts.background, parts.contrastive, parts.chance, parts.streams):
        assert torch.is_tensor(part) and part == 0
    assert parts.total == parts.classes


@pytest.mark.parametrize("same", ["negatives", "left_out"])
def test_the_contrastive_loss_and_its_chance_take_pairs_of_the_same_class_as_asked(same):
    projections, labels = [(unit(4, 1), unit(4, 2)), (unit(4, 3), unit(4, 4))], torch.tensor([0, 0, 1, 2])
    parts = losses(Output(torch.randn(4, 3), projections=projections), labels, same_class=same)
    expected = sum(contrastive(visual, audio, labels, same) for visual, audio in projections) / 2
    assert parts.contrastive.item() == pytest.approx(expected.item())
    assert parts.chance == contrastive_chance(labels, same)


def test_by_default_pairs_of_the_same_class_are_negatives_and_all_but_the_streams_counts_once():
    projections, labels = [(unit(4, 1), unit(4, 2))], torch.tensor([0, 0, 1, 2])
    output = Output(torch.randn(4, 3), torch.randn(4), projections, streams=[torch.randn(4, 3)])
    parts = losses(output, labels)
    for options in ({}, {"same_class": "negatives"}):
        assert parts.contrastive == contrastive(*projections[0], labels, **options)
    assert parts.chance == contrastive_chance(labels) == contrastive_chance(labels, "negatives")
    assert parts.total == parts.classes + parts.background + parts.contrastive and parts.streams > 0


def test_where_background_is_one_more_class_the_class_loss_is_all_there_is():
    output = Output(torch.randn(2, 4), torch.randn(2), [(unit(2, 1), unit(2, 2))], one_softmax=True)
    parts = losses(output, torch.tensor([0, -1]))
    assert parts.background == parts.contrastive == parts.chance == parts.streams == 0 < parts.classes == parts.total


def numbered(labels: list[int]) -> torch.Tensor:
    """Spectrograms (B, 1, 1) that hold the number of their pair."""
    return torch.arange(len(labels), dtype=torch.float)[:, None, None]


def mine(labels: list[int], share: float, seed: int):
    sound, mined, lone = mine_background(numbered(labels), torch.tensor(labels), share,
                                         torch.Generator().manual_seed(seed))
    return sound.flatten().long().tolist(), mined.tolist(), lone.item()


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=16), share=st.floats(0, 1), seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_a_mined_pair_hears_another_class_and_all_others_stay_as_they_were(labels, share, seed):
    heard, mined, lone = mine(labels, share, seed)
    for number, (partner, label) in enumerate(zip(heard, mined, strict=True)):
        if label == -1:
            assert labels[partner] != labels[number]
        else:
            assert (partner, label) == (number, labels[number])
    assert lone == 0 or len(set(labels)) == 1


def test_the_asked_share_of_pairs_is_mined():
    _, mined, lone = mine([0, 1, 2, 3] * 1000, 0.2, 0)
    assert lone == 0
    assert mined.count(-1) / len(mined) == pytest.approx(0.2, abs=0.03)


def test_partners_are_drawn_from_all_pairs_of_other_classes():
    partners = {mine([0, 1, 1, 2, 2], 1.0, seed)[0][0] for seed in range(200)}
    assert partners == {1, 2, 3, 4}


def test_a_batch_of_one_class_is_left_as_it_is_and_counted():
    heard, mined, lone = mine([2, 2, 2, 2], 1.0, 0)
    assert heard == [0, 1, 2, 3] and mined == [2, 2, 2, 2] and lone == 4


def test_nothing_is_mined_at_share_zero_and_everything_possible_at_share_one():
    assert mine([0, 1, 2], 0.0, 0)[1] == [0, 1, 2]
    assert mine([0, 1, 2], 1.0, 0)[1] == [-1, -1, -1]


@pytest.mark.parametrize("same", ["negatives", "left_out"])
def test_a_pair_without_sound_or_picture_has_no_part_in_the_contrastive_loss_but_in_that_of_the_classes(same):
    labels, whole = torch.tensor([0, 1, 0, 2]), torch.tensor([True, False, True, True])
    logits, visual, audio = torch.randn(4, 3), unit(4, 1).float(), unit(4, 2).float()
    parts = losses(Output(logits, projections=[(visual, audio)]), labels, whole=whole, same_class=same)
    alone = losses(Output(logits[whole], projections=[(visual[whole], audio[whole])]), labels[whole],
                   same_class=same)
    torch.testing.assert_close(parts.contrastive, alone.contrastive)
    torch.testing.assert_close(parts.chance, alone.chance)
    torch.testing.assert_close(parts.classes, torch.nn.functional.cross_entropy(logits, labels))


def test_a_pair_with_several_labels_but_one_modality_has_no_part_in_the_contrastive_loss():
    torch.manual_seed(0)
    whole = torch.tensor([True, False, True, True])
    logits, visual, audio = torch.randn(4, 3), unit(4, 1).float(), unit(4, 2).float()
    parts = losses(Output(logits, projections=[(visual, audio)], multilabel=True), SEVERAL, whole=whole)
    torch.testing.assert_close(parts.contrastive, contrastive(visual[whole], audio[whole], SEVERAL[whole]))
    torch.testing.assert_close(parts.chance, contrastive_chance(SEVERAL[whole]))


def test_pairs_without_sound_or_picture_are_not_mined_nor_partners():
    whole = torch.tensor([True, False, True, False])
    for seed in range(20):
        sound, mined, lone = mine_background(numbered([0, 1, 2, 3]), torch.arange(4), 1.0,
                                             torch.Generator().manual_seed(seed), whole)
        assert sound.flatten().tolist() == [2, 1, 0, 3] and mined.tolist() == [-1, 1, -1, 3] and not lone


def test_whole_pairs_are_mined_no_more_often_than_asked_and_never_where_no_whole_one_is_of_another_class():
    labels, generator = torch.arange(2000) % 4, torch.Generator().manual_seed(0)
    whole = torch.arange(2000) < 1000
    _, mined, _ = mine_background(numbered(labels), labels, 0.2, generator, whole)
    assert (mined[whole] == -1).float().mean() == pytest.approx(0.2, abs=0.04) and (mined[~whole] >= 0).all()
    labels, whole = torch.tensor([0, 0, 1]), torch.tensor([True, True, False])
    sound, mined, lone = mine_background(numbered(labels), labels, 1.0, generator, whole)
    assert sound.flatten().tolist() == [0, 1, 2] and mined.tolist() == [0, 0, 1] and lone == 2


def test_what_is_mined_is_fixed_by_the_generator_alone():
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(mine([0, 1, 2, 3] * 20, 0.5, 7))
    assert found[0] == found[1] != mine([0, 1, 2, 3] * 20, 0.5, 8)


SEVERAL = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]])


def test_the_class_loss_of_pairs_with_several_labels_is_a_yes_or_no_of_each_class():
    logits = torch.tensor([[2.0, -1, 0]] * 4)
    yes, no = -torch.nn.functional.logsigmoid(logits), -torch.nn.functional.logsigmoid(-logits)
    parts = losses(Output(logits, multilabel=True), SEVERAL)
    torch.testing.assert_close(parts.classes, torch.where(SEVERAL > 0, yes, no).sum(1).mean())
    assert parts.background == parts.contrastive == 0


def test_a_pair_without_any_of_several_labels_counts_in_the_class_loss_alone():
    torch.manual_seed(0)
    labels, logits = SEVERAL * torch.tensor([[1.0], [1], [1], [0]]), torch.randn(4, 3)
    visual, audio = unit(4, 1).float(), unit(4, 2).float()
    parts = losses(Output(logits, projections=[(visual, audio)]), labels)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    torch.testing.assert_close(parts.classes, each.mean())
    torch.testing.assert_close(parts.contrastive, contrastive(visual[:3], audio[:3], labels[:3]))


@pytest.mark.parametrize("same", ["negatives", "left_out"])
def test_pairs_with_a_label_in_common_are_of_the_same_class_to_the_contrastive_loss(same):
    visual, audio = unit(4, 1), unit(4, 2)
    alike = [[0, 2, 3], [1, 3], [0, 2], [0, 1, 3]]  # those that share a label with each
    total = 0.0
    for queries, keys in ((visual, audio), (audio, visual)):
        for i in range(4):
            scores = (queries[i] @ keys.T / TEMPERATURE).exp()
            among = [j for j in range(4) if same != "left_out" or j == i or j not in alike[i]]
            total -= (scores[i] / scores[among].sum()).log().item() / 8
    assert contrastive(visual, audio, SEVERAL.double(), same).item() == pytest.approx(total)


def test_several_labels_and_what_is_whole_come_back_from_the_other_processes():
    whole = torch.tensor([True, False, True, True])
    doubled = lambda columns: [column.float().repeat(2, 1) for column in columns]  # noqa: E731
    output, labels, both = whole_batch(Output(torch.randn(4, 3), multilabel=True), SEVERAL, doubled, whole)
    assert output.multilabel and torch.equal(labels, SEVERAL.repeat(2, 1)) and torch.equal(both, whole.repeat(2))
    _, labels, both = whole_batch(Output(torch.randn(4, 3)), torch.arange(4), doubled)
    assert labels.tolist() == [0, 1, 2, 3] * 2 and both is None


def test_every_part_of_the_output_comes_back_from_the_other_processes_as_itself():
    torch.manual_seed(0)
    background, streams = torch.randn(4), [torch.randn(4, 3), torch.randn(4, 3)]
    projections = [(torch.randn(4, 5), torch.randn(4, 5)), (torch.randn(4, 5), torch.randn(4, 5))]
    output = Output(torch.randn(4, 3), background, projections, streams=streams)
    twice = lambda columns: [column.repeat(2, 1) for column in columns]  # noqa: E731
    found, _, _ = whole_batch(output, torch.arange(4), twice, torch.tensor([True, False, True, True]))
    assert torch.equal(found.logits, output.logits.repeat(2, 1)) and torch.equal(found.background, background.repeat(2))
    assert [torch.equal(ours, own.repeat(2, 1)) for ours, own in zip(found.streams, streams, strict=True)] == [True] * 2
    for ours, own in zip(found.projections, projections, strict=True):
        assert all(torch.equal(one, other.repeat(2, 1)) for one, other in zip(ours, own, strict=True))
