"""The probe, LAVISH and MBT go through the stages that MA-AVT goes through."""

import json

import pytest
import torch
from safetensors.torch import load_file

from maavt.models.backbone import load_backbone
from maavt.stages import evaluate, train
from maavt.training.adapter import load_adapter


@pytest.mark.parametrize("name", ["linear", "lavish", "mbt"])
def test_a_model_is_trained_saved_loaded_and_evaluated(project, name):
    train.main(["--model", name])
    evaluate.main(["--model", name])
    metrics = json.loads((project / "data" / "eval" / name / "metrics.json").read_text())
    assert 0 <= metrics["accuracy"] <= 1 and "accuracy_background" in metrics
    weights = load_file(project / "data" / "models" / name / "adapter.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    model, _, config = load_adapter(project / "data" / "models" / name)
    assert config["model"] == name and model.config.background
    tuned = {key for key in weights if key.startswith(("visual.", "audio.", "backbone."))}
    if name != "mbt":
        assert not tuned
    else:  # both encoders were tuned, each on its own
        start = load_backbone(config["backbone"], image_size=config["image_size"]).state_dict()
        for stream in ("visual", "audio"):
            assert not torch.equal(weights[f"{stream}.blocks.0.mlp.fc1.weight"], start["blocks.0.mlp.fc1.weight"])
        assert len(tuned) == 2 * len(start)
