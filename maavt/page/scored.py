"""How accurate the models are, and how certain that is."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from maavt.clips import BACKGROUND
from maavt.measure import scores
from maavt.page import charts
from maavt.page.draw import svg
from maavt.page.ran import committed, committed_dataset
from maavt.page.results import Result, group_of

GIVEN = {"both modalities": "predicted", "audio only": "audio_only", "visual only": "visual_only"}
AS_TEXT = 32  # with more classes the confusion table is an image
CONFUSIONS = 12  # listed for each model


def accuracies(result: Result) -> list[dict]:
    """Accuracy per sample with both modalities and with either one, and per clip where clips have one label."""
    rows = []
    for given, column in GIVEN.items():
        row = {"given": given, "samples": share(result.groups, result.right(column)), "clips": None}
        if result.clips and column in result.clips[0]:
            row["clips"] = share([group_of(clip) for clip in result.clips],
                                 [result.is_right(clip, column) for clip in result.clips])
        rows.append(row)
    return rows


def bars(found: list[tuple[Result, list[dict]]], most_frequent: tuple[str, float]) -> list[dict]:
    """The bars of the headline: the first model with both modalities and with either, the other models, the chance
    level. `found` has the accuracies() of each model."""
    rows = []
    for result, own in found:
        for row in own if not rows else own[:1]:
            share, low, high = row["samples"]
            alone = "" if row["given"] == "both modalities" else f", {row['given']}"
            rows.append({"model": result.name, "label": result.name + alone, "share": share, "low": low, "high": high,
                         "first": not rows, "alone": bool(alone)})
    label, share = most_frequent
    return [*rows, {"model": "", "label": "chance level", "share": share, "first": False, "alone": False,
                    "tip": f"always predicting {label}"}]


def share(groups: Sequence[str], right: Sequence[bool]) -> tuple[float, float, float]:
    """The accuracy over samples or clips, with its 95 % interval by groups."""
    return (float(np.mean(right)), *scores.share_interval(right, groups))


def against(result: Result, other: Result) -> tuple[float, float, float] | None:
    """The difference in accuracy of two models on the same test samples, with its 95 % interval."""
    if result.keys != other.keys:
        return None
    found = scores.lead([result.right()], [other.right()], result.groups)
    return found.mean, found.low, found.high


def chance(result: Result) -> tuple[str, float]:
    """The most frequent label of the test samples and its share: the accuracy of always predicting it."""
    (label, count), = Counter(label for row in result.predictions for label in result.labels(row)).most_common(1)
    return label, count / len(result.predictions)


def since_last_commit(result: Result, dataset: str) -> dict:
    """The accuracy of the last committed run and the change since, or `why` there is no comparison."""
    before = committed(f"data/eval/{result.name}/metrics.json")
    if isinstance(before, str):
        return {"why": before}
    if (was := committed_dataset()) != dataset:
        return {"why": f"the last committed run was on {was}"}
    return {"before": before["accuracy"], "change": result.metrics["accuracy"] - before["accuracy"],
            "same": before == result.metrics}


def by_class(results: list[Result]) -> list[dict]:
    """Of each class its test samples and each model's accuracy; the lowest accuracy of the first model first."""
    tables = [{row["class"]: row for row in result.classes} for result in results]
    rows = []
    for name, first in tables[0].items():
        shares = {result.name: _number(table.get(name, {}).get("accuracy")) for result, table
                  in zip(results, tables, strict=True)}
        rows.append({"class": name, "samples": int(first["pairs"]), "shares": shares})
    for given, column in list(GIVEN.items())[1:]:
        right = Counter(label for row in results[0].predictions for label in results[0].labels(row)
                        if results[0].is_right(row, column))
        for row in rows:
            row[given] = right[row["class"]] / row["samples"] if row["samples"] else None
    return sorted(rows, key=lambda row: (row["samples"] == 0, row["shares"][results[0].name] or 0, row["class"]))


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def most_confused(result: Result, count: int = CONFUSIONS) -> list[dict]:
    """The most frequent confusions: label, predicted, how often, share of the label."""
    found = result.confusions()
    labels, wrong = Counter(label for label, _ in found), Counter(one for one in found if one[0] != one[1])
    return [{"label": label, "predicted": predicted, "samples": number, "of": labels[label],
             "share": number / labels[label]}
            for (label, predicted), number in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:count]]


def confusion(result: Result) -> dict:
    """Shares of each label: as `rows` of a table, or as an `image` where there are many classes."""
    classes = [row["class"] for row in result.classes]
    number = {label: place for place, label in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)))
    for label, predicted in result.confusions():
        counts[number[label], number[predicted]] += 1
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    if len(classes) > AS_TEXT:
        return {"classes": classes, "image": svg(charts.confusion, shares, label=f"Confusion of {result.name}")}
    return {"classes": classes, "rows": [
        {"label": label, "cells": list(zip(classes, own, map(int, samples), strict=True))}
        for label, own, samples in zip(classes, shares.tolist(), counts.tolist(), strict=True)]}


def reliability(results: list[Result]) -> str:
    """The reliability curves of all models."""
    bins = {result.name: scores.calibration([float(row["probability"]) for row in result.predictions],
                                            result.right()) for result in results}
    return svg(charts.reliability, bins, label="Accuracy over the predicted probability")


def over_seconds(results: list[Result]) -> str | None:
    """Accuracy over the seconds of a clip, where seconds are labelled."""
    if not any(row["class"] == BACKGROUND for row in results[0].classes):
        return None
    drawn = []
    for result in results:
        rows = sorted(zip([float(row["second"]) for row in result.predictions], result.right(), strict=True))
        means = [(second, np.mean([right for _, right in own])) for second, own in groupby(rows, lambda row: row[0])]
        drawn.append((result.name, "-", *zip(*means, strict=True)))
    if len(drawn[0][2]) < 2:
        return None
    return svg(charts.lines, drawn, "second of the clip", "accuracy", (0, 1.05), label="Accuracy over the seconds")
