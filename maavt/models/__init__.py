"""The audio-visual models: one name, one module, one way to make them."""

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from maavt.models.maavt import MAAVT, MaavtConfig
from maavt.params import Params

MODELS = {"maavt": (MAAVT, MaavtConfig)}


def create_model(name: str, backbone: VisionTransformer, settings: dict) -> nn.Module:
    """The model `name` around a backbone; `settings` are its configuration's fields.

    Raises ValueError for an unknown name and for settings that make no model.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(MODELS)}")
    model, config = MODELS[name]
    return model(backbone, config(**settings))


def model_settings(name: str, params: Params, *, classes: int, background: bool) -> dict:
    """The settings of a model for a data set with so many classes, which labels background or does not."""
    own = vars(getattr(params, name)).copy()
    mining = own.pop("mining", 0)
    return {"classes": classes, "background": background or mining > 0, "tokens": params.tokens, **own}
