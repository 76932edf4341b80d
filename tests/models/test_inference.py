import pytest
import torch
from hypothesis import given
from hypothesis import settings as run
from hypothesis import strategies as st
from torch import nn

from maavt.models import MODELS, choice, create_model
from maavt.models.inference import Linear
from maavt.models.vit import attend, fused_attention, plain_attention
from tests.models.reference import CLASSES, layer_scale_vit, load_vit, random_pairs, read_golden, tiny_vit

VARIANTS = {
    "maavt": [{"background": True}, {"background": False, "lsa": False}, {"background": True, "tokens": 0,
              "contrastive": "off"}, {"background": True, "unimodal_prompts": False},
              {"background": True, "lora_rank": 3, "bottleneck": 6}, {"background": False, "lora_rank": 2},
              {"background": False, "bottleneck": 4}, {"background": True, "head_blocks": 3, "head_bands": True},
              {"background": False, "head_blocks": 2}],
    "linear": [{"background": True}, {"background": False}],
    "lavish": [{"background": True}, {"background": False, "batch_norm": True, "expansion": 3}],
    "mbt": [{"background": True}, {"background": False, "fusion_layer": 0}, {"background": False, "fusion_layer": 3}],
}
ALL = pytest.mark.parametrize("name, settings", [(name, one) for name, many in VARIANTS.items() for one in many])


def make(name: str, settings: dict) -> nn.Module:
    """A model none of whose parts is without effect."""
    torch.manual_seed(0)
    model = create_model(name, layer_scale_vit(), {"classes": CLASSES, **settings}).eval()
    kept = ("backbone.", "visual.", "audio.")
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not (key.startswith(kept) or key.endswith("running_var")):
                tensor.add_(0.1 * torch.randn_like(tensor).clamp(-2, 2))  # gates open, norms that do something
    return model


def numbers(output) -> torch.Tensor:
    """Logits with the background's: (B, C) or (B, C + 1)."""
    return output.logits if output.background is None else torch.cat([output.logits, output.background[:, None]], 1)


def test_every_model_is_tried():
    assert VARIANTS.keys() == MODELS.keys()


@ALL
@torch.inference_mode()
def test_the_form_for_inference_equals_the_trained_form(name, settings):
    model = make(name, settings)
    form = model.for_inference()
    for pairs in (6, 1):
        wanted, found = model(*random_pairs(pairs)), form(*random_pairs(pairs))
        torch.testing.assert_close(numbers(found), numbers(wanted), atol=1e-5, rtol=0)
        assert found.one_softmax == wanted.one_softmax
        assert (found.background is None) == (wanted.background is None)


@ALL
@torch.inference_mode()
def test_in_bf16_the_form_for_inference_is_within_rounding(name, settings):
    model, pairs = make(name, settings), random_pairs(32)
    exact = numbers(model(*pairs))
    scale = exact.std()
    for pack in (True, False):
        off = (numbers(model.for_inference(torch.bfloat16, pack=pack)(*pairs)) - exact).abs()
        assert 0 < off.mean() < 0.01 * scale and off.max() < 0.06 * scale


INT8 = pytest.mark.skipif(not choice.multiplies_int8(), reason="this CPU has no products of int8")


@INT8
@ALL
@torch.inference_mode()
def test_in_int8_the_form_for_inference_is_near(monkeypatch, name, settings):
    monkeypatch.setattr(choice, "CHOSEN", {})
    model, pairs = make(name, settings), random_pairs(32)
    exact = numbers(model(*pairs))
    choice.use_int8(True)
    rounded, whole = numbers(model.for_inference()(*pairs)), numbers(model.for_inference(pack=False)(*pairs))
    assert 1e-4 * exact.std() < (rounded - exact).abs().mean() < 0.1 * exact.std()
    torch.testing.assert_close(whole, exact, atol=1e-5, rtol=0)  # what is exported or compiled stays as it is


@INT8
@run(max_examples=50, deadline=None)
@given(st.floats(-100, 100), st.sampled_from([0.0, 1e-3, 1.0, 30.0]), st.sampled_from(["none", "relu", "gelu"]))
@torch.inference_mode()
def test_a_layer_in_int8_is_within_its_steps_whatever_comes_in(middle, spread, act):
    layer, rounded = (Linear(torch.randn(40, 64) / 8, torch.randn(40), torch.float32, pack=False) for _ in range(2))
    rounded.bias, rounded.weight = layer.bias, layer.weight
    rounded.round()
    x, add = middle + spread * torch.randn(3, 9, 64), torch.randn(3, 9, 40)
    half_steps = (x.max().clamp_min(0) - x.min().clamp_max(0)) / 255 / 2 + x.abs().max() / 127 / 2  # its, the weights'
    most = 1.2 * x.shape[-1] * layer.weight.abs().max() * half_steps
    torch.testing.assert_close(rounded(x, act), layer(x, act), atol=float(most) + 1e-4, rtol=0)
    part = rounded(x[:, :4], add=add[:, :4])  # with gaps between what is read
    torch.testing.assert_close(part, rounded(x[:, :4].contiguous()) + add[:, :4])
    assert rounded(x * float("nan")).isnan().all() and rounded(x * float("inf")).isnan().all()


@pytest.mark.parametrize("name, golden, prefix", [("maavt", "maavt_background", "ViT.v.")])
def test_the_form_for_inference_keeps_neither_projectors_nor_attention_over_prompts(name, golden, prefix):
    vit = tiny_vit()
    load_vit(vit, read_golden(golden)["weight"], prefix)
    form = create_model(name, vit, {"classes": CLASSES, "background": True, "tokens": 2}).for_inference()
    assert not [key for key, _ in form.named_modules() if "projector" in key or "prompts" in key]
    assert form.learned.shape == (2, 1 + 1 + 2 + 2, 64)


@pytest.mark.parametrize("name", MODELS)
def test_the_form_for_inference_has_nothing_to_train_and_leaves_the_model_as_it_was(name):
    model = make(name, {"background": True})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    form = model.for_inference(torch.bfloat16)
    assert not [key for key, parameter in form.named_parameters() if parameter.requires_grad]
    after = model.state_dict()
    assert all(torch.equal(tensor, after[key]) and tensor.dtype == after[key].dtype for key, tensor in before.items())


def test_both_attention_kernels_say_the_same():
    q, k, v = (torch.randn(2, 4, 9, 16) for _ in range(3))
    torch.testing.assert_close(fused_attention(q, k, v), plain_attention(q, k, v))
    forwards = attend(q, k, v)
    torch.testing.assert_close(attend(q.requires_grad_(), k, v), forwards)
