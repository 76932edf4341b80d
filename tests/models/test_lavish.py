import pytest
import torch

from maavt.models.lavish import LAVISH, LavishConfig
from maavt.models.vit import count, train_only
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

PARTS = {  # the authors' -> ours
    "my_tokens": "latents", "gate": "gate", "gate_av": "gate_latents", "gate_tk": "gate_gathered",
    "ln_before": "norm_before", "ln_post": "norm_after", "down_sampler": "down", "up_sampler": "up",
}
PLACES = {"p1": "attention", "p2": "mlp"}


def ours(name: str) -> str:
    if name.startswith("mlp_class"):
        return name.replace("mlp_class_2", "head.1").replace("mlp_class", "head.0")
    place, number, part, *rest = name.split(".")
    stream = {"vis": "visual", "aud": "audio"}[place[:3]]
    return ".".join(["adapters", f"{stream}_{PLACES[place[-2:]]}", number, PARTS[part], *rest])


def settings(**changes) -> LavishConfig:
    return LavishConfig(**{"classes": CLASSES, "background": False, "reduction": 8, "latents": 2, "batch_norm": False,
                           **changes})


def golden_model() -> tuple[LAVISH, dict]:
    """Our model with the authors' weights, and their numbers (golden/lavish.safetensors)."""
    theirs = read_golden("lavish")
    vit = tiny_vit()
    load_vit(vit, theirs["weight"], "ViT.v.")
    model = LAVISH(vit, settings())
    weights = {ours(name): tensor.flatten(1) if tensor.dim() == 4 else tensor  # a 1 x 1 convolution is a matrix
               for name, tensor in theirs["weight"].items() if not name.startswith("ViT.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("backbone.") for name in missing)
    train_only(model, model.trained())
    return model.train(), theirs


def run(model: LAVISH, theirs: dict) -> dict[str, torch.Tensor]:
    output = model(theirs["in"]["image"], theirs["in"]["audio"])
    return {"logits": output.logits, "loss": losses(output, theirs["in"]["label"]).total}


def test_batch_norms_go_by_all_tokens_in_training_even_where_one_alone_is_read():
    """As in the authors' code, which computes all tokens of the last block."""
    torch.manual_seed(0)
    model, pairs = LAVISH(tiny_vit(), settings(batch_norm=True)).train(), random_pairs(3)
    with torch.no_grad():
        for tensor in model.adapters.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    seen = []
    for place in ("visual_mlp", "audio_mlp"):
        model.adapters[place][-1].batch_norm_down.register_forward_hook(lambda norm, given, made: seen.append(given[0]))
    model(*pairs)
    assert [one.shape[0] * (one.shape[2] if one.dim() == 3 else 1) for one in seen] == [3 * 17, 3 * 17]
    before = [norm.running_mean.clone() for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm1d)]
    model.eval()(*pairs)
    assert all(torch.equal(old, norm.running_mean) for old, norm in zip(before, (
        norm for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm1d)), strict=True))


def test_logits_and_loss_are_those_of_the_authors():
    model, theirs = golden_model()
    assert not disagreements(run(model, theirs), theirs["out"], 1e-5)


def test_gradients_are_those_of_the_authors():
    model, theirs = golden_model()
    run(model, theirs)["loss"].backward()
    mine = {name: model.get_parameter(ours(name)).grad for name in theirs["grad"]}
    assert len(mine) > 100
    assert not disagreements(mine, theirs["grad"], 1e-4)


def test_the_golden_file_tells_a_weight_that_is_off_by_a_thousandth():
    model, theirs = golden_model()
    generator = torch.Generator().manual_seed(0)
    faint = ("latents", "gate_latents", "gate_gathered")  # hardly heard in one adapter alone: moved in all at once
    groups = {}
    for name, weight in model.requires_grad_(False).named_parameters():
        last = name.rpartition(".")[2]
        groups.setdefault(last if last in faint else name, []).append(weight)
    for name, weights in groups.items():
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight += 1e-3 * torch.empty_like(weight).bernoulli_(generator=generator).mul(2).sub(1)
        assert disagreements(run(model, theirs), theirs["out"], 1e-5), name
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)
    assert not disagreements(run(model, theirs), theirs["out"], 1e-5)


@pytest.mark.parametrize("changes", [{}, {"batch_norm": True}, {"expansion": 3}, {"background": True},
                                     {"groups": 1, "latents": 5}])
def test_every_declared_parameter_learns_and_no_other(changes):
    model = LAVISH(layer_scale_vit(), settings(**changes)).train()
    for name, parameter in model.named_parameters():
        if "gate" in name:
            torch.nn.init.constant_(parameter, 0.5)  # at 0 a gate keeps the gradient from what it closes
    trained = train_only(model, model.trained())
    losses(model(*random_pairs()), torch.arange(6) - int(model.config.background)).total.backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in trained}


def test_adapters_begin_by_changing_nothing():
    vit = tiny_vit()
    model = LAVISH(vit, settings()).eval()
    frames, sound = random_pairs()
    audio = vit.forward_features(sound[:, None].expand(-1, 3, -1, -1))[:, 0]
    wanted = model.head(vit.forward_features(frames)[:, 0], audio).logits
    torch.testing.assert_close(model(frames, sound).logits, wanted, atol=1e-5, rtol=0)


def test_background_is_one_more_class_of_the_same_softmax():
    model = LAVISH(tiny_vit(), settings(background=True)).eval()
    output = model(*random_pairs())
    assert output.logits.shape == (6, CLASSES) and output.background.shape == (6,)
    labels = torch.tensor([0, -1, 3, 2, -1, 1])
    joint = torch.cat([output.logits, output.background[:, None]], 1)
    wanted = torch.nn.functional.cross_entropy(joint, labels.where(labels >= 0, CLASSES))
    parts = losses(output, labels)
    torch.testing.assert_close(parts.total, wanted)
    assert parts.background == 0
    best = joint.argmax(-1)
    assert output.predicted().tolist() == best.where(best < CLASSES, -1).tolist()
    classes, empty = output.probabilities()
    torch.testing.assert_close(torch.cat([classes * (1 - empty[:, None]), empty[:, None]], 1), joint.softmax(-1))


@pytest.mark.parametrize("width, expansion, published", [
    (192, 0, 0.65e6), (384, 0, 1.65e6), (768, 0, 4.7e6), (768, 3, 7.3e6), (1024, 0, 14.5e6),
])
def test_default_settings_have_the_trainable_parameters_of_table_7(width, expansion, published):
    with torch.device("meta"):
        vit = tiny_vit(embed_dim=width, depth=24 if width == 1024 else 12)
        model = LAVISH(vit, LavishConfig(classes=28, background=True, expansion=expansion))
    assert count(train_only(model, model.trained())) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("changes, told", [
    ({"reduction": 0}, "reduction: 0; expected 1 or more"),
    ({"latents": 0}, "latents: 0; expected 1 or more"),
    ({"expansion": -1}, "expansion: -1; expected 0 or more"),
    ({"groups": 3}, "expected groups that divide both widths"),
    ({"reduction": 128}, "reduction: 128 leaves 0 of 64 channels"),
])
def test_settings_that_make_no_model_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        LAVISH(tiny_vit(), settings(**changes))
