"""Aligned vectors of sounds and pictures: a Parquet table with a row per window, and the nearest rows of a query.

W windows, P numbers of a vector, of length 1.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maavt.clips import BACKGROUND
from maavt.errors import UserError
from maavt.work import atomic

SIDES = ("sound", "picture")
GROUP = 4096  # rows that are written at once


def nearest(query: list[dict], by: str, vectors: np.ndarray, rows: list[dict], top: int
            ) -> list[tuple[dict, float]]:
    """The `top` files with the rows (N) nearest to a query, and how near (the cosine), nearest first.

    Sounds and pictures of background were never compared in training: what the model takes for it is in no hit, and of
    a query, whose vector is the mean over its windows, only where there is nothing else.
    """
    told = [row for row in query if row["class"] != BACKGROUND] or query
    mean = np.mean([row[by] for row in told], 0)
    similarity = vectors @ (mean / max(np.linalg.norm(mean), 1e-9))  # (N,)
    best: dict[str, int] = {}
    for place in np.argsort(-similarity, kind="stable"):
        if rows[place]["class"] != BACKGROUND:
            best.setdefault(rows[place]["file"], place)
        if len(best) == top:
            break
    return [(rows[place], float(similarity[place])) for place in best.values()]


@contextmanager
def table(path: Path, model: str) -> Iterator[Callable[[list[dict]], None]]:
    """A function that adds rows to a new table: dicts of file, from, to, label, class, sound and picture."""
    vector = pa.list_(pa.float32())
    schema = pa.schema([("file", pa.string()), ("from", pa.float64()), ("to", pa.float64()), ("label", pa.string()),
                        ("class", pa.string()), ("sound", vector), ("picture", vector)],
                       metadata={"maavt": json.dumps({"model": model})})
    held: list[dict] = []
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        def add(rows: list[dict]) -> None:
            held.extend(rows)
            if len(held) >= GROUP:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(held, schema))
            held.clear()

        yield add
        flush()


def read_side(path: Path, side: str, model: str) -> tuple[np.ndarray, list[dict]]:
    """(rows, P) the vectors of one side, and what the other columns say of each row.

    Raises UserError for what is no table of vectors, or one of another model's.
    """
    try:
        found = pq.read_table(path, columns=["file", "from", "to", "label", "class", side])
        of = json.loads((found.schema.metadata or {})[b"maavt"])["model"]
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path} is no table of vectors; expected one that maavt embed wrote") from None
    if of != model:
        raise UserError(f"{path} has the vectors of another model ({of[:12]}) than is asked now ({model[:12]}); run "
                        "maavt embed with this model, or search with --model")
    if not len(found):
        raise UserError(f"{path} has no rows; run maavt embed on recordings that can be read")
    column = found.column(side).combine_chunks()
    return column.flatten().to_numpy().reshape(len(found), -1), found.drop_columns([side]).to_pylist()
