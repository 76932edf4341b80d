import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maavt.models import create_model
from maavt.models.head import Head
from maavt.models.maavt import MAAVT, MaavtConfig, early_summary, read_early
from maavt.models.vit import as_images, both, embed_patches, shorten, train_only
from maavt.training.losses import losses
from tests.models.reference import (
    CLASSES,
    disagreements,
    layer_scale_vit,
    load_vit,
    random_pairs,
    read_golden,
    tiny_vit,
)

BOTH = pytest.mark.parametrize("golden", ["maavt_no_background", "maavt_background"])
OWN = {"lora_rank": 3, "bottleneck": 4}
NAMES = {  # the authors' -> ours
    "audio_tokens": "prompts.audio.tokens", "visual_tokens": "prompts.visual.tokens",
    "shared_tokens": "prompts.shared.tokens", "bg_cls_token": "background_prompt",
    "audio_attn.": "prompts.audio.attention.", "visual_attn.": "prompts.visual.attention.",
    "shared_attn.": "prompts.shared.attention.", "audio_proj.": "audio_projectors.",
    "vis_proj.": "visual_projectors.", "fg_class.": "head.", "bg_class.": "background_head.",
}


def ours(name: str) -> str:
    start = next(start for start in NAMES if name == start or name.startswith(start) and start.endswith("."))
    return NAMES[start] + name.removeprefix(start)


def settings(**changes) -> dict:
    return {"classes": CLASSES, "background": True, "tokens": 2, **changes}


def make(**changes) -> MAAVT:
    return MAAVT(tiny_vit(), MaavtConfig(**settings(**changes)))


def golden_model(golden: str, contrastive: str = "blockwise") -> tuple[MAAVT, dict]:
    """Our model with the authors' weights, and their numbers. `final` has the last block's projectors alone."""
    theirs = read_golden(golden)
    vit = tiny_vit()
    load_vit(vit, theirs["weight"], "ViT.v.")
    model = MAAVT(vit, MaavtConfig(**settings(background=golden == "maavt_background", projector="linear",
                                              contrastive=contrastive)))
    weights = {ours(name): tensor for name, tensor in theirs["weight"].items()
               if not name.startswith(("ViT.", "logit_scale."))}  # their trained temperature is never used
    if contrastive == "final":
        weights = {re.sub(r"(projectors)\.2", r"\1.0", name): tensor for name, tensor in weights.items()
                   if not re.search(r"projectors\.[01]", name)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name == "class_prompt" or name.startswith("backbone.") for name in missing)
    train_only(model, model.trained() + model.training_only())
    return model.train(), theirs  # nothing in it differs between train and eval but the projections


def run(model: MAAVT, theirs: dict) -> dict[str, Tensor]:
    """What the golden file holds below out/, computed by our model."""
    pairs, labels = (theirs["in"]["image"], theirs["in"]["audio"]), theirs["in"]["label"]
    output = model(*pairs)
    parts = losses(output, labels)
    return {
        "fg_logits": output.logits, "bg_logits": output.background, "loss": parts.total, "fg_loss": parts.classes,
        "bg_loss": parts.background, "contrastive_loss": parts.contrastive,
        "visual_attention": model.attention_map(*pairs)[0],
    }


@BOTH
def test_logits_losses_and_attention_are_those_of_the_authors(golden):
    model, theirs = golden_model(golden)
    assert set(theirs["out"]) >= {"fg_logits", "loss", "contrastive_loss", "visual_attention"}
    assert not disagreements(run(model, theirs), theirs["out"], 1e-5)


@BOTH
def test_gradients_are_those_of_the_authors(golden):
    model, theirs = golden_model(golden)
    run(model, theirs)["loss"].backward()
    mine = {name: model.get_parameter(ours(name)).grad for name in theirs["grad"]}
    assert len(mine) > 20
    assert not disagreements(mine, theirs["grad"], 1e-4)


@BOTH
def test_the_golden_files_tell_a_weight_that_is_off_by_a_thousandth(golden):
    model, theirs = golden_model(golden)
    generator = torch.Generator().manual_seed(0)

    def agrees() -> bool:
        return not disagreements(run(model, theirs), theirs["out"], 1e-5)

    for name, weight in model.requires_grad_(False).named_parameters():
        if re.search(r"projectors\.\d\.bias", name):
            continue  # a thousandth there moves the contrastive loss by less than the tolerance
        kept = weight.detach().clone()
        weight.data += 1e-3 * torch.empty_like(weight).bernoulli_(generator=generator).mul(2).sub(1)
        assert not agrees(), name
        weight.data = kept
    assert agrees()


