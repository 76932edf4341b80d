"""A trained model on disk: data/models/MODEL/adapter.safetensors (only what was trained) and config.json."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maavt.errors import UserError
from maavt.models import create_model
from maavt.models.backbone import load_backbone, read_origin
from maavt.models.vit import under
from maavt.training.runtime import Normaliser
from maavt.work import atomic


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What was trained and is kept, by name: not the backbone, nor what is discarded after training. What vectors are
    compared by is kept too, where a model has that."""
    kept = model.trained() + getattr(model, "aligning", list)()
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if under(name, kept)}


def save_adapter(folder: Path, weights: dict[str, Tensor], config: dict) -> None:
    """Write adapter.safetensors and config.json."""
    with atomic(folder / "adapter.safetensors") as path:
        save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, path)
    with atomic(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=1) + "\n")


def load_adapter(folder: Path) -> tuple[nn.Module, Normaliser, dict]:
    """The model around its backbone, how to normalise what it reads, and its config.json.

    The backbone's weights are those in `backbone` below an exported model, else those of the project. Raises UserError
    when the model was not trained, or not on the backbone that is here now.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "adapter.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename or folder}: no model was trained here; do it with dvc exp run -S "
                        f"'models=[{folder.name}]', or bring an experiment's here with dvc exp apply NAME") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{folder} holds no whole model ({error}); train it again") from None
    own = folder / "backbone"
    backbones = own if own.is_dir() else None
    here = read_origin(config["backbone"], backbones)["sha256"]
    if here != config["backbone_sha256"]:
        raise UserError(f"{folder} was trained on other weights of {config['backbone']} (sha256 "
                        f"{config['backbone_sha256'][:12]}) than are in data/backbone now ({here[:12]}); train again")
    vit = load_backbone(config["backbone"], image_size=config["image_size"], folder=backbones)
    model = create_model(config["model"], vit, config["settings"])
    missing = trained_weights(model).keys() ^ weights.keys()
    if missing:
        raise UserError(f"{folder}: adapter.safetensors and config.json do not belong together ({sorted(missing)[:3]})")
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{folder}: adapter.safetensors and config.json do not belong together "
                        f"({str(error).splitlines()[1].strip()})") from None
    return model, Normaliser(**config["normaliser"]), config

