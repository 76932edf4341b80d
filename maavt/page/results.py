"""What the stages wrote to data/: of each model its predictions, metrics, curves and configuration."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from maavt.clips import SEVERAL
from maavt.errors import UserError


@dataclass(frozen=True)
class Result:
    """One model. `predictions` has a row per test sample, `clips` one per test clip, where clips have one label;
    `steps` are the curves within epochs, and `validation` the validation accuracy after each epoch."""

    name: str
    metrics: dict
    config: dict
    classes: list[dict[str, str]]
    predictions: list[dict[str, str]]
    clips: list[dict[str, str]]
    steps: list[dict[str, str]]
    validation: list[dict[str, str]]
    multilabel: bool = False

    @cached_property
    def keys(self) -> list[str]:
        """The clip of each test sample."""
        return [row["key"] for row in self.predictions]

    @cached_property
    def groups(self) -> list[str]:
        """What each test pair's clip comes from, such as a recording or a speaker: intervals count it as one."""
        return [group_of(row) for row in self.predictions]

    def labels(self, row: dict[str, str]) -> list[str]:
        """The label of a row, or its labels where clips have several."""
        return row["label"].split(SEVERAL) if self.multilabel else [row["label"]]

    def is_right(self, row: dict[str, str], column: str = "predicted") -> bool:
        """Whether a column of a row holds its label, or one of several."""
        return row[column] in self.labels(row)

    def right(self, column: str = "predicted") -> list[bool]:
        """Of each test sample whether a column of the predictions is correct."""
        return [self.is_right(row, column) for row in self.predictions]

    def confusions(self) -> list[tuple[str, str]]:
        """(label, predicted) of each test sample; of several labels the predicted one, or all where none is."""
        return [(label, row["predicted"]) for row in self.predictions
                for label in ([row["predicted"]] if self.is_right(row) else self.labels(row))]


def read_result(data: Path, name: str, multilabel: bool = False) -> Result:
    """Raises UserError when stages before the report have not run."""
    folder, curves, model = data / "eval" / name, data / "curves" / name, data / "models" / name
    try:
        return Result(
            name=name,
            metrics=json.loads((folder / "metrics.json").read_text()),
            config=json.loads((model / "config.json").read_text()),
            classes=read_table(folder / "classes.csv"),
            predictions=read_table(folder / "predictions.csv"),
            clips=read_table(folder / "predictions_clips.csv"),
            steps=read_table(curves / "steps.csv"),
            validation=read_table(curves / "plots" / "metrics" / "val" / "accuracy.tsv"),
            multilabel=multilabel,
        )
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename}; run the stages before the report first (dvc repro)") from None


def group_of(row: dict[str, str]) -> str:
    """The group of a row of predictions: what intervals count together."""
    return row.get("group") or row["key"]


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, or of a TSV by its name."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
