import pytest
import torch

from maavt.models.maavt import MAAVT, MaavtConfig, early_summary
from maavt.models.merge import Merged, left
from maavt.models.vit import run_block, run_merging, train_only
from maavt.training.losses import losses
from tests.models.reference import CLASSES, layer_scale_vit, random_pairs, tiny_vit

PATCHES = 16


def make(merge: int, **changes) -> MAAVT:
    torch.manual_seed(0)
    settings = {"classes": CLASSES, "background": True, "tokens": 2, "lora_rank": 3, "bottleneck": 4, **changes}
    model = MAAVT(layer_scale_vit(), MaavtConfig(**settings, merge=merge))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if not name.startswith("backbone."):
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model


@pytest.mark.parametrize("merge", [1, 3, 5, 100])
@pytest.mark.parametrize("changes", [{}, {"background": False, "lora_rank": 0, "unimodal_prompts": False},
                                     {"tokens": 0, "contrastive": "off"}, {"head_blocks": 3},
                                     {"head_blocks": 3, "head_bands": True}])
def test_the_form_for_inference_merges_what_the_trained_form_merges(merge, changes):
    model = make(merge, **changes).eval()
    for pairs in (6, 1):
        with torch.inference_mode():
            wanted, found = model(*random_pairs(pairs)), model.for_inference()(*random_pairs(pairs))
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
    assert not torch.allclose(wanted.logits, make(0, **changes).eval()(*random_pairs(1)).logits, atol=1e-4)


def test_training_and_evaluation_say_the_same_and_every_trained_number_learns():
    model = make(3)
    trained = train_only(model, model.trained() + model.training_only())
    output = model.train()(*random_pairs())
    losses(output, torch.arange(6) - 1).total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    torch.testing.assert_close(model.eval()(*random_pairs()).logits, output.logits, atol=1e-5, rtol=0)


def test_in_the_mean_that_heads_read_a_patch_counts_as_often_as_it_stands_for_others():
    torch.manual_seed(0)
    read, few = torch.randn(2, 2, 8), torch.randn(2, 3, 8)
    merged = Merged(1, torch.tensor([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0]]),
                    torch.tensor([[1, 0, 1, 2, 2, 1], [0, 0, 1, 2, 0, 2]]))
    for grid in (None, (2, 3)):
        whole = torch.stack([patches[source] for patches, source in zip(few, merged.source, strict=True)])
        torch.testing.assert_close(early_summary(read, few, merged, grid), early_summary(read, whole, None, grid))


def test_equal_patches_lose_nothing_by_becoming_one():
    """Two of each kind of token: merged or not, attention sees the same."""
    torch.manual_seed(0)
    block, others = tiny_vit().blocks[0].eval(), torch.randn(2, 3, 64)
    patches = torch.randn(2, 4, 64).repeat_interleave(2, 1)  # an even and an odd place, equal
    x = torch.cat([others[:, :1], patches, others[:, 1:]], 1)
    with torch.no_grad():
        once, merged = run_merging(block, x, Merged.none(x, 1, 8), 4)
        whole = run_block(block, x)
        assert once.shape[1] == 7 and torch.equal(merged.size, torch.full((2, 4), 2.0))
        torch.testing.assert_close(once, torch.cat([whole[:, :1], whole[:, 1:9:2], whole[:, 9:]], 1))
        twice, _ = run_merging(block, once, merged)  # what stands for two weighs as two
        whole = run_block(block, whole)
        torch.testing.assert_close(twice, torch.cat([whole[:, :1], whole[:, 1:9:2], whole[:, 9:]], 1))


def test_merged_patches_are_the_mean_of_what_they_stand_for_and_no_other_token_is_touched():
    torch.manual_seed(0)
    x, before = torch.randn(3, 2 + PATCHES + 4, 8), None
    merged, first = Merged.none(x, 2, PATCHES), x
    for most in (5, 4, 3, 9):
        before = x.shape[1]
        x, merged = merged.merge(x, torch.randn(3, 2, before, 4), most)
        assert before - x.shape[1] == min(most, (before - 6) // 2)
        assert torch.equal(x[:, :2], first[:, :2]) and torch.equal(x[:, -4:], first[:, -4:])
    assert merged.patches == 2
    for stream in range(3):
        for place in range(2):
            members = merged.source[stream] == place
            assert members.sum() == merged.size[stream, place]
            torch.testing.assert_close(x[stream, 2 + place], first[stream, 2 : 2 + PATCHES][members].mean(0))


def test_the_most_similar_patches_are_merged():
    keys = torch.eye(8)[None, None].repeat(1, 2, 1, 1)
    keys[:, :, 6] = keys[:, :, 1] + 0.1  # an even and an odd place, alike
    x = torch.randn(1, 8, 4)
    left, merged = Merged.none(x, 0, 8).merge(x, keys, 1)
    assert merged.source.tolist() == [[0, 1, 2, 3, 4, 5, 1, 6]]
    torch.testing.assert_close(left[0, 1], (x[0, 1] + x[0, 6]) / 2)


@pytest.mark.parametrize("merge", [0, 3])
def test_the_map_of_attention_has_every_patch_and_sums_to_one(merge):
    model = make(merge).eval()
    for looks in model.attention_map(*random_pairs()):
        assert looks.shape == (6, PATCHES)
        torch.testing.assert_close(looks.sum(1), torch.ones(6))
        assert (len(looks[0].unique()) < PATCHES) == (merge > 0)


def test_the_map_gives_the_patches_of_a_token_what_the_token_gets():
    x = torch.randn(2, 9, 8)
    _, merged = Merged.none(x, 1, 6).merge(x, torch.randn(2, 2, 9, 4), 2)
    scores = torch.randn(2, 7)
    each = merged.spread(scores).softmax(-1)
    token = (scores[:, 1:5] + merged.size.log()).softmax(-1)  # as attention weighs them
    torch.testing.assert_close(torch.zeros(2, 4).scatter_add(1, merged.source, each), token)


@pytest.mark.parametrize("merge", [0, 1, 5, 100])
def test_what_is_left_for_the_last_block_is_what_the_last_block_gets(merge):
    model, seen = make(merge).eval(), []
    last = model.backbone.blocks[-1]
    last.norm1.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    model(*random_pairs(1))
    assert seen[0] - model.learned_tokens().shape[1] == left(PATCHES, merge, len(model.backbone.blocks))
