"""`maavt export DIR`: a trained model as a folder that needs neither this project nor a network.

It holds the backbone's weights and what was trained, the settings, the classes, model.pt2 (torch.export) and a model
card (README.md); `maavt predict --model DIR` and maavt.load(DIR) take it, and it is laid out as the Hugging Face hub's
repositories are. Each form is compared with the model before the folder gets its name.
"""

import argparse
import json
import shutil
from pathlib import Path

from maavt.commands.options import path
from maavt.errors import UserError
from maavt.models import MODELS
from maavt.models.backbone import backbones
from maavt.recordings import portable
from maavt.recordings.card import write_card
from maavt.work import project_root, publish, sha256

MEMBERS = ("README.md", "adapter.safetensors", "config.json", "backbone")  # what tells an exported folder


def main(arguments: list[str] | None = None) -> None:
    """Write the folder beside its place, check it, and move it there."""
    parser = argparse.ArgumentParser("maavt export", description=__doc__)
    parser.add_argument("folder", type=path, metavar="DIR", help="to be written; an earlier export is replaced")
    parser.add_argument("--model", choices=sorted(MODELS), default="maavt", help="(default: %(default)s)")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx, too (pip install 'maavt[onnx]')")
    options = parser.parse_args(arguments)
    target = options.folder.absolute()
    if target.exists() and not all((target / name).exists() for name in MEMBERS):
        raise UserError(f"{target} is there already and no exported model; name another folder")
    making = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    try:
        differences = write(making, options.model, onnx=options.onnx)
        publish(making, target, keep=False)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    said = ", ".join(f"{name} {worst:.1g}" for name, worst in differences.items())
    print(f"{target}: {options.model}; largest difference of a probability from the model's: {said}")


def write(folder: Path, name: str, *, onnx: bool) -> dict[str, float]:
    """All files of an exported model; the largest difference of each form from the model."""
    trained = project_root() / "data" / "models" / name
    model, form, examples = portable.forms(trained)
    config = json.loads((trained / "config.json").read_text())
    (folder / "backbone").mkdir(parents=True)
    for file in ("adapter.safetensors", "config.json"):
        shutil.copyfile(trained / file, folder / file)
    for suffix in ("safetensors", "json"):
        file = f"{config['backbone']}.{suffix}"
        shutil.copyfile(backbones() / file, folder / "backbone" / file)
    if (found := sha256(folder / "backbone" / f"{config['backbone']}.safetensors")) != config["backbone_sha256"]:
        raise UserError(f"data/backbone/{config['backbone']}.safetensors (sha256 {found[:12]}) is not what {name} was "
                        f"trained on ({config['backbone_sha256'][:12]}); run dvc repro")
    differences = {"folder": portable.check(model, portable.forms(folder)[1], examples, "the copied folder")}
    program = portable.write_pt2(form, examples[-1], folder / "model.pt2")
    forms = {"model.pt2": portable.read_pt2}
    if onnx:
        portable.write_onnx(program, folder / "model.onnx")
        forms["model.onnx"] = portable.read_onnx
    for file, read in forms.items():
        differences[file] = portable.check(model, read(folder / file), examples, file)
    write_card(folder, name, config, examples[0], differences)
    return differences
