"""The audio-visual models: one name, one module, one way to make them."""

from dataclasses import fields

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from maavt.models.lavish import LAVISH, LavishConfig
from maavt.models.linear import LinearConfig, LinearProbe
from maavt.models.maavt import MAAVT, MaavtConfig
from maavt.models.mbt import MBT, MbtConfig
from maavt.models.vit import check_plain, shorten
from maavt.params import Params

MODELS = {"maavt": (MAAVT, MaavtConfig), "linear": (LinearProbe, LinearConfig), "lavish": (LAVISH, LavishConfig),
          "mbt": (MBT, MbtConfig)}


def create_model(name: str, backbone: VisionTransformer, settings: dict) -> nn.Module:
    """The model `name` around a backbone; `settings` are its configuration's fields, and `depth`: the share of the
    backbone's blocks that it is made of, from the first on.

    Raises ValueError for an unknown name and for settings that make no model.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(MODELS)}")
    check_plain(backbone)
    model, config = MODELS[name]
    settings = dict(settings)
    shorten(backbone, settings.pop("depth", 1))
    return model(backbone, config(**settings))


def model_settings(name: str, params: Params, *, classes: int, background: bool, multilabel: bool = False) -> dict:
    """The settings of a model for a data set with so many classes, which labels background or does not, and whose
    clips have several labels or one.

    MA-AVT alone makes background of its own where the data set labels none and one label a clip (mining).
    """
    _, config = MODELS[name]
    own = {"tokens": params.tokens, **vars(getattr(params, name))}
    known = {"depth", *(field.name for field in fields(config))}
    return {**{key: value for key, value in own.items() if key in known},
            "classes": classes, "background": background or own.get("mining", 0) > 0 and not multilabel,
            "multilabel": multilabel}
