"""`maavt embed` and `maavt search`: vectors of sounds and pictures, and the nearest of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from maavt import cli, errors
from maavt.recordings.vectors import nearest
from tests.conftest import ROOT
from tests.media.test_decode import grey, write_clip

CLIPS = "data/raw/synth/test"


def run(*arguments) -> int:
    return errors.run(lambda: cli.command([str(argument) for argument in arguments]))


def test_every_window_is_a_row_and_the_nearest_files_are_found(project, capsys):
    write_clip(project / f"{CLIPS}/long.mkv", [grey(0)] * 645)
    (project / f"{CLIPS}/text.mp4").write_text("text")
    assert run("embed", CLIPS, "--out", "vectors.parquet") == 1  # for one file is none
    assert "text.mp4: not media" in capsys.readouterr().err
    table = pq.read_table("vectors.parquet")
    rows = table.to_pylist()
    assert len(rows) == 4 * 10 + 65 and table.column_names[:3] == ["file", "from", "to"]
    assert [(row["from"], row["to"]) for row in rows[:10]] == [(second, second + 1) for second in range(10)]
    assert np.linalg.norm([row["sound"] for row in rows], axis=1) == pytest.approx(1, abs=1e-3)
    for by in ("sound", "picture"):
        assert run("search", f"{CLIPS}/test-00001.mp4", "--in", "vectors.parquet", "--by", by, "--top", 3) == 0
        hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        near = [hit["similarity"] for hit in hits]
        assert len({hit["file"] for hit in hits}) == 3 and near == sorted(near, reverse=True)


def test_a_split_has_its_labels_and_the_vectors_of_its_files(project, capsys):
    assert run("embed", "test", "--out", "split.parquet") == 0
    assert run("embed", CLIPS, "--out", "files.parquet") == 0
    split, files = (sorted(pq.read_table(f"{name}.parquet").to_pylist(),
                           key=lambda row: (Path(row["file"]).stem, row["from"])) for name in ("split", "files"))
    assert [(row["file"], row["from"]) for row in split] == [(Path(row["file"]).stem, row["from"]) for row in files]
    assert {row["label"] for row in split} > {"background"}
    alike = [np.dot(a["sound"], b["sound"]) for a, b in zip(split, files, strict=True)]
    assert min(alike) > 0.99


def test_the_nearest_picture_to_a_sound_is_the_one_that_points_its_way():
    angles = np.linspace(0, 3, 7)
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    rows = [{"file": name, "class": "background" if name == "n" else "x"} for name in "aabnccd"]
    query = [{"class": "x", "sound": np.array([0.0, 1.0])}, {"class": "background", "sound": np.array([1.0, 0.0])}]
    hits = nearest(query, "sound", vectors, rows, 3)
    assert [row["file"] for row, _ in hits] == ["c", "b", "a"] and hits[0][1] == pytest.approx(np.sin(2))


def test_search_by_sound_finds_pictures_of_the_right_kind_twice_as_often_as_chance(tmp_path, monkeypatch):
    model = ROOT / "data/models/maavt/config.json"
    if not model.exists() or json.loads(model.read_text())["dataset"] != "synth":
        pytest.skip("no model trained on synth is here (make repro)")
    monkeypatch.chdir(ROOT)
    assert run("embed", "test", "--out", tmp_path / "vectors.parquet") == 0
    rows = pq.read_table(tmp_path / "vectors.parquet").to_pylist()
    label = {row["file"]: row["label"] for row in rows if row["label"] != "background"}
    suits = set(label.values())  # a shape and a sound: each goes with two of the other
    vectors, found, chance = np.array([row["picture"] for row in rows]), [], []
    for name, (_, sound) in ((name, label[name].split("-")) for name in label):
        own, others = [], []
        for number, row in enumerate(rows):
            (own if row["file"] == name else others).append(number)
        hits = nearest([rows[number] for number in own], "sound", vectors[others], [rows[n] for n in others], 5)
        right = {other: f"{label[other].split('-')[0]}-{sound}" in suits for other in label if other != name}
        found += [right[row["file"]] for row, _ in hits]
        chance += right.values()
    assert np.mean(found) >= 1.9 * np.mean(chance)  # 2 is what knowing each sound's two shapes gives


@pytest.mark.parametrize("name", ["vectors.csv", "vectors"])
def test_a_table_that_would_not_be_called_what_it_is_is_wrong_usage(tmp_path, capsys, name):
    with pytest.raises(SystemExit) as ended:
        cli.command(["embed", "test", "--out", str(tmp_path / name)])
    assert ended.value.code == 2 and "expected a name that ends in .parquet" in capsys.readouterr().err


def test_vectors_of_another_model_are_told_and_so_is_a_model_that_has_none(project, capsys):
    assert run("embed", f"{CLIPS}/test-00001.mp4", "--out", "vectors.parquet") == 0
    config = json.loads((project / "data/models/maavt/config.json").read_text())
    adapter = project / "data/models/maavt/adapter.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter)
    save_file({name: tensor + 1 if name == "head.bias" else tensor for name, tensor in weights.items()}, adapter)
    assert run("search", f"{CLIPS}/test-00001.mp4", "--in", "vectors.parquet") == 1
    assert "has the vectors of another model" in capsys.readouterr().err
    assert run("search", f"{CLIPS}/test-00001.mp4", "--in", "params.yaml") == 1
    assert "is no table of vectors" in capsys.readouterr().err
    config["settings"]["contrastive"] = "off"
    (project / "data/models/maavt/config.json").write_text(json.dumps(config))
    save_file({name: tensor for name, tensor in weights.items() if "projector" not in name}, adapter)
    assert run("embed", f"{CLIPS}/test-00001.mp4", "--out", "vectors.parquet") == 1
    assert "trained without the contrastive loss" in capsys.readouterr().err
