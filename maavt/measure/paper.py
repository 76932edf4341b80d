"""The paper's own numbers (its Tables 7 to 9), to be shown beside what is measured here."""

import csv
from pathlib import Path


def paper_row(table: str, model: str, backbone: str) -> dict:
    """The paper's row for a model on a plain 16-pixel ViT (its `vit_base` is timm's vit_base_patch16_224...), or {}."""
    family, _, rest = backbone.partition("_patch16_224")
    rows = [row for row in read_paper(table) if (row["model"], row["backbone"]) == (model, family)
            and backbone != family and not rest.startswith("_")]
    return rows[0] if rows else {}


def read_paper(table: str) -> list[dict[str, str]]:
    """The rows of one of its tables."""
    with open(Path(__file__).with_name("paper.csv"), newline="") as file:
        return [row for row in csv.DictReader(file) if row["table"] == table]
