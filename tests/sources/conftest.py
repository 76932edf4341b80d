import pytest

from maavt.fetch import http
from maavt.fetch.http import Http
from tests.sources.server import Server


@pytest.fixture
def server(monkeypatch):
    """A server on loopback; nobody waits long before trying again."""
    monkeypatch.setattr(http, "BACKOFF", 0.001)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with Server() as running:
        yield running


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """The seconds of every wait; on the clock of the downloader they pass at once."""
    waits, now = [], [1000.0]

    def sleep(self, seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("maavt.fetch.http.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Http, "_sleep", sleep)
    return waits
