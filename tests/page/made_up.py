"""A project whose results are made up, so that the page can be seen with any classes and models in seconds.

Shards, weights and one clip are real files; what the models are said to have answered is drawn at random.

    python -m tests.page.made_up FOLDER CLASSES [MODEL ...]
"""

import io
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
import yaml
from PIL import Image

from maavt.clips import Clip, Labels, write_manifest
from maavt.models import MODELS, create_model, model_settings
from maavt.models.backbone import load_backbone, read_origin
from maavt.models.vit import count, train_only
from maavt.params import Params, load_params
from maavt.stages import backbone
from maavt.stages.shard import QUALITY
from maavt.training.adapter import save_adapter, trained_weights
from maavt.training.runtime import Normaliser
from maavt.work import sha256, write_table
from tests.conftest import GIT, make_project
from tests.media.test_sample import clip as write_clip

PAIRS, SIZE = 2, 48  # of a clip, of a frame
HOSTILE = ["<script>alert(1)</script>", "\"quoted\" & 'quoted'", "x" * 200, "\u05e2\u05d1\u05e8\u05d9\u05ea \u202e 12",
           "$\\frac{1}{0", "{{ 7 * 7 }}", "</style><img src=x onerror=alert(2)>", "\U0001f3b8 guitar"]


def make_up(folder: Path, classes: list[str], models: tuple[str, ...] = ("maavt",), seed: int = 0) -> Path:
    """The project in `folder`, one test clip of each class at least; the report can be made in it."""
    make_project(folder, models=list(models), dataset="folder", folder={"root": "clips"},
                 shard={"frame_size": SIZE, "spectrogram": _recipes()})
    here, rng = Path.cwd(), random.Random(seed)
    os.chdir(folder)
    try:
        params = load_params()
        backbone.main([])
        labels = Labels(classes=tuple(classes), background=False)
        clips = [Clip(key=f"{split}-{number}", path=f"../../../clips/{'a' * 20}<b>{number}.mp4" if number < 2 else
                      "../../../clips/one.mp4", label=label, split=split, start=0, end=2, source="", seconds=2.0)
                 for split in ("train", "val", "test") for number, label in enumerate([*classes, *classes[:20]])]
        sound = np.sin(np.cumsum(np.linspace(0.05, 0.6, 32000))).astype(np.float32) / 2
        (folder / "clips").mkdir()
        write_clip(folder / "clips" / "one.mp4", sound, 16000)
        write_manifest(folder / "data" / "raw" / "folder", clips, labels)
        _shards(folder / "data" / "shards" / "folder", clips, labels, params)
        for number, name in enumerate(models):
            _model(name, params, labels, folder / "data")
            _said(name, [clip for clip in clips if clip.split == "test"], labels, 0.9 - 0.2 * number, rng,
                  folder / "data")
        _benchmark(folder / "data" / "benchmark", models)
    finally:
        os.chdir(here)
    return folder


def _recipes() -> dict:
    settings = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())["shard"]["spectrogram"]
    return settings | {"folder": settings["folder"] | {"clip_seconds": 2, "seconds": 1, "bins": 32}}


