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
from maavt.measure.scores import share_interval
from maavt.models import create_model
from maavt.models.output import Output
from maavt.shards.loader import Batch, Loader
from maavt.stages import download, evaluate, shard, train
from maavt.stages.evaluate import (
    absent_metrics,
    background_metrics,
    certainty,
    class_rows,
    clip_metrics,
    clip_rows,
    clip_scores,
    confusion,
    likeliest,
    named,
    pair_rows,
    precision_metrics,
    retrieval_metrics,
    vggsounder_metrics,
)
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


def test_without_background_the_strongest_classes_come_first_however_many_there_are():
    said = Prediction("a", 0, 2, 2, 2, 0.4, np.array([0.3, 0.123456, 0.4, 0.17]))
    assert likeliest(said, ["a", "b", "c", "d"]) == [("c", 0.4), ("a", 0.3), ("d", 0.17)]
    assert likeliest(said, ["a", "b", "c", "d"], count=4)[3] == ("b", 0.1235)


def of(key: str, label: int | tuple[int, ...], classes: list[float], **more) -> Prediction:
    """What is said of a pair by its probabilities of the classes."""
    best = int(np.argmax(classes))
    return Prediction(key, more.pop("second", 0.0), label, best, best, max(classes), np.array(classes), **more)


# Two clips of one speaker: the first is told by both, the second by its sound alone.
BOTH = [of("a", 0, [0.9, 0.1], group="ann"), of("a", 0, [0.4, 0.6], group="ann", second=1.0),
        of("b", 1, [0.7, 0.3], group="ann")]
AUDIO = [of("a", 0, [0.2, 0.8]), of("a", 0, [0.3, 0.7]), of("b", 1, [0.45, 0.55])]
VISUAL = [of("a", 0, [0.6, 0.4]), of("a", 0, [0.8, 0.2]), of("b", 1, [0.75, 0.25])]
CLASSES = ["cat", "dog"]


def test_a_row_of_each_pair_says_what_both_modalities_and_each_alone_tell():
    first, second, third = pair_rows(BOTH, AUDIO, VISUAL, CLASSES)
    assert first == {
        "key": "a", "group": "ann", "second": 0.0, "label": "cat", "predicted": "cat", "probability": "0.9000",
        "audio_only": "dog", "visual_only": "cat", "audio_only_probability": "0.8000",
        "visual_only_probability": "0.6000", "likeliest": '[["cat", 0.9], ["dog", 0.1]]', "absent": ""}
    assert (second["second"], second["predicted"], third["key"], third["label"]) == (1.0, "dog", "b", "dog")
    assert (third["audio_only"], third["visual_only"]) == ("dog", "cat")


def test_a_row_of_each_clip_says_what_both_modalities_and_each_alone_tell():
    assert clip_rows(*map(clip_scores, (BOTH, AUDIO, VISUAL)), CLASSES) == [
        {"key": "a", "group": "ann", "label": "cat", "predicted": "cat", "probability": "0.6500", "pairs": 2,
         "audio_only": "dog", "visual_only": "cat"},
        {"key": "b", "group": "ann", "label": "dog", "predicted": "cat", "probability": "0.7000", "pairs": 1,
         "audio_only": "dog", "visual_only": "cat"}]


def test_certainty_counts_the_pairs_of_a_group_together():
    said = [of(f"{group}{number}", 0, [0.8, 0.2] if group < "d" else [0.3, 0.7], group=group)
            for group in "abcdefgh" for number in range(5)]
    found = certainty(said)
    assert (found["accuracy_low"], found["accuracy_high"]) == share_interval([p.right for p in said],
                                                                            [p.group for p in said])
    assert found["accuracy_high"] - found["accuracy_low"] > 0.5  # of 40 pairs that are no alike: 0.3
    assert found["calibration_error"] == pytest.approx(3 / 8 * 0.2 + 5 / 8 * 0.7)


def test_of_clips_the_share_that_is_told_with_its_interval_by_groups_and_the_mean_recall():
    clips = clip_scores([of(f"{speaker}{number}", number == 0, [0.6, 0.4], group=speaker)
                         for speaker in "abcd" for number in range(4)])
    assert [clip.right for clip in clips] == 4 * [False, True, True, True]
    found = clip_metrics(clips)
    assert found.pop("accuracy_clips") == 0.75 and found.pop("recall_macro_clips") == 0.5
    assert (found["accuracy_clips_low"], found["accuracy_clips_high"]) == share_interval(
        4 * [False, True, True, True], np.repeat(list("abcd"), 4)) and len(found) == 2


