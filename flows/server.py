"""The Prefect server that a command talks to: the one at PREFECT_API_URL, or one of its own."""

import atexit
import os
import socket
import sys
import time
from contextlib import ExitStack, contextmanager

import httpx
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, get_current_settings, temporary_settings

from flows.process import guarded
from maavt.errors import UserError


def answers(url: str) -> bool:
    """Whether a Prefect server answers at this API address."""
    try:
        return httpx.get(f"{url}/health", timeout=10).status_code in (200, 401, 403)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


@contextmanager
def temporary_server():
    """A Prefect server for one run, with Prefect's settings pointing to it.

    The one that Prefect would start itself dies at Ctrl-C before the run has reported its end, and outlives a
    run that is killed. Raises UserError when it does not start in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = ["--factory", "prefect.server.api.server:create_app", "--port", str(port), "--log-level", "error"]
    environment = {**os.environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_UI_ENABLED": "0",
                   "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",  # against pages in the user's browser
                   "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}"}
    with guarded([sys.executable, "-m", "uvicorn", *app], env=environment) as server:
        url = f"http://127.0.0.1:{port}/api"
        limit = get_current_settings().server.ephemeral.startup_timeout_seconds
        end = time.monotonic() + limit
        while not answers(url):
            if server.poll() is not None or time.monotonic() > end:
                raise UserError(f"no Prefect server could be started within {limit} s")
            time.sleep(0.2)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_UI_URL: ""}):  # it serves no pages
            yield


def use_server() -> None:
    """Have Prefect use the server at PREFECT_API_URL, or one of this process's own until it exits.

    Raises UserError when no server answers there.
    """
    url = get_current_settings().api.url
    if url and not answers(url):
        raise UserError(f"no Prefect server answers at {url} (PREFECT_API_URL)")
    server = ExitStack()
    atexit.register(server.close)  # not earlier: at its own exit Prefect sends the last lines of the log
    if not url:
        server.enter_context(temporary_server())


def need_server() -> None:
    """Raises UserError, with how to start one, when no server answers at PREFECT_API_URL."""
    url = get_current_settings().api.url
    if not url or not answers(url):
        at = f"at {url} (PREFECT_API_URL)" if url else "because PREFECT_API_URL is not set"
        raise UserError(
            f"no Prefect server answers {at}; `prefect server start --host 127.0.0.1` starts one (docs/schedule.md has "
            "the settings that protect it), and `export PREFECT_API_URL=http://127.0.0.1:4200/api` points here to it"
        )