def _shards(folder: Path, clips: list[Clip], labels: Labels, params: Params) -> None:
    recipe, draw, shards, splits = params.shard.spectrogram["folder"], np.random.default_rng(0), {}, {}
    for split in ("train", "val", "test"):
        own = [clip for clip in clips if clip.split == split]
        path = folder / split / f"folder-{split}-000000.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wds.TarWriter(str(path), encoder=False, mtime=0) as tar:
            for clip in own:
                members = {}
                for second in range(PAIRS):
                    pixels = np.add.outer(np.arange(SIZE), np.arange(SIZE))[..., None] * 2 % 255 \
                        + draw.integers(0, 60, (1, 1, 3))
                    with io.BytesIO() as buffer:
                        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
                        members[f"frame-{second:02d}.jpg"] = buffer.getvalue()
                with io.BytesIO() as buffer:
                    np.save(buffer, draw.normal(size=(PAIRS, 98, 32)).astype(np.float16))
                    members["spectrogram.npy"] = buffer.getvalue()
                facts = {"label": clip.label, "labels": [clip.label] * PAIRS, "begins": [0, 1]}
                tar.write({"__key__": clip.key, **members, "json": json.dumps(facts).encode()})
        shards[f"{split}/{path.name}"] = {"samples": len(own), "pairs": PAIRS * len(own), "sha256": sha256(path)}
        splits[split] = {"samples": len(own), "pairs": PAIRS * len(own), "rejected": 1, "mean": 0.0, "std": 1.0,
                         "frame_mean": [90.0, 90.0, 90.0]}
    index = {"dataset": "folder", **asdict(labels), "spectrogram": asdict(recipe), "spectrogram_frames": 98,
             "frame_size": SIZE, "splits": splits, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))
    write_table(folder / "quality.csv", QUALITY, [
        {"key": clip.key, "split": clip.split, "label": clip.label, "seconds": 2.0, "width": 64, "height": 48,
         "frame_rate": 25.0, "loudness_dbfs": -20.5, "silent_share": 0.6 if clip.split == "val" else 0.0,
         "still_share": "", "clipped_share": 0.0, "absent": "",
         "near_duplicate": clips[0].key if clip.split == "test" else ""} for clip in clips])
    write_table(folder / "rejects.csv", ("key", "split", "label", "stage", "reason", "detail"),
                [{"key": f"gone-{split}", "split": split, "label": labels.classes[0], "stage": "shard",
                  "reason": "no sound", "detail": labels.classes[0]} for split in ("train", "val", "test")])


def _model(name: str, params: Params, labels: Labels, data: Path) -> None:
    torch.manual_seed(0)
    settings = model_settings(name, params, classes=len(labels.classes), background=False)
    model = create_model(name, load_backbone(params.backbone, image_size=params.image_size), settings)
    normalise = Normaliser(image_size=params.image_size, image_mean=(0.5,) * 3, image_std=(0.5,) * 3,
                           spectrogram_mean=0.0, spectrogram_std=1.0)
    config = {
        "model": name, "settings": settings, "tokens": params.tokens, "backbone": params.backbone,
        "backbone_sha256": read_origin(params.backbone)["sha256"], "image_size": params.image_size,
        "normaliser": asdict(normalise), "dataset": "folder", "classes": labels.classes, "background": False,
        "augment": "crop", "trainable": count(train_only(model, model.trained())), "recipe": params.recipe,
        "train": {"epochs": 3}, "epoch": 2, "val_accuracy": 0.6,
        "blend": {"picture_early": 0.6, "sound_early": 0.425} if name == "maavt" else None,
        "retrieval": {when: {"pairs": 40, **{recall: [share + block / 40 * rise for block in range(12)]
                                             for recall, share in (("recall_1", 0.03), ("recall_5", 0.14))}}
                      for rise, when in enumerate(("before", "after"))} if name == "maavt" else None,
    }
    save_adapter(data / "models" / name, trained_weights(model), config)
    curves, absent = data / "curves" / name, name != "maavt"
    write_table(curves / "steps.csv", ("epoch", "loss", "class_loss", "background_loss", "contrastive_loss",
                                       "contrastive_chance", "accuracy", "learning_rate"), [
        {"epoch": step / 20, "loss": 20 / step, "class_loss": 9 / step, "background_loss": 0 if absent else 1 / step,
         "contrastive_loss": 0 if absent else 2, "contrastive_chance": 0 if absent else 2.1,
         "accuracy": 1 - 1 / step, "learning_rate": 0.001} for step in range(1, 61)])
    validation = curves / "plots" / "metrics" / "val" / "accuracy.tsv"
    validation.parent.mkdir(parents=True)
    validation.write_text("step\taccuracy\n1\t0.4\n2\t0.5\n3\t0.6\n")


