import pytest

from maavt.fetch import http
from tests.sources.server import Server


@pytest.fixture
def server(monkeypatch):
    """A server on loopback; nobody waits long before trying again."""
    monkeypatch.setattr(http, "BACKOFF", 0.001)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with Server() as running:
        yield running
