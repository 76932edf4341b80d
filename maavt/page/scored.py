"""How good the models are, and how sure that is."""

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

GIVEN = {"both modalities": "predicted", "sound alone": "audio_only", "picture alone": "visual_only"}
AS_TEXT = 32  # classes whose confusion table is text, not a picture
CONFUSIONS = 12  # named of each model


def accuracies(result: Result) -> list[dict]:
    """With both modalities and with one: the share of right pairs, and of right clips where they have one label."""
    rows = []
    for given, column in GIVEN.items():
        row = {"given": given, "pairs": share(result.groups, result.right(column)), "clips": None}
        if result.clips and column in result.clips[0]:
            row["clips"] = share([group_of(clip) for clip in result.clips],
                                 [result.is_right(clip, column) for clip in result.clips])
        rows.append(row)
    return rows


def share(groups: Sequence[str], right: Sequence[bool]) -> tuple[float, float, float]:
    """The share of right pairs, or clips, with its 95 % interval."""
    return (float(np.mean(right)), *scores.share_interval(right, groups))


def against(result: Result, other: Result) -> tuple[float, float, float] | None:
    """How much more of the same test pairs a model gets right than another, with its 95 % interval."""
    if result.keys != other.keys:
        return None
    found = scores.lead([result.right()], [other.right()], result.groups)
    return found.mean, found.low, found.high


def chance(result: Result) -> tuple[str, float]:
    """The most frequent label of the test pairs and its share: what always saying it would get right."""
    (label, count), = Counter(label for row in result.predictions for label in result.labels(row)).most_common(1)
    return label, count / len(result.predictions)


def since_last_commit(result: Result, dataset: str) -> dict:
    """The accuracy of the last committed run and what has changed since, or why it cannot be told."""
    before = committed(f"data/eval/{result.name}/metrics.json")
    if isinstance(before, str):
        return {"why": before}
    if (was := committed_dataset()) != dataset:
        return {"why": f"the last committed run was on {was}"}
    return {"before": before["accuracy"], "change": result.metrics["accuracy"] - before["accuracy"],
            "same": before == result.metrics}


def by_class(results: list[Result]) -> list[dict]:
    """Of each class its test pairs, and the share that each model gets right; what the first finds hardest first."""
    tables = [{row["class"]: row for row in result.classes} for result in results]
    rows = []
    for name, first in tables[0].items():
        shares = {result.name: _number(table.get(name, {}).get("accuracy")) for result, table
                  in zip(results, tables, strict=True)}
        rows.append({"class": name, "pairs": int(first["pairs"]), "shares": shares})
    for given, column in list(GIVEN.items())[1:]:
        right = Counter(label for row in results[0].predictions for label in results[0].labels(row)
                        if results[0].is_right(row, column))
        for row in rows:
            row[given] = right[row["class"]] / row["pairs"] if row["pairs"] else None
    return sorted(rows, key=lambda row: (row["pairs"] == 0, row["shares"][results[0].name] or 0, row["class"]))


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def most_confused(result: Result, count: int = CONFUSIONS) -> list[dict]:
    """The pairs of classes that are taken for one another most often: label, predicted, how often, share of the
    label."""
    pairs = result.confusions()
    labels, wrong = Counter(label for label, _ in pairs), Counter(pair for pair in pairs if pair[0] != pair[1])
    found = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [{"label": label, "predicted": told, "pairs": number, "of": labels[label], "share": number / labels[label]}
            for (label, told), number in found]


def confusion(result: Result) -> dict:
    """Shares of each label: as `rows` of a table, or as a `picture` where there are many classes."""
    classes = [row["class"] for row in result.classes]
    number = {label: place for place, label in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)))
    for label, told in result.confusions():
        counts[number[label], number[told]] += 1
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    if len(classes) > AS_TEXT:
        return {"classes": classes, "picture": svg(charts.confusion, shares, label=f"Confusion of {result.name}")}
    return {"classes": classes, "rows": [
        {"label": label, "cells": [(share, int(pairs)) for share, pairs in zip(own, held, strict=True)]}
        for label, own, held in zip(classes, shares.tolist(), counts.tolist(), strict=True)]}


def reliability(results: list[Result]) -> str:
    """The reliability curves of all models."""
    curves = {result.name: scores.calibration([float(row["probability"]) for row in result.predictions],
                                              result.right()) for result in results}
    return svg(charts.reliability, curves, label="Share of right pairs over the probability that was stated")


def over_seconds(results: list[Result]) -> str | None:
    """Accuracy over the seconds of a clip, where seconds are labelled."""
    if not any(row["class"] == BACKGROUND for row in results[0].classes):
        return None
    drawn = []
    for result in results:
        told = sorted(zip([float(row["second"]) for row in result.predictions], result.right(), strict=True))
        means = [(second, np.mean([right for _, right in own])) for second, own in groupby(told, lambda row: row[0])]
        drawn.append((result.name, "-", *zip(*means, strict=True)))
    if len(drawn[0][2]) < 2:
        return None
    return svg(charts.lines, drawn, "second of the clip", "accuracy", (0, 1.05), label="Accuracy over the seconds")
