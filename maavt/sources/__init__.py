"""Where clips come from, one module per data set.

A source has `labels(params)` and `fetch(params, folder)`, which puts the clips into `folder` and returns one
Clip for every clip that the data set lists, whether it could be had or not.
"""

from types import ModuleType

from maavt.sources import synth

SOURCES: dict[str, ModuleType] = {"synth": synth}
