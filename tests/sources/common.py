"""Settings and folders that the tests of the sources share."""

from pathlib import Path

import pytest
import yaml

from maavt.params import Params, parse_params

ROOT = Path(__file__).parents[2]
ANNOTATIONS = ROOT.parent / "shared" / "annotations"
published = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="needs the published lists")


def settings(**changes) -> dict:
    """The committed settings; `changes` are merged over them."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return values


def params(**changes) -> Params:
    return parse_params(settings(**changes))
