"""`maavt embed FILE...|FOLDER|SPLIT --out vectors.parquet`: sounds and pictures as vectors that can be compared.

One row per window: file, from, to, class (what the model says; background too), and two vectors of length 1, `sound`
and `picture`: what the contrastive loss compared in the last block. SPLIT (train, val or test) takes the clips of the
project's data set from its shards: `file` is then the clip's key, and `label` what it is labelled.
"""

import argparse

from maavt.clips import SPLITS
from maavt.commands.options import add_asking, path, workers
from maavt.errors import UserError
from maavt.progress import progress
from maavt.recordings.trained import Trained
from maavt.recordings.vectors import table
from maavt.recordings.windows import files_of


def main(arguments: list[str] | None = None) -> None:
    """Write the table. Raises UserError, when it is written, where some files could not be read."""
    parser = argparse.ArgumentParser("maavt embed", description=__doc__)
    add_asking(parser, "a video with sound, a folder of them, or train, val or test of the project's data set")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="the Parquet file to write")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".parquet":
        parser.error(f"--out {options.out}: expected a name that ends in .parquet, since that is what is written")
    split = options.files[0] if len(options.files) == 1 and options.files[0] in SPLITS else None
    files = [] if split else files_of(options.files)
    model = Trained(options.model, options.device, vectors=True)
    found = model.vectors_of_split(split) if split else model.vectors(files, workers=workers(options))
    failed, count = {}, 0
    with table(options.out, model.sha256) as add, progress(label="embedding", unit="window") as bar:
        for rows in found:
            if isinstance(rows, dict):
                failed[rows["file"]] = rows["reason"]
            else:
                add(rows)
                count += len(rows)
                bar.update(len(rows))
    print(f"{options.out}: {count} windows")
    if failed:
        raise UserError("\n  ".join([f"{len(failed)} of {len(files)} files could not be read, or not all of them:",
                                     *(f"{file}: {reason}" for file, reason in list(failed.items())[:20])]))
