"""Small files and answers over HTTP: verified, put in place whole, retried as long as that may help, and polite.

By hand around requests and tenacity: no downloader has kinds of failure, and pauses that all threads keep.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from tenacity import Retrying, retry_if_exception

from maavt.errors import UserError, describe
from maavt.fetch import ENVIRONMENT, PERMANENT, SESSION, STOPPING, TRANSIENT, Failed, Stopped
from maavt.fetch.budget import Budget
from maavt.work import atomic
from maavt.work import sha256 as sha256_of

ATTEMPTS = 6  # in a row that bring nothing new
BACKOFF = 1.0  # seconds, doubled for every attempt in vain
LONGEST_BACKOFF = 60.0
LONGEST_PAUSE = 600.0  # seconds that a server may ask us to wait before the run stops instead
FRUITLESS = 20  # files in a row that fail after all attempts, until the server counts as out of reach
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes

WEB_PAGE = "sends a web page instead of the file: it wants a login, or a portal is in between"


class Http:
    """Connections that share a budget, and pauses that servers ask for. Use from any thread."""

    def __init__(self, budget: Budget, *, connections: int = 4, on_bytes: Callable[[int], Any] = int):
        self.budget, self.connections = budget, connections
        self.on_bytes = on_bytes  # called with bytes received, or with minus those that were thrown away
        self.sizes: dict[str, int] = {}  # of large files being received, by URL, where the server tells
        self.stopping = threading.Event()
        self._local = threading.local()
        self._pauses: dict[str, float] = {}
        self._fruitless = 0
        if proxy := os.environ.get("MAAVT_PROXY"):  # every client reads these, those inside libraries too
            os.environ |= {"http_proxy": proxy, "https_proxy": proxy}

    def each(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """(item, work(item)) in the order in which they get done, in parallel; or (item, Failed).

        A failure of a kind in STOPPING ends all work and is raised. Items are taken as they are needed.
        """
        items, pending = iter(items), {}
        with ThreadPoolExecutor(self.connections, thread_name_prefix="fetch") as pool:
            try:
                while True:
                    while len(pending) < 2 * self.connections and (item := next(items, pending)) is not pending:
                        pending[pool.submit(_whole, work, item)] = item
                    if not pending:
                        return
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        yield pending.pop(future), future.result()
            except BaseException:
                self.stopping.set()
                pool.shutdown(wait=True, cancel_futures=True)
                self.stopping.clear()
                raise

    def ask(self, method: str, url: str, *, json: Any = None, headers: dict | None = None) -> bytes:
        """A small answer, after as many attempts as may help; raises Failed."""
        return self.persist(url, lambda: b"".join(self._answer(method, url, headers or {}, json)))

    def file(self, url: str, path: Path, *, size: int | None = None, sha256: str | None = None,
             headers: dict | None = None) -> None:
        """Put the file at `url` to `path`; raises Failed."""
        def attempt() -> None:
            received = 0
            try:
                with atomic(path) as temporary:
                    with open(temporary, "wb") as file:
                        for chunk in self._answer("GET", url, headers or {}):
                            self.count(len(chunk))
                            received += len(chunk)
                            file.write(chunk)
                    if size not in (None, received) or sha256 not in (None, sha256_of(temporary)):
                        raise Failed(TRANSIENT, "the bytes are not those that were announced (size or sha256)")
            except BaseException:
                self.count(-received)
                raise

        self.persist(url, attempt)

    def count(self, size: int) -> None:
        """Count bytes about to be written, or minus those thrown away; raises Failed, and Stopped."""
        if size > 0:
            self._sleep(0)
            self.budget.take(size)
        else:
            self.budget.give(-size)
        self.on_bytes(size)

    def persist(self, url: str, attempt: Callable[[], Any], got: Callable[[], int] = int) -> Any:
        """What `attempt` returns in the end; raises Failed when it is no use, or after ATTEMPTS in a row in vain.

        `got` says how many bytes there are: an attempt that brings more is not in vain.
        """
        vain, most = 0, got()

        def once() -> Any:
            nonlocal vain, most
            try:
                return attempt()
            except Failed:
                vain, most = (0, got()) if got() > most else (vain + 1, most)
                raise

        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Failed) and error.kind == TRANSIENT),
            stop=lambda state: vain >= ATTEMPTS, sleep=self._sleep, reraise=True,
            wait=lambda state: random.uniform(0, min(BACKOFF * 2**vain, LONGEST_BACKOFF)))
        try:
            result = retrying(once)
        except Failed as failed:
            self._fruitless = self._fruitless + 1 if failed.kind == TRANSIENT else 0  # 0: it did answer
            if failed.kind == TRANSIENT and (self._fruitless >= FRUITLESS or "HTTP 429" in failed.reason):
                raise Failed(SESSION, f"{_host(url)} does not serve us any more ({failed.reason}); wait a while, or "
                             "check the network") from failed
            raise
        self._fruitless = 0
        return result

    def _answer(self, method: str, url: str, headers: dict, json: Any = None) -> Iterator[bytes]:
        """The body of an answer with a status of success, whole; raises Failed for all others."""
        while (left := self._pauses.get(_host(url), 0.0) - time.monotonic()) > 0:  # asked for, from anybody here
            self._sleep(left)
        self._sleep(0)
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()  # one for each thread, with its cookies
        with self.telling(url), self._local.session.request(method, url, json=json, headers=headers, stream=True,
                                                            timeout=TIMEOUT) as response:
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise Failed(SESSION, f"{url} {WEB_PAGE}")
            yield from response.iter_content(1 << 18)

    @contextmanager
    def telling(self, url: str) -> Iterator[None]:
        """Raise what requests raises as Failed, or UserError."""
        try:
            yield
        except requests.HTTPError as error:
            raise self.refused(error.response) from None
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema,
                requests.exceptions.InvalidSchema) as error:
            raise UserError(f"{url!r} is no URL ({error}); mend it in params.yaml") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Failed(TRANSIENT, f"no answer, or a broken one ({type(error).__name__})") from None

    def refused(self, response: Any) -> Failed:
        """What a status means that is none of success, of requests or of the hub's client."""
        code, host = response.status_code, _host(str(response.url))
        if code in (429, 503) and (pause := retry_after(response.headers)) is not None:
            if pause > LONGEST_PAUSE:
                return Failed(SESSION, f"{host} asks to wait {pause:.0f} s; run the same command again after that")
            for asked in {host, *(_host(str(earlier.url)) for earlier in response.history)}:  # they lead there again
                self._pauses[asked] = max(self._pauses.get(asked, 0.0), time.monotonic() + pause)
        if code in (408, 425, 429) or code >= 500:
            return Failed(TRANSIENT, f"HTTP {code}")
        if code in (401, 403, 407):
            return Failed(SESSION, f"{host} refuses access (HTTP {code}): it wants a login or a token, or it blocks "
                          "this network")
        return Failed(PERMANENT, f"gone (HTTP {code})" if code in (404, 410) else f"HTTP {code}")

    def _sleep(self, seconds: float) -> None:
        if self.stopping.wait(seconds):
            raise Stopped


def retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait."""
    try:
        return float(urllib3.Retry().parse_retry_after(headers["Retry-After"]))
    except (KeyError, ValueError, OverflowError, urllib3.exceptions.InvalidHeader):
        return None


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _whole(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except Failed as failed:
        if failed.kind in STOPPING:
            raise
        return failed
    except OSError as error:
        raise Failed(ENVIRONMENT, describe(error)) from error
