import pytest
import torch

from maavt.models.mbt import MBT, MbtConfig
from maavt.models.vit import train_only
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


def ours(name: str) -> str:
    return name.replace("mlp_class_2", "head.1").replace("mlp_class", "head.0").replace("shared_tokens", "bottlenecks")


def settings(**changes) -> MbtConfig:
    return MbtConfig(**{"classes": CLASSES, "background": False, **changes})


def golden_model() -> tuple[MBT, dict]:
    """Our model with the authors' weights, without exchange, and their numbers (golden/mbt_reference.safetensors)."""
    theirs = read_golden("mbt_reference")
    model = MBT(tiny_vit(), settings(bottlenecks=5, fusion_layer=3))
    load_vit(model.visual, theirs["weight"], "IViT.v.")
    load_vit(model.audio, theirs["weight"], "AViT.v.")
    weights = {ours(name): tensor for name, tensor in theirs["weight"].items() if "ViT." not in name}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith(("visual.", "audio.")) for name in missing)
    return model.train(), theirs


def run(model: MBT, theirs: dict) -> dict[str, torch.Tensor]:
    output = model(theirs["in"]["image"], theirs["in"]["audio"])
    return {"logits": output.logits, "loss": losses(output, theirs["in"]["label"]).total}


def test_without_exchange_logits_and_loss_are_those_of_the_authors():
    model, theirs = golden_model()
    assert not disagreements(run(model, theirs), theirs["out"], 1e-5)


def test_without_exchange_gradients_are_those_of_the_authors():
    model, theirs = golden_model()
    run(model, theirs)["loss"].backward()
    mine = {name: model.get_parameter(ours(name)).grad for name in theirs["grad"]}
    assert not disagreements(mine, theirs["grad"], 1e-4)


def test_the_golden_file_tells_a_weight_that_is_off_by_a_thousandth():
    model, theirs = golden_model()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.requires_grad_(False).named_parameters():
        kept = weight.detach().clone()
        weight.data += 1e-3 * torch.empty_like(weight).bernoulli_(generator=generator).mul(2).sub(1)
        assert disagreements(run(model, theirs), theirs["out"], 1e-5), name
        weight.data = kept
    assert not disagreements(run(model, theirs), theirs["out"], 1e-5)


def plainly(model: MBT, frames: torch.Tensor, sound: torch.Tensor, fusion_layer: int) -> torch.Tensor:
    """Equations 8 and 9 of the paper on timm's own blocks, every token of every block computed."""
    streams = [vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
               for vit, x in ((model.visual, frames), (model.audio, sound[:, None].expand(-1, 3, -1, -1)))]
    shared = model.bottlenecks.expand(len(frames), -1, -1)
    for number in range(len(model.visual.blocks)):
        blocks = model.visual.blocks[number], model.audio.blocks[number]
        if number < fusion_layer:
            streams = [block(x) for block, x in zip(blocks, streams, strict=True)]
        else:
            updated = [block(torch.cat([x, shared], 1)) for block, x in zip(blocks, streams, strict=True)]
            streams = [x[:, : -shared.shape[1]] for x in updated]
            shared = torch.stack([x[:, -shared.shape[1] :] for x in updated]).mean(0)
    visual, audio = (vit.norm(x)[:, 0] for vit, x in zip((model.visual, model.audio), streams, strict=True))
    return model.head(visual, audio).logits


@pytest.mark.parametrize("fusion_layer", [0, 1, 2])
def test_bottlenecks_are_exchanged_from_the_fusion_layer_on(fusion_layer):
    model = MBT(layer_scale_vit(), settings(fusion_layer=fusion_layer)).eval()
    torch.nn.init.normal_(model.bottlenecks)
    for parameter in model.audio.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)  # the streams learn apart
    pairs = random_pairs()
    torch.testing.assert_close(model(*pairs).logits, plainly(model, *pairs, fusion_layer), atol=1e-5, rtol=0)


def test_the_streams_hear_of_each_other_through_the_bottlenecks_alone():
    frames, sound = random_pairs()

    def seen(fusion_layer: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = MBT(tiny_vit(), settings(fusion_layer=fusion_layer)).eval()
        model.head[0].weight.data[:, :64] = 0  # the audio CLS token
        return model(frames, sound).logits - model(frames, torch.zeros_like(sound)).logits

    assert seen(3).abs().max() == 0
    assert seen(1).abs().max() > 1e-6


@pytest.mark.parametrize("depth, layer", [(12, 8), (24, 16), (3, 2)])
def test_fusion_begins_after_two_thirds_of_the_blocks(depth, layer):
    with torch.device("meta"):
        assert MBT(tiny_vit(depth=depth), settings()).fusion_layer == layer


def test_everything_is_trained_in_float32_and_multiplied_in_the_compute_type():
    model = MBT(tiny_vit(), settings(background=True)).train()
    trained = train_only(model, model.trained())
    assert {id(p) for p in trained} == {id(p) for p in model.parameters()}
    exact = model(*random_pairs()).logits
    model.set_compute_type(torch.bfloat16)
    output = model(*random_pairs())
    assert 0 < (output.logits - exact).abs().max() < 0.1
    losses(output, torch.arange(6) - 1).total.backward()
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("changes", [{"bottlenecks": -1}, {"fusion_layer": -1}])
def test_settings_that_make_no_model_are_refused(changes):
    with pytest.raises(ValueError, match="-1; expected 0 or more"):
        settings(**changes)
