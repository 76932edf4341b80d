import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from maavt.errors import UserError
from maavt.models.backbone import create_backbone, load_backbone
from maavt.stages import backbone
from maavt.stages.backbone import read_dinov2_onnx
from maavt.work import sha256
from tests.conftest import tiny_settings

NAME = "vit_tiny_patch16_224"


def use(project: Path, **changes) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_settings(**changes)))


def test_the_weights_come_with_where_they_are_from_and_their_hash(made):
    facts = json.loads((made / f"data/backbone/{NAME}.json").read_text())
    assert facts["source"] == "random numbers, seed 0" and facts["licence"] == "none"
    assert facts["sha256"] == sha256(made / f"data/backbone/{NAME}.safetensors")


def test_weights_of_a_path_are_taken_as_they_are(project):
    weights = create_backbone(NAME).state_dict()
    save_file(weights, project / "mine.safetensors")
    use(project, weights="mine.safetensors")
    backbone.main([])
    kept = load_file(project / f"data/backbone/{NAME}.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("content, told", [
    (None, "no file .*mine.safetensors; expected packaged, timm, random or the path"),
    (b"not weights", "is not a .safetensors file"),
])
def test_weights_that_cannot_be_read_are_named(project, content, told):
    if content is not None:
        (project / "mine.safetensors").write_bytes(content)
    use(project, weights="mine.safetensors")
    with pytest.raises(UserError, match=told):
        backbone.main([])


def test_weights_that_do_not_fit_are_refused(project):
    save_file(create_backbone("vit_small_patch16_224").state_dict(), project / "mine.safetensors")
    use(project, weights="mine.safetensors")
    with pytest.raises(UserError, match=f"does not fit {NAME}"):
        backbone.main([])


def test_a_hub_out_of_reach_is_an_error_and_leaves_the_old_weights(project):
    before = sha256(project / f"data/backbone/{NAME}.safetensors")
    use(project, weights="timm")
    away = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(project / "hub")}
    done = subprocess.run([sys.executable, "-m", "maavt.stages.backbone"], cwd=project, env=os.environ | away,
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not be had from the Hugging Face hub" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sha256(project / f"data/backbone/{NAME}.safetensors") == before


@pytest.mark.parametrize("size", [16, 48, 224])
def test_position_embeddings_fit_every_size_and_the_class_position_stays(made, monkeypatch, size):
    monkeypatch.chdir(made)
    vit, native = load_backbone(NAME, image_size=size), load_backbone(NAME, image_size=224)
    assert vit.pos_embed.shape[1] == 1 + (size // 16) ** 2
    assert torch.equal(vit.pos_embed[:, 0], native.pos_embed[:, 0])
    assert vit(torch.randn(1, 3, size, size)).shape == (1, 192)


@pytest.mark.parametrize("name, size, told", [
    ("vit_gigantic", None, "is not a model of timm"),
    ("resnet18", None, "is not a Vision Transformer with one CLS token"),
    ("vit_small_patch16_224", 100, "100 is not a multiple of the patch size 16"),
])
def test_what_is_no_backbone_is_refused_with_the_reason(name, size, told):
    with pytest.raises(UserError, match=told):
        create_backbone(name, image_size=size)


def test_an_onnx_export_of_dinov2_gives_the_same_features(tmp_path):
    """A graph with the packaged file's names: anonymous linear weights, stored transposed."""
    torch.manual_seed(0)
    vit = create_backbone("vit_small_patch14_dinov2", image_size=28)
    tensors, nodes = [], []

    def hold(name, tensor):
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(tensor.detach().numpy()), name))

    def matmul(node, weight):
        hold(f"onnx::MatMul_{len(nodes)}", weight.T)
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{len(nodes)}"], [f"y{len(nodes)}"],
                                      name=f"/backbone/encoder/{node}/MatMul"))

    hold("backbone.embeddings.cls_token", vit.cls_token)
    hold("a", vit.pos_embed[:, :1])
    hold("b", vit.pos_embed[:, 1:])
    hold("backbone.embeddings.patch_embeddings.projection.weight", vit.patch_embed.proj.weight)
    hold("backbone.embeddings.patch_embeddings.projection.bias", vit.patch_embed.proj.bias)
    hold("backbone.layernorm.weight", vit.norm.weight)
    hold("backbone.layernorm.bias", vit.norm.bias)
    for number, block in enumerate(vit.blocks):
        for part in ("ls1.gamma", "ls2.gamma"):
            block.get_parameter(part).data.uniform_(0.5, 1.5)
        layer = f"backbone.encoder.layer.{number}."
        three = zip(("query", "key", "value"), block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3),
                    strict=True)
        for name, weight, bias in three:
            matmul(f"layer.{number}/attention/attention/{name}", weight)
            hold(f"{layer}attention.attention.{name}.bias", bias)
        matmul(f"layer.{number}/attention/output/dense", block.attn.proj.weight)
        hold(f"{layer}attention.output.dense.bias", block.attn.proj.bias)
        for part in ("fc1", "fc2"):
            matmul(f"layer.{number}/mlp/{part}", getattr(block.mlp, part).weight)
            hold(f"{layer}mlp.{part}.bias", getattr(block.mlp, part).bias)
        for here, there in (("norm1.weight", "norm1.weight"), ("norm1.bias", "norm1.bias"),
                            ("norm2.weight", "norm2.weight"), ("norm2.bias", "norm2.bias"),
                            ("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1")):
            hold(layer + there, block.get_parameter(here))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y0")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)), tmp_path / "m.onnx")
    again = create_backbone("vit_small_patch14_dinov2", image_size=28)
    again.load_state_dict(read_dinov2_onnx(tmp_path / "m.onnx"))
    picture = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(again(picture), vit(picture))


@pytest.mark.parametrize("weights", ["packaged", "timm"])
def test_a_full_disk_while_weights_are_fetched_is_told_as_that(tmp_path, monkeypatch, weights):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights")

    told = SimpleNamespace(returncode=1, stderr="ERROR: Could not install packages due to an OSError: [Errno 28] No "
                           "space left on device")
    monkeypatch.setattr("maavt.fetch.wheel.subprocess.run", lambda *arguments, **options: told)
    monkeypatch.setattr("timm.create_model", full)
    monkeypatch.setattr("maavt.stages.backbone.create_backbone", lambda name: None)
    (tmp_path / "dvc.yaml").touch()
    use(tmp_path, weights=weights, backbone="vit_small_patch14_dinov2", image_size=28)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="No space left on device"):
        backbone.main([])