# Pairs with several labels of three classes.
SEVERAL = [of("a", (0, 1), [0.9, 0.6, 0.1]), of("b", (2,), [0.5, 0.8, 0.4]), of("c", (1,), [0.1, 0.7, 0.2])]
WORSE = [of("a", (0, 1), [0.1, 0.1, 0.9]), of("b", (2,), [0.5, 0.8, 0.4]), of("c", (1,), [0.3, 0.2, 0.6])]


def test_several_labels_are_measured_by_the_average_precision_with_both_and_with_each_alone():
    whole = (1 + (1 / 2 + 2 / 3) / 2 + 1) / 3  # b is said to be class 1 first, though it is 2
    worse = (1 / 3 + (1 / 2 + 2 / 3) / 2 + 1 / 3) / 3
    assert precision_metrics({"av": SEVERAL, "a": WORSE, "v": SEVERAL}) == pytest.approx(
        {"map": whole, "map_audio_only": worse, "map_visual_only": whole})
    assert precision_metrics({"av": SEVERAL, "a": SEVERAL, "v": WORSE})["map_visual_only"] == pytest.approx(worse)
    found = clip_metrics(clip_scores(SEVERAL))
    assert found["map_clips"] == pytest.approx(whole) and found["accuracy_clips"] == pytest.approx(2 / 3)
    assert "recall_macro_clips" not in found


def test_a_row_of_each_class_has_its_pairs_and_what_is_told_of_them():
    plain = class_rows([*BOTH, of("c", 0, [0.6, 0.4])], [*CLASSES, "fox"], None)
    assert plain == [{"class": "cat", "pairs": 3, "accuracy": "0.6667"},
                     {"class": "dog", "pairs": 1, "accuracy": "0.0000"}, {"class": "fox", "pairs": 0, "accuracy": ""}]
    several = class_rows(SEVERAL, ["x", "y", "z", "w"], np.array([1, 0.58333, 0.5, np.nan]))
    assert [tuple(row.values()) for row in several] == [
        ("x", 1, "1.0000", "1.0000"), ("y", 2, "0.5000", "0.5833"), ("z", 1, "0.0000", "0.5000"), ("w", 0, "", "")]
    assert list(several[0]) == ["class", "pairs", "accuracy", "average_precision"]


def test_the_confusion_table_has_shares_of_each_label_and_a_row_of_each_class():
    pairs = 3 * [("cat", "cat")] + [("cat", "dog")]
    assert confusion(pairs, Counter(cat=4), ["cat", "dog", "fox"]) == [
        {"label": "cat", "predicted": "cat", "pairs": 3, "share": "0.7500"},
        {"label": "cat", "predicted": "dog", "pairs": 1, "share": "0.2500"},
        {"label": "dog", "predicted": "dog", "pairs": 0, "share": "0.0000"},
        {"label": "fox", "predicted": "fox", "pairs": 0, "share": "0.0000"}]


def test_labels_are_named():
    assert named(1, CLASSES) == "dog" and named((0, 1), CLASSES) == "cat;dog" and named((1,), CLASSES) == "dog"


def test_pairs_without_a_modality_are_counted_apart_where_there_are_any():
    said = [of("a", 0, [0.9, 0.1]), of("b", 1, [0.9, 0.1]), of("c", 0, [0.9, 0.1], absent="sound")]
    assert absent_metrics(said) == {"accuracy_with_both": 0.5, "accuracy_without_sound": 1}
    assert absent_metrics(said[:2]) == {}
    assert absent_metrics([of("d", 1, [0.9, 0.1], absent="picture")]) == {"accuracy_without_picture": 0}


def test_retrieval_is_the_mean_over_the_blocks():
    found = {"before": {"recall_1": [0.1, 0.3], "recall_5": [0.5, 0.7]},
             "after": {"recall_1": [0.2, 0.6], "recall_5": [0.9, 0.7]}}
    assert retrieval_metrics(found) == pytest.approx({"val_recall_1_before": 0.2, "val_recall_1_after": 0.4,
                                                      "val_recall_5_before": 0.6, "val_recall_5_after": 0.8})
    assert retrieval_metrics(None) == {}


