"""What the stages found, read from data/: of each model what it said, how it was trained, and what it is."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from maavt.errors import UserError


@dataclass(frozen=True)
class Result:
    """One model. `predictions` are the rows of every test pair, `clips` those of every clip, where clips have one
    label; `curves` have a table of epochs by its name, such as train/loss."""

    name: str
    metrics: dict
    config: dict
    classes: list[dict[str, str]]
    predictions: list[dict[str, str]]
    clips: list[dict[str, str]]
    curves: dict[str, list[dict[str, str]]]
    retrieval: list[dict[str, str]]

    @cached_property
    def keys(self) -> list[str]:
        """The clip of each test pair."""
        return [row["key"] for row in self.predictions]

    def right(self, column: str = "predicted") -> list[bool]:
        """Whether a column of the predictions is right, of each test pair."""
        return [row["label"] == row[column] for row in self.predictions]


def read_result(data: Path, name: str) -> Result:
    """Raises UserError when stages before the report have not run."""
    folder, curves, model = data / "eval" / name, data / "curves" / name / "plots" / "metrics", data / "models" / name
    try:
        return Result(
            name=name,
            metrics=json.loads((folder / "metrics.json").read_text()),
            config=json.loads((model / "config.json").read_text()),
            classes=read_table(folder / "classes.csv"),
            predictions=read_table(folder / "predictions.csv"),
            clips=read_table(folder / "predictions_clips.csv"),
            curves={path.relative_to(curves).with_suffix("").as_posix(): read_table(path)
                    for path in sorted(curves.rglob("*.tsv"))},
            retrieval=read_table(model / "retrieval.csv") if (model / "retrieval.csv").exists() else [],
        )
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename}; run the stages before the report first (dvc repro)") from None


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, or of a TSV by its name."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
