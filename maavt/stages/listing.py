"""Stage listing: the files of one's own that a data set is made from -> data/listing/DATASET.json, their number and a
hash of their names, sizes and times.

DVC runs it every time: a dependency on the folder itself would have DVC read every byte of it, and fail on broken
links and on names that are not UTF-8.
"""

import argparse
import csv
import json
import sys
from contextlib import suppress
from os.path import normpath
from pathlib import Path

from maavt.errors import UserError, run
from maavt.fetch.tree import fingerprint, on_disk
from maavt.params import Params, check_weights, load_params
from maavt.work import atomic, project_root, read_table


def main(arguments: list[str] | None = None) -> None:
    """Look at the files, of which there are none where the data set comes from elsewhere."""
    argparse.ArgumentParser("maavt listing", description=__doc__).parse_args(arguments)
    params = load_params()
    check_weights(params, project_root())  # here, since this stage is the first: told before anything else is made
    with atomic(project_root() / "data" / "listing" / f"{params.dataset}.json") as path:
        path.write_text(json.dumps(listing(params)) + "\n")


def listing(params: Params) -> dict:
    """What tells one state of the user's files from another; that there are none is for the download stage to say."""
    settings = getattr(params, params.dataset)
    place = getattr(settings, "root", "") or getattr(settings, "local", "")
    if not place:
        return {}
    root, named = project_root() / Path(place).expanduser(), set()
    if getattr(settings, "table", ""):
        with suppress(OSError, UserError, csv.Error):  # the download stage tells
            _, rows = read_table(root / settings.table, ("path", "label"))
            named = {normpath(on_disk(root, row.get("path", "").strip())) for _, row in rows}
    return fingerprint(root, named)


if __name__ == "__main__":
    sys.exit(run(main))
