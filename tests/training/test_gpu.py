"""What holds on a GPU alone; skipped without one."""

import warnings

import pytest
import torch

from maavt.models import MODELS, create_model
from maavt.models.vit import train_only
from maavt.shards.loader import Batch
from maavt.training.losses import losses, mine_background
from maavt.training.runtime import Normaliser, pick_device, place
from tests.models.reference import CLASSES, layer_scale_vit, random_pairs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
SETTINGS = [*((name, {}) for name in MODELS), ("maavt", {"merge": 3, "lora_rank": 3, "bottleneck": 4})]
EACH = pytest.mark.parametrize("name, settings", SETTINGS)


def make(name: str, settings: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    return place(create_model(name, layer_scale_vit(), {"classes": CLASSES, "background": True, **settings}),
                 pick_device())


def waits(step) -> list[str]:
    """What made the host wait for the GPU in a step, after two others."""
    step()
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]


def test_waiting_is_noticed():
    assert waits(lambda: torch.ones((), device="cuda").item())


@EACH
def test_a_training_step_never_waits_for_the_gpu(name, settings):
    model, device = make(name, settings).train(), pick_device()
    trained = train_only(model, model.trained() + model.training_only())
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    normalise = Normaliser(32, (0.5,) * 3, (0.5,) * 3, 0.0, 1.0)
    frames, sound = random_pairs()
    batch = Batch(frames.clamp(0).mul(99).byte().pin_memory(), sound.half().pin_memory(),
                  (torch.arange(6) - 1).pin_memory(), [""] * 6, [0.0] * 6)

    def step() -> None:
        frames, sound, labels = normalise(batch, device)
        sound, labels, _ = mine_background(sound, labels, 0.2, generator)
        losses(model(frames, sound), labels).total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    assert not waits(step)


@EACH
@torch.inference_mode()
def test_inference_never_waits_for_the_gpu(name, settings):
    form, device = make(name, settings).eval().for_inference(), pick_device()
    pairs = [tensor.to(device) for tensor in random_pairs()]
    assert not waits(lambda: form(*pairs))
