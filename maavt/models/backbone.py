"""The frozen Vision Transformer that the models stand on: made by timm, filled with what the backbone stage wrote."""

import json
from pathlib import Path

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from maavt.errors import UserError
from maavt.work import project_root


def create_backbone(name: str, *, image_size: int | None = None, initialised: bool = True) -> VisionTransformer:
    """A Vision Transformer of timm without its classifier, randomly initialised; by default at its own image size.

    What is only counted or timed need not be `initialised`, which takes ten times as long as the rest: its weights are
    then those that torch's layers begin with.

    Raises UserError for a name that timm does not know or that is no plain ViT with one CLS token, and for an
    image size that its patches do not divide.
    """
    options = {} if image_size is None else {"img_size": image_size}
    if not initialised:
        options["weight_init"] = "skip"
    try:
        vit = timm.create_model(name, num_classes=0, **options)
    except (RuntimeError, TypeError) as error:
        known = ", ".join(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))
        raise UserError(f"backbone: {name!r} is not a model of timm ({error}); expected such as {known}, "
                        "vit_small_patch14_dinov2") from None
    except AssertionError:
        raise UserError(f"image_size: {image_size} is not a multiple of the patch size of {name}") from None
    if not isinstance(vit, VisionTransformer) or vit.num_prefix_tokens != 1 or vit.pos_embed is None:
        raise UserError(f"backbone: {name} is not a Vision Transformer with one CLS token and position embeddings")
    patch = vit.patch_embed.patch_size[0]
    if image_size and image_size % patch:
        raise UserError(f"image_size: {image_size} is not a multiple of the patch size {patch} of {name}")
    return vit


def backbones() -> Path:
    """Where the backbone stage puts the weights in this project."""
    return project_root() / "data" / "backbone"


def load_backbone(name: str, *, image_size: int, folder: Path | None = None) -> VisionTransformer:
    """The stage's weights in a ViT for `image_size` pixels; position embeddings are resampled by timm.

    Raises UserError when the backbone stage has not run.
    """
    path = (folder or backbones()) / f"{name}.safetensors"
    vit = create_backbone(name, image_size=image_size)
    try:
        vit.load_state_dict(checkpoint_filter_fn(load_file(path), vit, antialias=True))
    except FileNotFoundError:
        raise UserError(f"no {path}; {_advice(folder)}") from None
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not fit {name} ({str(error).splitlines()[0]}); {_advice(folder)}") from None
    return vit


def _advice(folder: Path | None) -> str:
    return "export the model again (maavt export)" if folder else "run the backbone stage (dvc repro -f backbone)"


def read_origin(name: str, folder: Path | None = None) -> dict:
    """The .json beside the weights: where they come from, their licence and sha256. Raises UserError without it."""
    path = (folder or backbones()) / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no {path}; {_advice(folder)}") from None
