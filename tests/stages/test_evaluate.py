import csv
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from maavt.clips import ABSENT, read_manifest
from maavt.models import create_model
from maavt.models.output import Output
from maavt.shards.loader import Batch, Loader
from maavt.stages import download, evaluate, shard, train
from maavt.stages.evaluate import background_metrics, likeliest, vggsounder_metrics
from maavt.training.adapter import load_adapter
from maavt.training.runtime import Normaliser, Prediction, accuracy, predict, predict_alone
from tests.conftest import tiny_settings
from tests.models.reference import layer_scale_vit


def rows(made, name) -> list[dict]:
    with open(made / f"data/eval/maavt/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def metrics(made) -> dict:
    return json.loads((made / "data/eval/maavt/metrics.json").read_text())


def test_the_accuracy_is_the_share_of_right_rows_in_predictions(made):
    found = rows(made, "predictions")
    assert len(found) == 40 and metrics(made)["clips"] == 4 and metrics(made)["coverage"] == 1
    assert metrics(made)["accuracy"] == sum(row["label"] == row["predicted"] for row in found) / 40


def test_every_class_has_a_row_and_the_rows_hold_all_pairs(made):
    found = rows(made, "classes")
    assert [row["class"] for row in found][-1] == "background" and len(found) == 5
    assert sum(int(row["pairs"]) for row in found) == 40
    right = sum(int(row["pairs"]) * float(row["accuracy"]) for row in found if row["accuracy"])
    assert right / 40 == pytest.approx(metrics(made)["accuracy"], abs=1e-3)


def test_the_confusion_table_counts_the_pairs_and_names_every_class_on_both_sides(made):
    found, said = rows(made, "confusion"), rows(made, "predictions")
    counts = Counter((row["label"], row["predicted"]) for row in said)
    assert {(row["label"], row["predicted"]): int(row["pairs"]) for row in found if row["pairs"] != "0"} == counts
    classes = {row["class"] for row in rows(made, "classes")}
    assert {row["label"] for row in found} == {row["predicted"] for row in found} == classes
    for label in {row["label"] for row in said}:
        assert sum(float(row["share"]) for row in found if row["label"] == label) == pytest.approx(1, abs=1e-3)


def test_the_likeliest_classes_hold_the_prediction_with_its_probability(made):
    for row in rows(made, "predictions"):
        found = json.loads(row["likeliest"])
        probabilities = [probability for _, probability in found]
        assert len(found) == 3 and probabilities == sorted(probabilities, reverse=True) and sum(probabilities) < 1.001
        assert dict(found)[row["predicted"]] == pytest.approx(float(row["probability"]), abs=2e-4)


def test_background_takes_its_share_from_the_classes():
    said = Prediction("a", 0, 0, 1, 1, 0.3, np.array([0.25, 0.75]))  # 0.3 = 0.75 (1 - 0.6)
    assert likeliest(said, ["cat", "dog", "background"]) == [("background", 0.6), ("dog", 0.3), ("cat", 0.1)]
    assert likeliest(said, ["cat", "dog"]) == [("dog", 0.75), ("cat", 0.25)]


def prediction(label, predicted, best) -> Prediction:
    return Prediction("a", 0, label, predicted, best, 1.0)


def test_background_told_as_a_class_is_wrong_and_the_authors_number_is_kinder():
    found = [prediction(-1, 2, 2), prediction(1, 1, 1), prediction(1, -1, 1), prediction(2, 0, 0)]
    assert accuracy(found) == 1 / 4
    assert background_metrics(found) == {
        "accuracy_background": 2 / 4, "accuracy_foreground_classes": 2 / 3, "accuracy_authors": 1 / 3}


def test_vggsounder_scores_the_class_head_of_each_input_by_the_clips_name():
    best = {"av": 0, "a": 1, "v": 0}
    said = {given: [Prediction("vgg--ab_000030", 0, 0, -1, best[given], 1.0)] for given in best}
    found = vggsounder_metrics({"-ab_000030": {"Rain": "A", "Dog": "AV"}}, said, ["Dog", "Rain"])
    assert found["vggsounder"] == "1.0" and found["vggsounder_clips"] == 1
    assert found["vggsounder_hit_rate_av"] == found["vggsounder_hit_rate_a_only"] == 1


class Echo(torch.nn.Module):
    """Says as logits what it sees and hears, to see what it was given."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 1)

    def forward(self, frames, spectrograms):
        self.seen, self.heard = frames, spectrograms
        return Output(logits=torch.tensor([[0.0, 1.0]] * len(frames)), background=torch.tensor([-1.0, 1.0]))


BATCH = Batch(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8), torch.full((2, 8, 8), 3.0).half(), torch.tensor([1, -1]),
              ["a", "b"], [0, 0])
NORMALISE = Normaliser(image_size=4, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.5, 0.5), spectrogram_mean=1.0,
                       spectrogram_std=0.5)


def test_frames_and_spectrograms_are_normalised_and_fitted():
    model = Echo()
    list(predict(model, [BATCH], NORMALISE, background=True))
    torch.testing.assert_close(model.seen[0, :, 0, 0], torch.tensor([0.2, 0.0, -0.2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.heard, torch.full((2, 4, 4), 2.0))


def test_silence_is_the_mean_spectrogram_and_blank_the_mean_picture():
    seen, heard = [], []

    class Recorder(Echo):
        def forward(self, frames, spectrograms):
            seen.append(frames)
            heard.append(spectrograms)
            return super().forward(frames, spectrograms)

    list(predict_alone(Recorder(), [BATCH], replace(NORMALISE, frame_mean=(25.5, 51.0, 76.5)), background=True))
    assert (heard[2] == 0).all() and torch.equal(seen[2], seen[0]) and (seen[0] != 0).any()
    torch.testing.assert_close(seen[1], torch.zeros(2, 3, 4, 4), atol=1e-6, rtol=0)
    assert torch.equal(heard[1], heard[0]) and (heard[0] != 0).all()


@pytest.mark.parametrize("name", ["maavt", "linear"])
def test_a_model_whose_streams_meet_in_its_head_says_the_same_of_each_alone_by_one_pass(name):
    torch.manual_seed(0)
    model = create_model(name, layer_scale_vit(), {"classes": 2, "background": True}).for_inference()
    frames, sound = torch.randn(3, 3, 32, 32), torch.randn(3, 32, 32)
    batch = Batch(frames, sound, torch.tensor([1, -1, 0]), ["a", "b", "c"], [0, 0, 0])
    plain = Normaliser(image_size=32, image_mean=(0, 0, 0), image_std=(1 / 255,) * 3, spectrogram_mean=0.0,
                       spectrogram_std=0.5, frame_mean=(0.1, 0.2, 0.3))
    said = predict_alone(model, [batch], plain, background=True)
    without = torch.tensor(plain.frame_mean)[:, None, None].expand_as(frames)
    pairs = ((frames, sound), (without, sound), (frames, torch.zeros_like(sound)))
    for told, pair in zip(zip(*said, strict=True), pairs, strict=True):
        classes, _ = model(*pair).probabilities()
        np.testing.assert_allclose(np.stack([p.classes for p in told]), classes.detach(), atol=1e-5)


def test_the_mean_stands_in_for_what_is_absent():
    model = Echo()
    batch, normalise = replace(BATCH, absent=torch.tensor([1, 2], dtype=torch.uint8)), replace(
        NORMALISE, frame_mean=(25.5, 51.0, 204.0))
    found = list(predict(model, [batch], normalise, background=True))
    assert (model.heard[0] == 0).all() and (model.heard[1] == 2).all()
    torch.testing.assert_close(model.seen[1, :, 3, 2], torch.tensor([0, 0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.seen[0, :, 0, 0], torch.tensor([0.2, 0.0, -0.2]), atol=1e-6, rtol=0)
    assert [p.absent for p in found] == ["sound", "picture"]


def test_the_binary_head_decides_where_the_data_set_labels_background_and_only_there():
    with_it, without = ([p.predicted for p in predict(Echo(), [BATCH], NORMALISE, background=background)]
                        for background in (True, False))
    assert with_it == [1, -1] and without == [1, 1]


@pytest.mark.parametrize("deaf", [False, True])
def test_a_model_that_uses_one_modality_loses_nothing_with_that_one_alone(project, deaf):
    """A model whose heads read one stream only, so that audio only and visual only cannot be taken for one another."""
    path = project / "data/models/maavt/adapter.safetensors"
    weights, (model, normalise, config) = load_file(path), load_adapter(path.parent)
    loader = Loader(project / "data/shards/synth", "test", batch=4, image_size=config["image_size"])
    frames, sound, _ = normalise(next(iter(loader.in_order())), torch.device("cpu"))
    gone = normalise.fill(frames, sound, torch.full((4,), ABSENT.index("picture" if deaf else "sound")))
    form = model.eval().for_inference()
    with torch.inference_mode():
        there, absent = (form.encode(*pair)[:, 0].unflatten(0, (2, 4))[0 if deaf else 1, 0]
                         for pair in ((frames, sound), gone))  # what the head reads of the one stream, of one pair
    tells = there - absent
    for name, value in (("weight", 0), ("bias", 0), ("mean", 0), ("deviation", 1), ("absent", 0)):  # as it is read
        weights[f"head.{name}"].fill_(value)
    for row, sign in enumerate((1, -1)):  # one class where it is there, the other where its mean stands in
        weights["head.weight"][row].chunk(2)[0 if deaf else 1].copy_(sign * tells)
        weights["head.bias"][row] = -sign * tells @ (there + absent) / 2
    weights["background_head.weight"].zero_()
    weights["background_head.bias"].fill_(-9)  # never background
    path.unlink()
    save_file(weights, path)
    evaluate.main([])
    found = rows(project, "predictions")
    kept, lost = ("visual", "audio") if deaf else ("audio", "visual")
    assert all(row[f"{kept}_only"] == row["predicted"] for row in found)
    assert any(row[f"{lost}_only"] != row["predicted"] for row in found)


def test_predictions_name_what_each_modality_says_alone(made):
    for given in ("audio_only", "visual_only"):
        right = sum(row["label"] == row[given] for row in rows(made, "predictions"))
        assert right / 40 == metrics(made)[f"accuracy_{given}"]


def test_the_accuracy_lies_within_its_interval_and_clips_with_background_have_no_label_of_their_own(made):
    found = metrics(made)
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert 0 <= found["calibration_error"] <= 1 and "accuracy_clips" not in found
    assert rows(made, "predictions_clips") == []


def test_a_clip_is_told_by_the_mean_over_its_pairs_where_clips_have_one_label(project):
    """The made clips as a folder of their own, without times of events."""
    clips, _ = read_manifest(project / "data/raw/synth")
    with open(project / "data/raw/synth/table.csv", "w") as file:
        file.write("path,label,split\n" + "".join(f"{c.path},{c.label},{c.split}\n" for c in clips))
    settings = tiny_settings(dataset="folder", folder={"root": "data/raw/synth", "table": "table.csv"})
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    for stage in (download, shard, train, evaluate):
        stage.main([])
    found, pairs, whole = metrics(project), rows(project, "predictions"), rows(project, "predictions_clips")
    assert len(whole) == 4 and {row["pairs"] for row in whole} == {"5"} and len(pairs) == 20
    assert {(row["key"], row["label"]) for row in whole} == {(row["key"], row["label"]) for row in pairs}
    assert found["accuracy"] == sum(row["label"] == row["predicted"] for row in pairs) / 20
    assert found["accuracy_clips"] == sum(row["label"] == row["predicted"] for row in whole) / 4
    assert found["accuracy_clips_low"] <= found["accuracy_clips"] <= found["accuracy_clips_high"]
    assert found["recall_macro_clips"] == found["accuracy_clips"]  # one clip of each class
    assert "accuracy_background" not in found