@BOTH
def test_evaluation_says_the_same_as_training_without_projections(golden):
    model, theirs = golden_model(golden)
    output = model.eval()(theirs["in"]["image"], theirs["in"]["audio"])
    assert output.projections is None
    assert not disagreements({"fg_logits": output.logits}, {"fg_logits": theirs["out"]["fg_logits"]}, 1e-5)


def test_only_the_declared_parameters_get_gradients():
    model = make()
    trained = train_only(model, model.trained() + model.training_only())
    losses(model.train()(*random_pairs()), torch.arange(6) - 1).total.backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in trained}
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())


def test_a_declared_name_that_no_parameter_has_is_refused():
    with pytest.raises(ValueError, match=r"MAAVT declares trained parameters that it does not have: \['hed'\]"):
        train_only(make(), ["head", "hed"])


def test_a_name_does_not_cover_others_that_begin_like_it():
    model = make()
    train_only(model, ["head"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("changes, gone", [
    ({"unimodal_prompts": False}, ("prompts.audio", "prompts.visual")),
    ({"shared_prompts": False, "contrastive": "off"}, ("prompts.shared", "audio_projectors", "visual_projectors")),
    ({"lsa": False}, ("prompts.audio.attention", "prompts.visual.attention", "prompts.shared.attention")),
    ({"contrastive": "off"}, ("audio_projectors", "visual_projectors")),
    ({"contrastive": "final"}, ("audio_projectors.1", "audio_projectors.2", "visual_projectors.1")),
    ({"background": False}, ("background_prompt", "background_head")),
    ({"tokens": 0, "contrastive": "off"}, ("prompts",)),
    ({"lora_rank": 0}, ("adapters.0.low", "adapters.2.high")),
    ({"lora_rank": 0, "bottleneck": 0}, ("adapters",)),
])
def test_an_ablation_removes_its_part_and_still_trains(changes, gone):
    whole = {name for name, _ in make(**OWN).named_parameters()}
    model = make(**OWN | changes)
    names = {name for name, _ in model.named_parameters()}
    assert names <= whole
    for part in gone:
        assert any(name.startswith(part) for name in whole)
        assert not any(name == part or name.startswith(f"{part}.") for name in names)
    trained = train_only(model, model.trained() + model.training_only())
    labels = torch.arange(6) - (1 if changes.get("background", True) else 0)
    parts = losses(model.train()(*random_pairs()), labels)
    parts.total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert (parts.contrastive == 0) == (changes.get("contrastive") == "off")


def test_the_heads_read_the_tokens_of_several_blocks_evenly_spaced_the_last_one_among_them():
    assert [read_early(count, 12) for count in (1, 2, 4, 5, 12, 40)] == [
        [], [5], [2, 5, 8], [1, 3, 6, 8], [*range(11)], [*range(11)]]
    pairs, models = random_pairs(), []
    for count in (3, 1):
        torch.manual_seed(0)
        models.append(make(head_blocks=count).eval())
    model, one = models
    found = model(*pairs)
    with torch.no_grad():  # the columns of a stream's last block are all that one that reads nothing else has
        for head, whole in ((one.head, model.head), (one.background_head, model.background_head)):
            picture, sound = whole.weight.chunk(2, 1)
            head.weight.copy_(torch.cat([picture[:, -64:], sound[:, -64:]], 1))
            head.bias.copy_(whole.bias)
            for stream in (picture, sound):
                assert stream.shape[1] == 5 * 64  # of the two blocks before the patches' mean, too
                stream[:, :-64] = 0
    assert not torch.allclose(found.logits, model(*pairs).logits, atol=1e-3)
    torch.testing.assert_close(model(*pairs).logits, one(*pairs).logits)
    torch.testing.assert_close(model(*pairs).background, one(*pairs).background)


def test_after_the_middle_block_of_these_the_heads_read_the_means_of_rows_and_columns_too():
    """A patch lies in one row and one column; of a spectrogram, at one moment and in one band of frequencies."""
    model = make(head_blocks=3, head_bands=True)
    assert model.head.sizes == [64 * (2 + 2 + 4 + 4), 64] * 2 and model.banded == model.early[1]
    assert make(head_blocks=1, head_bands=True).head.sizes == [64, 64]
    patches = torch.randn(2, 16, 8)
    changed = patches.clone()
    changed[:, 4 * 1 + 2] = torch.randn(2, 8)
    before, after = (early_summary(torch.zeros(2, 1, 8), some, None, (4, 4))[:, 0] for some in (patches, changed))
    token, mean, *bands = (before != after).unflatten(1, (-1, 8)).any(-1).all(0).tolist()
    assert (token, mean) == (False, True) and [number for number, new in enumerate(bands) if new] == [1, 4 + 2]


@pytest.mark.parametrize("pairs", [1, 2])
def test_more_prompts_than_patches_at_hand_begin_as_patches_too(pairs):
    model = make(prompt_init="patches", tokens=40)
    model.begin(*random_pairs(pairs), random_pairs(1))
    assert all(prompts.tokens.unique(dim=0).shape[0] > 1 for prompts in model.prompts.values())


def test_the_final_contrastive_loss_compares_the_last_block_alone():
    model, theirs = golden_model("maavt_no_background")
    final, _ = golden_model("maavt_no_background", contrastive="final")
    pairs = theirs["in"]["image"], theirs["in"]["audio"]
    (compared,), blockwise = final(*pairs).projections, model(*pairs).projections
    assert len(blockwise) == 3
    assert all(torch.equal(one, other) for one, other in zip(compared, blockwise[-1], strict=True))


@pytest.mark.parametrize("trains", ["all", "projectors"])
def test_the_contrastive_loss_trains_all_or_the_projectors_alone(trains):
    model = make(**OWN, contrastive_trains=trains)
    train_only(model, model.trained() + model.training_only())
    losses(model.train()(*random_pairs()), torch.arange(6)).contrastive.backward()
    moved = {name.split(".")[0] for name, parameter in model.named_parameters()
             if parameter.grad is not None and parameter.grad.any()}
    projectors = {"visual_projectors", "audio_projectors"}
    assert moved == projectors if trains == "projectors" else moved > projectors | {"prompts", "adapters"}


def test_what_each_stream_has_of_its_own_begins_at_zero():
    torch.manual_seed(0)
    plain, own = make(), make(**OWN)
    own.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(plain(*random_pairs()).logits, own(*random_pairs()).logits)


@pytest.mark.parametrize("stream, number", [("visual", 0), ("audio", 1)])
@pytest.mark.parametrize("part", ["high", "up"])
def test_what_a_stream_has_of_its_own_changes_nothing_in_the_other(stream, number, part):
    torch.manual_seed(0)
    model = make(**OWN).eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[:, (1 - number) * 64 : (2 - number) * 64].normal_()  # hears or sees the other stream alone
        before = model(*random_pairs()).logits
        for adapters in model.adapters:
            getattr(adapters, part)[number].normal_()
        assert torch.equal(model(*random_pairs()).logits, before)
        for adapters in model.adapters:
            getattr(adapters, part)[1 - number].normal_()
        assert not torch.allclose(model(*random_pairs()).logits, before)


def test_a_stream_alone_is_a_vit_with_the_update_added_to_its_weights():
    """The visual stream beside timm's own blocks, whose qkv weights hold the visual update."""
    torch.manual_seed(0)
    vit = layer_scale_vit()
    model = MAAVT(vit, MaavtConfig(**settings(background=False, tokens=0, contrastive="off", lora_rank=3)))
    with torch.no_grad():
        for adapters in model.adapters:
            adapters.high.normal_(std=0.1)
        model.head.weight.copy_(torch.eye(CLASSES, 128))
        model.head.bias.zero_()
        cls, pairs = model.class_prompt.clone(), random_pairs()
        logits, looks = model.eval()(*pairs).logits, model.attention_map(*pairs)[0]
        for block, adapters in zip(vit.blocks, model.adapters, strict=True):
            block.attn.qkv.weight += (adapters.low[0] @ adapters.high[0]).T
        vit.cls_token = torch.nn.Parameter(cls[None])
        assert torch.allclose(logits, vit.forward_features(pairs[0])[:, 0, :CLASSES], atol=1e-5)
        merged = MAAVT(vit, MaavtConfig(**settings(background=False, tokens=0, contrastive="off")))
        assert torch.allclose(looks, merged.attention_map(*pairs)[0], atol=1e-5)


def test_prompts_begin_as_patches_of_the_pairs_where_that_is_asked_for():
    torch.manual_seed(0)
    model, pairs = make(prompt_init="patches", tokens=3), random_pairs()
    model.begin(*pairs, nothing(pairs))
    see, hear = (embed_patches(model.backbone, images).flatten(0, 1)
                 for images in (pairs[0], as_images(pairs[1])))

    def among(prompts, patches):
        return [any(torch.allclose(prompt, patch, atol=1e-6) for patch in patches) for prompt in prompts]

    learned = model.learned_tokens()  # class prompt, background prompt, three of its own, three shared
    assert all(among(learned[0, 2:5], see)) and all(among(learned[1, 2:5], hear))
    assert torch.equal(learned[0, 5:], learned[1, 5:])
    assert among(learned[0, 5:], see) == [True, True, False] and among(learned[0, 5:], hear) == [False, False, True]
    assert torch.allclose(learned[0, 0], learned[0, 1])


def test_prompts_of_the_paper_stay_random_when_training_begins():
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.begin(*random_pairs(), nothing(random_pairs()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_logits_of_early_blocks_and_last_one_of_both_streams_sum_to_those_of_all():
    model, pairs = make(head_blocks=2).train(), random_pairs()
    output = model(*pairs)
    assert len(output.streams) == 4
    torch.testing.assert_close(sum(output.streams) - 3 * model.head.bias, output.logits)

    def stays(other):
        return [torch.equal(part, before) for part, before in zip(other.streams, output.streams, strict=True)]

    assert stays(model(pairs[0], pairs[1] * 0)) == [True, True, False, False]  # picture early, last, sound early, last
    model.backbone.norm.weight.data.mul_(2)  # which the last block alone is read through
    assert stays(model(*pairs)) == [True, False, True, False]


def test_the_logits_of_both_streams_alone_sum_to_those_of_both():
    model, pairs = make().train(), random_pairs()
    output = model(*pairs)
    seen, heard = output.streams
    torch.testing.assert_close(seen + heard - model.head.bias, output.logits)
    silent = model(pairs[0], pairs[1] * 0).streams
    assert torch.equal(silent[0], seen) and not torch.allclose(silent[1], heard)
    assert model.eval()(*pairs).streams is None


def nothing(pairs):
    """What stands in for an absent picture, and for an absent sound."""
    return torch.zeros_like(pairs[0][:1]), torch.zeros_like(pairs[1][:1])


def test_what_the_heads_read_of_the_first_pairs_is_standardised_but_where_absent_ones_lie():
    torch.manual_seed(0)
    model, pairs = make(standardise=True, head_blocks=2).eval(), random_pairs(40)
    before = model(*pairs)
    model.begin(*pairs, nothing(pairs))
    read, after = both(model.for_inference().encode(*pairs)), model(*pairs)
    for number, (head, said) in enumerate(((model.head, after.logits), (model.background_head, after.background))):
        found = read[:, number]
        deviation = found.std(0, correction=0).clamp_min(0.01) * 3 ** 0.5  # two parts of one block, one of the last
        counted = (found - found.mean(0)) / deviation
        halves = []
        for half, absent in zip(counted.chunk(2, 1), head.absent, strict=True):
            torch.testing.assert_close(absent.norm(), torch.tensor(1.0))
            halves.append(half - torch.outer(half @ absent, absent))
        expected = F.linear(torch.cat(halves, 1), head.weight, head.bias)
        torch.testing.assert_close(said.view_as(expected), expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(before.logits, after.logits, atol=0.01)


def test_an_absent_picture_or_sound_adds_nothing_to_what_a_head_says():
    torch.manual_seed(0)
    model, pairs = make(standardise=True, head_blocks=2).eval(), random_pairs(40)
    model.begin(*pairs, nothing(pairs))
    unseen, unheard = nothing(pairs)
    torch.testing.assert_close(model(unseen, unheard).logits[0], model.head.bias, atol=1e-4, rtol=0)
    parts = model.head.each(both(model.for_inference().encode(*pairs))[:, 0])
    seen, heard = (part + model.head.bias for part in parts.unflatten(0, (2, 2)).sum(1))
    torch.testing.assert_close(model(pairs[0], unheard.expand(40, -1, -1)).logits, seen, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(model(unseen.expand(40, -1, -1, -1), pairs[1]).logits, heard, atol=1e-3, rtol=1e-3)


def test_a_number_that_hardly_differs_between_pairs_is_not_blown_up():
    head = Head([2], 3, standardise=True)
    read = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0]])
    head.begin(read, read.mean(0))
    assert head.deviation.tolist() == pytest.approx([0.01, 0.01, 0.01, 0.5]) and head.mean.tolist() == [1, 2, 3, 4.5]
    assert head.absent.eq(0).all()  # it lies nowhere but at the mean


@pytest.mark.parametrize("projector, outputs", [("mlp", 256), ("linear", 512)])
def test_projectors_have_the_outputs_of_the_supplement_or_of_the_released_code(projector, outputs):
    output = make(projector=projector).train()(*random_pairs())
    assert output.projections[0][0].shape == (6, outputs)


def test_layer_scales_of_the_backbone_are_applied_in_the_last_block_too():
    vit = layer_scale_vit()
    model = MAAVT(vit, MaavtConfig(**settings(background=False, tokens=0, contrastive="off")))
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(CLASSES, 128))  # logits are the first numbers of the visual summary
        model.head.bias.zero_()
        cls, frames, sound = model.class_prompt.clone(), *random_pairs()
        logits = model.eval()(frames, sound).logits
        vit.cls_token = torch.nn.Parameter(cls[None])
        assert torch.allclose(logits, vit.forward_features(frames)[:, 0, :CLASSES], atol=1e-5)


@pytest.mark.parametrize("changes, told", [
    ({"tokens": -1}, "tokens: -1; expected 0 or more"),
    ({"lora_rank": -1}, "lora_rank: -1; expected 0 or more"),
    ({"head_blocks": 0}, "head_blocks: 0; expected 1 or more"),
    ({"projector": "conv"}, "projector: 'conv'; expected one of mlp, linear"),
    ({"contrastive": "on"}, "contrastive: 'on'; expected blockwise, final or off"),
    ({"contrastive_trains": "none"}, "contrastive_trains: 'none'; expected all or projectors"),
    ({"tokens": 0}, "the contrastive loss needs shared prompts"),
    ({"shared_prompts": False}, "the contrastive loss needs shared prompts"),
])
def test_settings_that_make_no_model_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        make(**changes)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="8 attention heads do not divide the width 60"):
        MAAVT(tiny_vit(embed_dim=60), MaavtConfig(**settings()))


@pytest.mark.parametrize("name", ["maavt", "lavish", "mbt"])
def test_a_model_of_the_first_blocks_has_no_others_and_the_whole_one_is_as_the_backbone_is(name):
    own = {"classes": 5, "background": True}
    whole, two = (create_model(name, layer_scale_vit(), {**own, "depth": depth}).eval() for depth in (1, 0.67))
    named = {key.replace("visual.", "backbone.") for key, _ in two.named_parameters()}
    assert not any(key.startswith("backbone.blocks.2") or key == "backbone.norm.weight" for key in named)
    assert any(key.startswith("backbone.blocks.1") for key in named)
    assert len(list(whole.parameters())) > len(list(two.parameters()))
    pairs = random_pairs(2)
    torch.testing.assert_close(two(*pairs).logits, two.for_inference()(*pairs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share, blocks", [(1, 12), (0.75, 9), (0.5, 6), (0.01, 1)])
def test_a_share_of_the_blocks_is_kept_and_at_least_one(share, blocks):
    vit = tiny_vit(depth=12)
    first = list(vit.blocks)[:blocks]
    shorten(vit, share)
    assert all(kept is block for kept, block in zip(vit.blocks, first, strict=True))
    assert len(vit.blocks) == blocks and isinstance(vit.norm, torch.nn.LayerNorm)
    assert (vit.norm.weight is None) == (blocks < 12)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_what_is_no_share_of_the_blocks_is_refused(share):
    with pytest.raises(ValueError, match="depth: .*; expected more than 0 and at most 1"):
        create_model("maavt", tiny_vit(), settings() | {"depth": share})


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'resnet'; expected one of maavt"):
        create_model("resnet", tiny_vit(), settings())
