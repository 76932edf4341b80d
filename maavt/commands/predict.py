"""`maavt predict FILE...|FOLDER`: what recordings of any length show and sound like, window by window and as events.

One line of JSON per file, in order: its windows (from, to, class, probability), and the events that neighbouring
windows of one class make; or the reason why there are none. What the model takes for background is in no event.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack

from maavt.commands.options import add_asking, number, path, share, workers
from maavt.errors import UserError
from maavt.progress import progress
from maavt.recordings.page import Page
from maavt.recordings.trained import Trained
from maavt.recordings.windows import files_of
from maavt.work import atomic

COLUMNS = ("file", "what", "from", "to", "class", "probability", "reason")


def main(arguments: list[str] | None = None) -> None:
    """Print the answers, each as soon as it is known.

    Raises UserError, after the last file, when some could not be read.
    """
    parser = argparse.ArgumentParser("maavt predict", description=__doc__)
    add_asking(parser)
    parser.add_argument("--top", type=number, default=1, metavar="N", help="say the N likeliest classes of a window")
    parser.add_argument("--threshold", type=share, default=0.0, metavar="P", help="from which on the class of "
                        "a window makes an event (default: %(default)g)")
    parser.add_argument("--csv", type=path, metavar="FILE", help="a table of windows, events and failures, too")
    parser.add_argument("--html", type=path, metavar="FILE", help="a page with players, a time line of classes and the "
                        "attention, too")
    options = parser.parse_args(arguments)
    files, model = files_of(options.files), Trained(options.model, options.device)
    page = Page(options.html, model) if options.html else None
    failed = 0
    answers = model.answers(files, top=options.top, threshold=options.threshold, workers=workers(options))
    with ExitStack() as stack:
        if options.csv:
            file = stack.enter_context(open(stack.enter_context(atomic(options.csv)), "w", newline="",
                                            encoding="utf-8", errors="backslashreplace"))
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
        for answer in progress(answers, label="predicting", unit="file", total=len(files), silent=len(files) == 1):
            print(json.dumps(answer), flush=True)
            failed += "reason" in answer
            if options.csv:
                table.writerows(rows(answer))
            if page:
                page.add(answer)
    if page:
        page.write()
    if failed:
        raise UserError(f"{failed} of {len(files)} files could not be read; their lines say why")


def rows(answer: dict) -> Iterator[dict]:
    """An answer as rows of a table: each is a window, an event, or what could not be read (`failed`)."""
    said = {"window": answer.get("windows", []), "event": answer.get("events", []),
            "failed": [answer] if "reason" in answer else answer.get("unread", [])}
    for what, entries in said.items():
        for entry in entries:
            yield {"file": answer["file"], "what": what} | {key: entry[key] for key in COLUMNS[2:] if key in entry}
