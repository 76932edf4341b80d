"""Clips that are not as most are, through all stages: without sound or picture, with several labels."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from maavt.clips import read_manifest
from maavt.models.maavt import MAAVT
from maavt.shards.loader import Loader
from maavt.stages import backbone, download, evaluate, shard, train
from maavt.training.adapter import load_adapter
from tests.conftest import make_project, tiny_settings
from tests.sources.common import write_media


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def folder_project(tmp_path, monkeypatch, **changes) -> Path:
    """A tiny project for the clips in `mine` beside it."""
    changes["folder"] = {"root": str(tmp_path / "mine")} | changes.get("folder", {})
    place = make_project(tmp_path / "project", dataset="folder", models=["maavt"], **changes)
    monkeypatch.chdir(place)
    return place


def test_clips_of_sound_or_picture_alone_go_through_all_stages(tmp_path, monkeypatch, capsys):
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for mark, label in enumerate(("cat", "dog")):
            for number in range(count):
                place = tmp_path / "mine" / split / label
                write_media(place / f"{number}.mp4", seconds=2, mark=20 * mark + number)
            write_media(place / "song.mp3", seconds=2, mark=20 * mark, picture=None, sound="mp3")
            write_media(place / "film.mp4", seconds=2, mark=20 * mark, sound=None)
    place = folder_project(tmp_path, monkeypatch, shard={"missing": "keep", "frame_size": 48},
                           train={"modality_dropout": 0.5, "epochs": 1})
    looked_at = []
    begin = MAAVT.begin
    monkeypatch.setattr(MAAVT, "begin", lambda model, *first: (looked_at.append(first), begin(model, *first)))
    for stage in (download, shard, backbone, train, evaluate):
        stage.main([])
    assert "folder test: 8 clips in shards, 2 of them without sound, 2 of them without picture, 0 rejected" in \
        capsys.readouterr().out
    ((frames, sounds, _),) = looked_at  # before training: what stands in for an absent one is no picture, no sound
    assert len(frames) == len(sounds) == 6
    assert (frames.amax((1, 2, 3)) > -1.5).all() and (sounds.std((1, 2)) > 0.1).all()  # black is below
    clips, _ = read_manifest(place / "data/raw/folder")
    assert len(clips) == 24 and all(clip.status == "ok" for clip in clips)

    shards = place / "data/shards/folder"
    index = json.loads((shards / "index.json").read_text())
    assert {name: (counts["without_sound"], counts["without_picture"]) for name, counts in index["splits"].items()} == {
        "train": (2, 2), "val": (2, 2), "test": (2, 2)}
    absent = {row["key"]: row["absent"] for row in rows(shards / "quality.csv")}
    assert sorted(absent.values()) == [""] * 12 + ["picture"] * 6 + ["sound"] * 6
    heard, seen = [], []
    for batch in Loader(shards, "train", batch=16, image_size=48).in_order():
        assert [("", "sound", "picture")[code] for code in batch.absent] == [absent[key] for key in batch.keys]
        heard.append(batch.spectrograms[batch.absent != 1])
        seen.append(batch.frames[batch.absent != 2])
        assert not batch.spectrograms[batch.absent == 1].any() and not batch.frames[batch.absent == 2].any()
    assert index["splits"]["train"]["mean"] == pytest.approx(torch.cat(heard).double().mean().item(), rel=1e-3)
    assert index["splits"]["train"]["frame_mean"] == pytest.approx(
        torch.cat(seen).double().mean((0, 2, 3)).tolist(), abs=1)

    metrics = json.loads((place / "data/eval/maavt/metrics.json").read_text())
    told = rows(place / "data/eval/maavt/predictions.csv")
    assert [row["absent"] for row in told] == [absent[row["key"]] for row in told]
    for name, kind in (("with_both", ""), ("without_sound", "sound"), ("without_picture", "picture")):
        own = [row["label"] == row["predicted"] for row in told if row["absent"] == kind]
        assert metrics[f"accuracy_{name}"] == sum(own) / len(own)
    _, normalise, _ = load_adapter(place / "data/models/maavt")
    assert list(normalise.frame_mean) == index["splits"]["train"]["frame_mean"]

    first = (place / "data/models/maavt/adapter.safetensors").read_bytes()
    train.main([])  # what is dropped repeats
    assert (place / "data/models/maavt/adapter.safetensors").read_bytes() == first

    (place / "params.yaml").write_text(yaml.safe_dump(
        tiny_settings(dataset="folder", folder={"root": str(tmp_path / "mine")}, download={"min_coverage": 0.4})))
    download.main([])
    clips, _ = read_manifest(place / "data/raw/folder")
    assert {Path(clip.source).name: clip.reason for clip in clips if clip.status != "ok"} == {
        "film.mp4": "content: no audio stream"}
    assert {row["reason"] for row in rows(place / "data/raw/folder/not_taken.csv")} == {"no video stream"}


def test_clips_with_several_labels_go_through_all_stages_with_every_model(tmp_path, monkeypatch, capsys):
    text, labels = "path,label,split\n", ["cat", "dog;cat", "cow; dog", "cow"]
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for number in range(count):
            write_media(tmp_path / "mine" / f"{split}{number}.mp4", seconds=2, mark=number)
            text += f"{split}{number}.mp4,{labels[number % 4]},{split}\n"
    (tmp_path / "mine" / "clips.csv").write_text(text)
    place = folder_project(tmp_path, monkeypatch, folder={"table": "clips.csv"}, shard={"frame_size": 48},
                           train={"epochs": 2, "batch": 4})
    for stage in (download, shard, backbone):
        stage.main([])
    index = json.loads((place / "data/shards/folder/index.json").read_text())
    assert index["multilabel"] and index["classes"] == ["cat", "cow", "dog"] and not index["background"]
    truth = {clip.key: clip.label for clip in read_manifest(place / "data/raw/folder")[0]}
    loader = Loader(place / "data/shards/folder", "train", batch=16, image_size=48)
    for batch in loader.in_order():
        for key, row in zip(batch.keys, batch.labels, strict=True):
            assert ";".join(name for name, here in zip(loader.classes, row, strict=True) if here) == truth[key]

    for name in ("maavt", "linear", "lavish", "mbt"):
        train.main(["--model", name])
        evaluate.main(["--model", name])
        config = json.loads((place / f"data/models/{name}/config.json").read_text())
        assert config["settings"]["multilabel"] and not config["settings"]["background"]
        found = [float(row["map"]) for row in csv.DictReader(
            open(place / f"data/curves/{name}/plots/metrics/val/map.tsv"), delimiter="\t")]
        assert config["val_map"] == pytest.approx(found[config["epoch"] - 1])
        assert config["epoch"] >= len(found) - found[::-1].index(max(found))  # none before the best
        metrics = json.loads((place / f"data/eval/{name}/metrics.json").read_text())
        told = rows(place / f"data/eval/{name}/predictions.csv")
        assert {row["key"]: row["label"] for row in told} == {key: truth[key] for key in truth if "test" in key}
        for given, column in (("", "predicted"), ("_audio_only", "audio_only"), ("_visual_only", "visual_only")):
            right = [row[column] in row["label"].split(";") for row in told]
            assert metrics[f"accuracy{given}"] == sum(right) / len(right) and 0 < metrics[f"map{given}"] <= 1
        classes = rows(place / f"data/eval/{name}/classes.csv")
        assert metrics["map"] == pytest.approx(sum(float(row["average_precision"]) for row in classes) / 3, abs=1e-4)
        assert [row["pairs"] for row in classes] == ["2", "2", "2"] and metrics["map_clips"] == metrics["map"]
        assert {row["label"] for row in rows(place / f"data/eval/{name}/confusion.csv")} <= {"cat", "cow", "dog"}
    model, _, _ = load_adapter(place / "data/models/maavt")
    pair = torch.randn(1, 3, 32, 32), torch.randn(1, 32, 32)
    for form in (model.eval(), model.for_inference()):
        said, _ = form(*pair).probabilities()
        torch.testing.assert_close(said, form(*pair).logits.sigmoid())
