"""Stage evaluate: a trained model on the test split -> data/eval/MODEL.

metrics.json, predictions.csv (every pair), predictions_clips.csv (every clip, where clips have one label),
confusion.csv (shares, for the plot) and classes.csv (accuracy of each class).
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np

from maavt.clips import ABSENT, BACKGROUND, SEVERAL
from maavt.errors import run
from maavt.measure import scores, vggsounder
from maavt.models import MODELS
from maavt.params import load_params
from maavt.progress import progress
from maavt.shards.loader import BACKGROUND_LABEL, Loader
from maavt.shards.reader import Reader
from maavt.training.adapter import load_adapter
from maavt.training.precision import average_precisions, mean_average_precision
from maavt.training.runtime import Prediction, accuracy, in_int8, pick_device, place, predict_alone
from maavt.work import atomic, project_root, write_table

CLIP_COLUMNS = ("key", "group", "label", "predicted", "probability", "pairs", "audio_only", "visual_only")


def main(arguments: list[str] | None = None) -> None:
    """Score one model with both modalities and with either one alone."""
    parser = argparse.ArgumentParser("maavt evaluate", description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="maavt")
    name = parser.parse_args(arguments).model
    params, data = load_params(), project_root() / "data"
    labels = vggsounder.read_labels() if params.evaluate.vggsounder else None
    model, normalise, config = load_adapter(data / "models" / name)
    model = place(model, pick_device()).for_inference()
    loader = Loader(Reader.of(params.dataset), "test", batch=params.train.batch, image_size=params.image_size,
                    augment=config["augment"])
    batches = progress(loader.in_order(), label=name, unit="batch", total=len(loader))
    said = predict_alone(model, batches, normalise, background=config["background"])
    both, audio, visual = map(list, zip(*said, strict=True))
    counts, said = loader.index["splits"]["test"], {"av": both, "a": audio, "v": visual}
    clips, by_sound, by_sight = ([], [], []) if config["background"] else map(clip_scores, (both, audio, visual))
    metrics = {
        "accuracy": accuracy(both),
        **certainty(both),
        **(precision_metrics(said) if loader.multilabel else {}),
        "accuracy_audio_only": accuracy(audio),
        "accuracy_visual_only": accuracy(visual),
        **(background_metrics(both) if config["background"] else clip_metrics(clips)),
        **absent_metrics(both),
        **({"dtype": "int8"} if in_int8() else {}),
        "clips": counts["samples"],
        "trained": config["trainable"],
        "epoch": config["epoch"],  # the one that was kept, and what it reached on the validation split
        **{key: config[key] for key in ("val_accuracy", "val_map") if key in config},
        **{f"weight_{stream}": weight for stream, weight in (config.get("blend") or {}).items()},
        **retrieval_metrics(config.get("retrieval")),
        "coverage": counts["samples"] / (counts["samples"] + counts["rejected"]),
        **(vggsounder_metrics(labels, said, config["classes"]) if labels else {}),
    }
    folder, classes = data / "eval" / name, [*config["classes"], *([BACKGROUND] if config["background"] else [])]
    rows = pair_rows(both, audio, visual, classes)
    write_table(folder / "predictions.csv", rows[0], rows)
    write_table(folder / "predictions_clips.csv", CLIP_COLUMNS, clip_rows(clips, by_sound, by_sight, classes))
    pairs = [(classes[label], classes[p.predicted]) for p in both
             for label in ([p.predicted] if p.right else p.labels)]  # of several labels, the one that is told
    given = Counter(classes[label] for p in both for label in p.labels)
    write_table(folder / "confusion.csv", ("label", "predicted", "pairs", "share"), confusion(pairs, given, classes))
    rows = class_rows(both, classes, average_precisions(*scored(both)) if loader.multilabel else None)
    write_table(folder / "classes.csv", rows[0], rows)
    with atomic(folder / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1) + "\n")
    how = f"{name} in int8 (MAAVT_DTYPE)" if in_int8() else name
    print(f"{how} on {counts['samples']} test clips of {counts['samples'] + counts['rejected']}: "
          f"{metrics['accuracy']:.3f} right (95 %: {metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f}); "
          f"audio only {metrics['accuracy_audio_only']:.3f}, "
          f"visual only {metrics['accuracy_visual_only']:.3f}")


def pair_rows(both: list[Prediction], audio: list[Prediction], visual: list[Prediction], classes: list[str]
              ) -> list[dict]:
    """The rows of predictions.csv. Pairs of one `group` (a recording, a speaker) are counted together in intervals."""
    return [{"key": p.key, "group": p.group, "second": p.second, "label": named(p.label, classes),
             "predicted": classes[p.predicted], "probability": f"{p.probability:.4f}",
             "audio_only": classes[a.predicted], "visual_only": classes[v.predicted],
             "audio_only_probability": f"{a.probability:.4f}", "visual_only_probability": f"{v.probability:.4f}",
             "likeliest": json.dumps(likeliest(p, classes)), "absent": p.absent}
            for p, a, v in zip(both, audio, visual, strict=True)]


def clip_rows(both: list[scores.ClipScore], audio: list[scores.ClipScore], visual: list[scores.ClipScore],
              classes: list[str]) -> list[dict]:
    """The rows of predictions_clips.csv."""
    return [dict(zip(CLIP_COLUMNS, (c.key, c.group, named(c.label, classes), classes[c.predicted],
                                    f"{c.probability:.4f}", c.pairs, classes[a.predicted], classes[v.predicted]),
                     strict=True)) for c, a, v in zip(both, audio, visual, strict=True)]


def certainty(predictions: list[Prediction]) -> dict[str, float]:
    """The 95 % interval of the accuracy (Wilson's, by groups), and how far the probabilities can be believed."""
    right = [p.right for p in predictions]
    low, high = scores.share_interval(right, [p.group for p in predictions])
    error = scores.calibration_error([p.probability for p in predictions], right)
    return {"accuracy_low": low, "accuracy_high": high, "calibration_error": error}


def clip_scores(predictions: list[Prediction]) -> list[scores.ClipScore]:
    """Every clip by the mean probability over its pairs."""
    return scores.by_clip([p.key for p in predictions], [p.label for p in predictions],
                          np.stack([p.classes for p in predictions]), [p.group for p in predictions])


def likeliest(prediction: Prediction, classes: list[str], count: int = 3) -> list[tuple[str, float]]:
    """The classes of the greatest probability, background (the last of `classes`) among them where there is one."""
    empty = prediction.empty if len(classes) > len(prediction.classes) else 0.0
    found = [*(prediction.classes * (1 - empty)).tolist(), empty][: len(classes)]
    return [(classes[number], round(found[number], 4)) for number in np.argsort(found)[::-1][:count]]


def confusion(pairs: list[tuple[str, str]], labels: Counter, classes: list[str]) -> list[dict]:
    """How often each label was taken for which class, and as a share of the pairs that have the label; each class has a
    row at least."""
    counts = Counter(pairs)
    return [{"label": label, "predicted": told, "pairs": counts[label, told],
             "share": f"{counts[label, told] / max(labels[label], 1):.4f}"}
            for label in classes for told in classes if counts[label, told] or label == told]


def clip_metrics(clips: list[scores.ClipScore]) -> dict[str, float]:
    """The share of clips that are told, its 95 % interval (Wilson's, by groups), and the same with every class counting
    alike: the recall, or where clips have several labels the average precision."""
    right = [clip.right for clip in clips]
    low, high = scores.share_interval(right, [clip.group for clip in clips])
    if clips and isinstance(clips[0].label, tuple):
        alike = {"map_clips": mean_average_precision(*scored(clips))}
    else:
        alike = {"recall_macro_clips": scores.macro_recall([clip.label for clip in clips],
                                                           [clip.predicted for clip in clips])}
    return {"accuracy_clips": sum(right) / max(len(right), 1), "accuracy_clips_low": low, "accuracy_clips_high": high,
            **alike}


def scored(said: Sequence[Prediction | scores.ClipScore]) -> tuple[np.ndarray, np.ndarray]:
    """Of N pairs or clips with several labels, these as (N, C), 0 or 1, and their probabilities (N, C)."""
    probabilities = np.stack([one.classes for one in said])
    labels = np.zeros_like(probabilities)
    for row, one in zip(labels, said, strict=True):
        row[list(one.label)] = 1
    return labels, probabilities


def precision_metrics(said: dict[str, list[Prediction]]) -> dict[str, float]:
    """The mean average precision with both modalities and with either one alone."""
    names = {"map": "av", "map_audio_only": "a", "map_visual_only": "v"}
    return {name: mean_average_precision(*scored(said[given])) for name, given in names.items()}


def class_rows(said: list[Prediction], classes: list[str], precisions: np.ndarray | None) -> list[dict]:
    """How many pairs each class has and for how many of them it is told, with its average precision where there is
    one."""
    rows = []
    for number, label in enumerate(classes):
        own = [p for p in said if label in (classes[given] for given in p.labels)]
        told = sum(classes[p.predicted] == label for p in own)
        rows.append({"class": label, "pairs": len(own), "accuracy": f"{told / len(own):.4f}" if own else ""})
        if precisions is not None:
            rows[-1]["average_precision"] = f"{precisions[number]:.4f}" if own else ""
    return rows


def named(label: int | tuple[int, ...], classes: list[str]) -> str:
    """The name of a label, or those of several."""
    return SEVERAL.join(classes[number] for number in label) if isinstance(label, tuple) else classes[label]


def absent_metrics(predictions: list[Prediction]) -> dict[str, float]:
    """The accuracy of pairs that have both picture and sound, and of those without either one; nothing where all have
    both."""
    kinds = {"_with_both" if not kind else f"_without_{kind}": [p for p in predictions if p.absent == kind]
             for kind in ABSENT}
    return {f"accuracy{name}": accuracy(own) for name, own in kinds.items() if own} if any(
        p.absent for p in predictions) else {}


def background_metrics(predictions: list[Prediction]) -> dict[str, float]:
    """The binary head's accuracy, the class head's on foreground alone, and the product of both: the kinder number
    that the authors' training loop reports (NOTES, MA-AVT)."""
    foreground = [p for p in predictions if p.label != BACKGROUND_LABEL]
    told = [(p.predicted == BACKGROUND_LABEL) == (p.label == BACKGROUND_LABEL) for p in predictions]
    binary = sum(told) / max(len(told), 1)
    classes = sum(p.best_class == p.label for p in foreground) / max(len(foreground), 1)
    return {"accuracy_background": binary, "accuracy_foreground_classes": classes, "accuracy_authors": classes * binary}


def retrieval_metrics(found: dict | None) -> dict[str, float]:
    """How often a sound of the validation split finds its own picture at once and among five, on average over the
    blocks, before training and at the best epoch; config.json has each block."""
    return {f"val_{recall}_{when}": float(np.mean(found[when][recall])) for recall in ("recall_1", "recall_5")
            for when in ("before", "after")} if found else {}


def vggsounder_metrics(labels: vggsounder.Labels, said: dict[str, list[Prediction]], classes: list[str]) -> dict:
    """The scores of VGGSounder; its clips are named as VGGSound's, whose keys are vgg-NAME."""
    named = {given: {p.key.removeprefix("vgg-"): classes[p.best_class] for p in own} for given, own in said.items()}
    return vggsounder.score(labels, named, classes)


if __name__ == "__main__":
    sys.exit(run(main))
