"""Getting files from elsewhere: what can go wrong, by kind.

What went wrong with one clip is data, not an exception that ends the run, except where the rest would fail as well.
"""

import csv
import re
from pathlib import Path
from typing import NamedTuple

from maavt.errors import redacted

PERMANENT = "permanent"  # gone, private, not in this region: trying again is no use
CONTENT = "content"  # it came, but it is empty, has no sound, is too short
TRANSIENT = "transient"  # server errors, time-outs, broken connections: tried again here and in the next run
SESSION = "session"  # the server turns us away: everything stops, and a person has something to do
ENVIRONMENT = "environment"  # this machine lacks something: everything stops

KINDS = (PERMANENT, CONTENT, TRANSIENT, SESSION, ENVIRONMENT)
STOPPING = (SESSION, ENVIRONMENT)
FINAL = (PERMANENT, CONTENT)  # not tried again unless asked


class Failed(Exception):
    """A file that could not be had: the kind, one of KINDS, and the reason in words that are the same in every run."""

    def __init__(self, kind: str, reason: str):
        assert kind in KINDS, kind
        reason = redacted(reason)  # it is printed, and kept in the manifest
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class Stopped(Exception):
    """Raised in threads whose work no longer matters."""


class Archive(NamedTuple):
    """Where an archive is, and its size and SHA-256 where they are known."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None


def explain(source: str, message: str) -> Failed | None:
    """The kind and the reason in a message, or a page, of one of the sources in messages.csv; None for an unknown."""
    with open(Path(__file__).with_name("messages.csv"), newline="") as file:
        for row in csv.DictReader(file):  # in this order
            if row["source"] == source and re.search(row["pattern"], message, re.IGNORECASE):
                return Failed(row["kind"], row["reason"])
    return None