def _said(name: str, clips: list[Clip], labels: Labels, accuracy: float, rng: random.Random, data: Path) -> None:
    classes, rows = labels.classes, []
    for clip in clips:
        for second in range(PAIRS):
            def guess(share, label=clip.label):
                return label if rng.random() < share else rng.choice(classes)

            told, sure = guess(accuracy), rng.uniform(0.4, 0.99)
            others = rng.sample([label for label in classes if label != told], 2)
            rows.append({"key": clip.key, "second": second, "label": clip.label, "predicted": told,
                         "probability": f"{sure:.4f}", "audio_only": guess(0.5), "visual_only": guess(0.4),
                         "audio_only_probability": "0.5000", "visual_only_probability": "0.4000",
                         "likeliest": json.dumps([[told, round(sure, 4)], [others[0], round((1 - sure) / 2, 4)],
                                                  [others[1], round((1 - sure) / 4, 4)]])})
    folder = data / "eval" / name
    write_table(folder / "predictions.csv", rows[0], rows)
    first = [row for row in rows if row["second"] == 0]
    write_table(folder / "predictions_clips.csv",
                ("key", "label", "predicted", "probability", "pairs", "audio_only", "visual_only"),
                [{key: row[key] for key in ("key", "label", "predicted", "probability", "audio_only", "visual_only")}
                 | {"pairs": PAIRS} for row in first])
    told = {label: [row["predicted"] == label for row in rows if row["label"] == label] for label in classes}
    write_table(folder / "classes.csv", ("class", "pairs", "accuracy"),
                [{"class": label, "pairs": len(right), "accuracy": f"{np.mean(right):.4f}"}
                 for label, right in told.items()])
    accuracy = float(np.mean([row["label"] == row["predicted"] for row in rows]))
    (folder / "metrics.json").write_text(json.dumps({
        "accuracy": accuracy, "accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01,
        "calibration_error": 1 / 12, "clips": len(clips), "coverage": 7 / 12, "trained": 123456, "epoch": 2,
        "val_accuracy": 0.5833333333333334}))


def _benchmark(folder: Path, models: tuple[str, ...]) -> None:
    backbones = [f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")]
    write_table(folder / "parameters.csv", ("model", "backbone", "trainable", "total_loaded", "total_as_in_paper",
                                            "paper_total_m", "paper_trainable_m"), [
        {"model": model, "backbone": name, "trainable": 4 ** number * 1000, "total_loaded": 5 ** number * 9000,
         "total_as_in_paper": 5 ** number * 9000, "paper_total_m": 10.2 if model == "lavish" else "",
         "paper_trainable_m": 0.46 if model == "lavish" else ""}
        for number, name in enumerate(backbones, 5) for model in MODELS])
    columns = ("ratio_to_lavish", "ratio_to_mbt", "ratio_to_plain", "ratio_to_floor", "ratio_to_limit")
    write_table(folder / "throughput.csv", (
        "model", "backbone", "device", "dtype", "mode", "image_size", "batch", "rounds",
        "samples_per_second", "slowest", "fastest", *columns, "peak_memory_mb", "paper_samples_per_second",
        "paper_ratio_to_lavish"), [
        {"model": model, "backbone": name, "device": "AMD EPYC 7B13 64-Core Processor, 2 threads", "dtype": "bfloat16",
         "mode": mode, "image_size": 224, "batch": 4, "rounds": 5, "samples_per_second": 30.5,
         "slowest": 28.1, "fastest": 33.9, **dict.fromkeys(columns, "1.50"), "peak_memory_mb": 166,
         "paper_samples_per_second": "", "paper_ratio_to_lavish": ""}
        for name in backbones[1:3] for mode in ("inference", "training")
        for model in ("maavt", "maavt_paper", *models[1:], "maavt_plain", "backbone_floor", "maavt_int8")])


def names(classes: int) -> list[str]:
    """So many classes, of which the first have hostile names."""
    return [*HOSTILE, *(f"playing instrument {number}" for number in range(classes))][:classes]


if __name__ == "__main__":
    made = make_up(Path(sys.argv[1]).absolute(), names(int(sys.argv[2])), tuple(sys.argv[3:]) or ("maavt",))
    subprocess.run([sys.executable, "-m", "maavt.cli", "report"], cwd=made, check=True, env=os.environ | GIT)
