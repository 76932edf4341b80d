"""A trained model as files that run without this package: torch.export's .pt2, and ONNX.

B windows, S image size, T frames and F bins of a spectrogram, C classes.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from maavt.errors import UserError
from maavt.media.spectrogram import spectrograms
from maavt.params import Spectrogram
from maavt.shards.loader import Batch
from maavt.training.adapter import load_adapter
from maavt.training.runtime import Normaliser

TOLERANCE = 1e-4  # between the probabilities that a form gives and those of the model
CHECKED = 1, 5  # windows in the batches by which a form is checked: it is to take any number
Example = tuple[Tensor, Tensor]


class Portable(nn.Module):
    """Frames (B, 3, S, S) uint8 and spectrograms (B, T, F) float32, neither normalised -> probabilities, and what is
    predicted (B,), -1 for background. The probabilities are (B, C), or (B, C + 1) with background last where the data
    set labels it."""

    def __init__(self, model: nn.Module, normalise: Normaliser, background: bool):
        super().__init__()
        self.model, self.normalise, self.background = model.eval(), normalise, background

    def forward(self, frames: Tensor, spectrograms: Tensor) -> tuple[Tensor, Tensor]:
        frames, sound, _ = self.normalise(Batch(frames, spectrograms, spectrograms, [], []), spectrograms.device)
        output = self.model(frames, sound)
        classes, empty = output.probabilities()
        if not self.background:
            return classes, output.logits.argmax(-1)
        empty = empty[:, None]
        return torch.cat([classes * (1 - empty), empty], 1), output.predicted()


def forms(folder: Path) -> tuple[Portable, Portable, list[Example]]:
    """The model in a folder as it was trained, and its form for inference, both in float32 on the CPU; and batches to
    compare them by: the training set's mean under noise from faint to loud, of which no model can be all too sure to
    show a difference."""
    model, normalise, config = load_adapter(folder)
    recipe = Spectrogram(**config["spectrogram"])
    size = config["image_size"] if config["augment"] == "crop" else config["frame_size"]
    rng = np.random.default_rng(0)
    noise = []
    for count in CHECKED:
        much = np.geomspace(0.1, 4, count)[:, None, None]
        frames = rng.normal(np.reshape(normalise.frame_mean, (3, 1, 1)), 60 * much[..., None], (count, 3, size, size))
        silence = np.zeros((count, recipe.seconds * recipe.sample_rate), np.float32)
        sound = rng.normal(normalise.spectrogram_mean, normalise.spectrogram_std * much,
                           spectrograms(silence, recipe).shape)
        noise.append((frames.clip(0, 255).astype(np.uint8), sound.astype(np.float32)))
    form = model.for_inference(torch.float32, pack=False)
    for module in form.modules():  # parts of a matrix that is saved in no one piece would be warned of
        module._buffers |= {name: tensor.clone() for name, tensor in module._buffers.items() if tensor is not None}
    return (Portable(model, normalise, config["background"]), Portable(form, normalise, config["background"]),
            [tuple(map(torch.from_numpy, pair)) for pair in noise])


@torch.no_grad()
def write_pt2(form: Portable, example: Example, path: Path) -> torch.export.ExportedProgram:
    """torch.export's file, for any number of windows."""
    form(*example)  # the normaliser keeps constants from its first call, which is not to be one that only traces
    many = {0: torch.export.Dim("windows")}
    program = torch.export.export(form, example, dynamic_shapes=(many, many))
    torch.export.save(program, path)
    return program


def read_pt2(path: Path):
    """What runs the file that write_pt2 wrote."""
    return torch.export.load(path).module()


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """The exported program as ONNX. Raises UserError where the package for it is missing, or a model has no ONNX."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--onnx needs onnxscript; pip install 'maavt[onnx]'") from None
    try:
        torch.onnx.export(program, f=str(path), input_names=["frames", "spectrograms"],
                          output_names=["probabilities", "predicted"], external_data=False, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"this model has no ONNX form ({str(error).splitlines()[0]}); leave out --onnx") from None


def read_onnx(path: Path):
    """What runs the file that write_onnx wrote, by ONNX's own reference."""
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return lambda *pair: tuple(map(torch.from_numpy, session.run(None, dict(zip(
        ("frames", "spectrograms"), (tensor.numpy() for tensor in pair), strict=True)))))


@torch.no_grad()
def check(model: Portable, form, examples: list[Example], name: str) -> float:
    """The largest difference of a form's probabilities from the model's. Raises UserError beyond TOLERANCE."""
    worst = max((model(*pair)[0] - form(*pair)[0]).abs().max().item() for pair in examples)
    if not worst <= TOLERANCE:
        raise UserError(f"{name} differs from the model by {worst:.2g}; expected {TOLERANCE:g} at most. It is not "
                        "published: leave it out, and tell the maintainers")
    return worst