def test_nothing_divides_by_no_pairs():
    assert background_metrics([]) == {"accuracy_background": 0, "accuracy_foreground_classes": 0,
                                      "accuracy_authors": 0}


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


def test_what_is_measured_says_of_which_share_of_the_test_clips(project, capsys):
    """All numbers of metrics.json, where one clip in five was rejected."""
    place = project / "data/shards/synth/index.json"
    index = json.loads(place.read_text())
    index["splits"]["test"]["rejected"] = 1
    place.unlink()
    place.write_text(json.dumps(index))
    evaluate.main(["--model", "maavt"])
    found, pairs = metrics(project), rows(project, "predictions")
    config = json.loads((project / "data/models/maavt/config.json").read_text())
    assert found["coverage"] == 4 / 5 and found["clips"] == 4
    right = [row["label"] == row["predicted"] for row in pairs]
    assert found["accuracy"] == sum(right) / 40
    assert (found["accuracy_low"], found["accuracy_high"]) == share_interval(right, [row["key"] for row in pairs])
    for given in ("audio_only", "visual_only"):
        assert found[f"accuracy_{given}"] == sum(row["label"] == row[given] for row in pairs) / 40
    assert found["trained"] == config["trainable"] and found["epoch"] == config["epoch"]
    assert found["val_accuracy"] == config["val_accuracy"] and "map" not in found and "val_map" not in found
    assert {key: value for key, value in found.items() if key.startswith("weight_")} == {
        f"weight_{part}": weight for part, weight in config["blend"].items()}
    background = sum((row["label"] == "background") == (row["predicted"] == "background") for row in pairs) / 40
    assert found["accuracy_background"] == background
    assert found["accuracy_authors"] == found["accuracy_foreground_classes"] * background
    assert not {"vggsounder", "accuracy_clips", "accuracy_with_both"} & found.keys()
    assert {row["group"] for row in pairs} == {f"synth seed 0 {row['key']}" for row in pairs}
    assert {row["predicted"] for row in rows(project, "confusion")} == {*config["classes"], "background"}
    assert rows(project, "predictions_clips") == []
    header = (project / "data/eval/maavt/predictions_clips.csv").read_text().strip()
    assert header == "key,group,label,predicted,probability,pairs,audio_only,visual_only"
    low, high = (f"{found[f'accuracy_{end}']:.3f}" for end in ("low", "high"))
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"maavt on 4 test clips of 5: {found['accuracy']:.3f} right (95 %: {low} to {high}); audio only "
        f"{found['accuracy_audio_only']:.3f}, visual only {found['accuracy_visual_only']:.3f}")


def test_a_clip_is_told_by_the_mean_over_its_pairs_where_clips_have_one_label(project):
    """The made clips as a folder of their own, without times of events."""
    clips, _ = read_manifest(project / "data/raw/synth")
    with open(project / "data/raw/synth/table.csv", "w") as file:
        file.write("path,label,split,who\n" + "".join(f"{c.path},{c.label},{c.split},{c.split} {number % 2}\n"
                                                       for number, c in enumerate(clips)))
    settings = tiny_settings(dataset="folder", folder={"root": "data/raw/synth", "table": "table.csv", "group": "who"})
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    for stage in (download, shard, train, evaluate):
        stage.main([])
    found, pairs, whole = metrics(project), rows(project, "predictions"), rows(project, "predictions_clips")
    assert len(whole) == 4 and {row["pairs"] for row in whole} == {"5"} and len(pairs) == 20
    assert {(row["key"], row["label"]) for row in whole} == {(row["key"], row["label"]) for row in pairs}
    assert found["accuracy"] == sum(row["label"] == row["predicted"] for row in pairs) / 20
    assert found["accuracy_clips"] == sum(row["label"] == row["predicted"] for row in whole) / 4
    for table, name in ((pairs, "accuracy"), (whole, "accuracy_clips")):
        assert {row["group"] for row in table} == {"test 0", "test 1"}
        assert (found[f"{name}_low"], found[f"{name}_high"]) == share_interval(
            [row["label"] == row["predicted"] for row in table], [row["group"] for row in table])
    assert found["recall_macro_clips"] == found["accuracy_clips"]  # one clip of each class
    assert "accuracy_background" not in found
