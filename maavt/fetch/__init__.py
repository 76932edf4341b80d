"""Getting files from elsewhere: what can go wrong, by kind.

What went wrong with one clip is data, not an exception that ends the run, except where the rest would fail as well.
"""

from dataclasses import dataclass

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
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class Stopped(Exception):
    """Raised in threads whose work no longer matters."""


@dataclass(frozen=True)
class Archive:
    """Where an archive is, and its size and SHA-256 where they are known."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
