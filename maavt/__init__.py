"""Audio-visual learning pipelines: from videos to a trained, measured model."""

import importlib


def load(model="maavt", device: str | None = None):
    """A trained model, from the folder that `maavt export` wrote, or one of this project by its name.

    maavt.load("exported").predict("clip.mp4") is what `maavt predict` prints; recordings.trained.Trained says more.
    """
    # by its name: every stage imports this module, and few of them need that one
    return importlib.import_module("maavt.recordings.trained").Trained(model, device)
