"""Small files and answers over HTTP: verified, put in place whole, retried as long as that may help, and polite.

By hand around requests: no downloader has kinds of failure, and pauses that all threads keep.
"""

import glob
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
        self.at_stop: list[Callable[[], Any]] = []  # ends what else is under way
        self._local = threading.local()
        self._pauses: dict[str, float] = {}
        self._fruitless = 0
        if proxy := os.environ.get("MAAVT_PROXY"):  # every client reads these, those inside libraries too
            os.environ |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy)

    def each(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """(item, work(item)) in the order in which they get done, in parallel; or (item, Failed).

        A failure of a kind in STOPPING ends all work and is raised. Items are taken as they are needed.
        """
        items, pending = iter(items), {}
        with ThreadPoolExecutor(self.connections, thread_name_prefix="fetch") as pool:
            try:
                while True:
                    while len(pending) < 2 * self.connections and (item := next(items, pending)) is not pending:
                        pending[pool.submit(work, item)] = item
                    if not pending:
                        return
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        failed = future.exception()
                        if isinstance(failed, OSError):
                            raise Failed(ENVIRONMENT, describe(failed)) from failed
                        data = isinstance(failed, Failed) and failed.kind not in STOPPING
                        yield pending.pop(future), failed if data else future.result()
            except BaseException:
                self.stopping.set()
                for end in list(self.at_stop):
                    end()
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

    def drop(self, part: Path) -> None:
        """Remove a part of a file, if there is one."""
        self.count(-length(part))
        part.unlink(missing_ok=True)

    def part(self, path: Path, name: str) -> Path:
        """Where the part of `path` of that name is to grow; all others are removed. What it has counts as received."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}{name}.part")
        for other in set(path.parent.glob(f"{glob.escape(path.name)}{'?' * len(name)}.part")) - {part}:
            self.drop(other)
        self.on_bytes(length(part))
        return part

    def persist(self, url: str, attempt: Callable[[], Any], got: Callable[[], int] = int) -> Any:
        """What `attempt` returns in the end; raises Failed when it is no use, or after ATTEMPTS in a row in vain.

        `got` says how many bytes there are: an attempt that brings more is not in vain.
        """
        vain, most = 0, got()
        while True:
            try:
                with self._telling(url):
                    result = attempt()
                self._fruitless = 0
                return result
            except Failed as failed:
                vain, most = (0, got()) if got() > most else (vain + 1, most)
                passing = failed.kind == TRANSIENT
                if not passing or vain >= ATTEMPTS:
                    self._fruitless = self._fruitless + 1 if passing else 0  # 0: it did answer
                    if passing and (self._fruitless >= FRUITLESS or "HTTP 429" in failed.reason):
                        raise Failed(SESSION, f"{_host(url)} does not serve us any more ({failed.reason}); wait a "
                                     "while, or check the network") from failed
                    raise
            self._sleep(random.uniform(0, min(BACKOFF * 2**vain, LONGEST_BACKOFF)))

    def _answer(self, method: str, url: str, headers: dict, json: Any = None) -> Iterator[bytes]:
        """The body of an answer with a status of success, whole; raises Failed for all others."""
        self.wait_for(url)
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()  # one for each thread, with its cookies
        with self._local.session.request(method, url, json=json, headers=headers, stream=True,
                                         timeout=TIMEOUT) as response:
            self.judge(response)
            yield from response.iter_content(1 << 18)

    @contextmanager
    def _telling(self, url: str) -> Iterator[None]:
        """Raise what requests and the hub's client raise as Failed, or UserError."""
        try:
            yield
        except requests.HTTPError as error:
            self.judge(error.response)
        except ImportError as error:
            raise Failed(ENVIRONMENT, f"a library for downloads cannot work: {error}") from None
        except Exception as error:
            if isinstance(error, requests.RequestException) and isinstance(error, ValueError):
                raise UserError(f"{url!r} is no URL ({error}); mend it in params.yaml") from None
            if getattr(error, "errno", None) or not (isinstance(error, (OSError, RuntimeError)) or type(
                    error).__module__.startswith(("httpx", "urllib3"))):
                raise  # a number: the disk
            raise Failed(TRANSIENT, f"no answer, or a broken one ({type(error).__name__})") from error

    def judge(self, response: Any) -> None:
        """Raise Failed for an answer that is none, of requests or of the hub's client."""
        code, host = response.status_code, _host(str(response.url))
        if code < 300 and response.headers.get("Content-Type", "").startswith("text/html"):
            raise Failed(SESSION, f"{response.url} {WEB_PAGE}")
        if code < 400:
            return
        if code in (429, 503) and (pause := retry_after(response.headers)) is not None:
            if pause > LONGEST_PAUSE:
                raise Failed(SESSION, f"{host} asks to wait {pause:.0f} s; run the same command again after that")
            for asked in {host, *(_host(str(earlier.url)) for earlier in response.history)}:  # they lead there again
                self._pauses[asked] = max(self._pauses.get(asked, 0.0), time.monotonic() + pause)
        if code in (408, 425, 429) or code >= 500:
            raise Failed(TRANSIENT, f"HTTP {code}")
        if code in (401, 403, 407):
            raise Failed(SESSION, f"{host} refuses access (HTTP {code}): it wants a login or a token, or it blocks "
                         "this network")
        raise Failed(PERMANENT, f"gone (HTTP {code})" if code in (404, 410) else f"HTTP {code}")

    def wait_for(self, url: Any) -> None:
        """Keep the pause that the server at `url` asked anybody here for; raises Stopped."""
        self._sleep(max(self._pauses.get(_host(str(url)), 0.0) - time.monotonic(), 0.0))

    def _sleep(self, seconds: float) -> None:
        if self.stopping.wait(seconds):
            raise Stopped


def length(part: Path) -> int:
    """Its bytes, 0 where there is none."""
    return part.stat().st_size if part.exists() else 0


def retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait."""
    try:
        return float(urllib3.Retry().parse_retry_after(headers["Retry-After"]))
    except (KeyError, ValueError, OverflowError, urllib3.exceptions.InvalidHeader):
        return None


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
