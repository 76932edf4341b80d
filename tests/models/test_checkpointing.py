import pytest
import torch

from maavt.models import create_model
from maavt.models.vit import train_only
from maavt.training.losses import losses
from tests.models.reference import CLASSES, layer_scale_vit, random_pairs

SETTINGS = [("maavt", {"tokens": 2, "lora_rank": 3, "bottleneck": 4}), ("maavt", {"tokens": 2, "merge": 3}),
            ("lavish", {"batch_norm": True}), ("mbt", {"fusion_layer": 1})]


@pytest.mark.parametrize("name, settings", SETTINGS)
def test_activations_made_again_on_the_way_back_change_no_gradient_and_take_less_memory(name, settings):
    found, held = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = create_model(name, layer_scale_vit(), {"classes": CLASSES, "background": True, **settings}).train()
        model.checkpointing = checkpointing
        trained = train_only(model, model.trained() + model.training_only())
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            parts = losses(model(*random_pairs()), torch.arange(6) - 1)
        grads = torch.autograd.grad(parts.total, trained)
        found.append((parts.total.detach(), *grads, *(b for _, b in model.named_buffers() if b.is_floating_point())))
        held.append(sum(kept.values()))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)
    assert held[1] < 0.8 * held[0]
