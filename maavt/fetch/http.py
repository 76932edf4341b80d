"""Files over HTTP: resumed, verified, put in place whole, retried as long as that may help, and polite."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import urllib3
from tenacity import Retrying, retry_if_exception

from maavt.errors import UserError, describe
from maavt.fetch import ENVIRONMENT, PERMANENT, SESSION, STOPPING, TRANSIENT, Failed, Stopped
from maavt.fetch.answer import LARGEST_ANSWER, chunks, host, retry_after
from maavt.fetch.budget import Budget
from maavt.fetch.transfer import Transfer, Tries, forget

ATTEMPTS = 6  # in a row that bring nothing new
BACKOFF = 1.0  # seconds, doubled for every attempt in vain
LONGEST_BACKOFF = 60.0
LONGEST_PAUSE = 600.0  # seconds that a server may ask us to wait before the run stops instead
FRUITLESS = 20  # files in a row that fail after all attempts, until the server counts as out of reach
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes


class Http:
    """Connections that share a budget, and pauses that servers ask for. Use from any thread."""

    def __init__(self, budget: Budget, *, connections: int | None = None, on_bytes: Callable[[int], Any] = int):
        self.budget = budget
        self.connections = connections or _connections()
        self.on_bytes = on_bytes  # called with bytes received, or with minus those that were thrown away
        self.sizes: dict[str, int] = {}  # of files being received, by URL, where the server tells
        self.alone: set[str] = set()  # hosts that do not send several pieces of a file at once
        self._stopping = threading.Event()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._files = 0  # on their way
        self._pauses: dict[str, float] = {}
        self._fruitless = 0

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
                self._stopping.set()
                pool.shutdown(wait=True, cancel_futures=True)
                self._stopping.clear()
                raise

    def ask(self, method: str, url: str, *, json: Any = None, headers: dict | None = None) -> bytes:
        """A small answer, after as many attempts as may help; raises Failed."""
        def attempt(_):
            with self.open(method, url, headers or {}, json) as response:
                return b"".join(chunks(response, LARGEST_ANSWER))

        return self._try(url, attempt)

    def file(self, url: str, path: Path, *, size: int | None = None, sha256: str | None = None,
             headers: dict | None = None, page: Callable[[str, str], str] | None = None) -> None:
        """Put the file at `url` to `path`; raises Failed.

        `page` is called with the text and the URL of a web page that comes instead, and returns where the file is.
        """
        part = path.with_name(f"{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._counted():
            self._try(url, lambda tries: Transfer(self, url, part, size, sha256, headers or {}, page, tries).run())
        os.replace(part, path)
        forget(part)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._files += 1
        try:
            yield
        finally:
            with self._lock:
                self._files -= 1

    def share(self, url: str) -> int:
        """How many connections one of the files on their way may have."""
        return 1 if host(url) in self.alone else max(self.connections // max(self._files, 1), 1)

    def persist(self, attempt: Callable[[Tries], Any]) -> Any:
        """What `attempt` returns in the end; raises Failed when it is no use, or after ATTEMPTS in a row in vain."""
        tries = Tries()

        def once():
            best = tries.best
            try:
                return attempt(tries)
            except Failed:
                tries.vain = 0 if tries.best > best else tries.vain + 1
                raise

        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Failed) and error.kind == TRANSIENT),
            stop=lambda state: tries.vain >= ATTEMPTS,
            wait=lambda state: random.uniform(0, min(BACKOFF * 2**tries.vain, LONGEST_BACKOFF)),
            sleep=self._sleep, reraise=True,
        )
        return retrying(once)

    def _try(self, url: str, attempt: Callable[[Tries], Any]) -> Any:
        try:
            result = self.persist(attempt)
        except Failed as failed:
            if failed.kind == TRANSIENT:
                self._fruitless += 1
                if self._fruitless >= FRUITLESS or "HTTP 429" in failed.reason:
                    raise Failed(SESSION, f"{host(url)} does not serve us any more ({failed.reason}); wait a while, "
                                 "or check the network") from failed
            else:
                self._fruitless = 0  # it did answer
            raise
        self._fruitless = 0
        return result

    def open(self, method: str, url: str, headers: dict, json: Any = None) -> requests.Response:
        """An answer with a status of success; raises Failed for all others."""
        self._take_turn(url)
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()  # one for each thread, with its cookies
        try:
            response = self._local.session.request(method, url, json=json, stream=True, timeout=TIMEOUT,
                                                   headers={"Accept-Encoding": "identity"} | headers)
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema,
                requests.exceptions.InvalidSchema) as error:
            raise UserError(f"{url!r} is no URL ({error}); mend it in params.yaml") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Failed(TRANSIENT, f"no answer ({type(error).__name__})") from None
        if not response.ok and not (response.status_code == 416 and "Range" in headers):
            with response:
                raise self._refused(response)
        return response

    def _refused(self, response: requests.Response) -> Failed:
        code, name = response.status_code, host(response.url)
        if code in (429, 503) and (pause := retry_after(response)) is not None:
            if pause > LONGEST_PAUSE:
                return Failed(SESSION, f"{name} asks to wait {pause:.0f} s; run the same command again after that")
            for asked in {name, *(host(earlier.url) for earlier in response.history)}:  # redirects lead there again
                self._pauses[asked] = max(self._pauses.get(asked, 0.0), time.monotonic() + pause)
        if code in (408, 425, 429) or code >= 500:
            return Failed(TRANSIENT, f"HTTP {code}")
        if code in (401, 403, 407):
            return Failed(SESSION, f"{name} refuses access (HTTP {code}): it wants a login or a token, or it blocks "
                          "this network")
        return Failed(PERMANENT, f"gone (HTTP {code})" if code in (404, 410) else f"HTTP {code}")

    def _take_turn(self, url: str) -> None:
        """Wait as long as the host has asked anybody here to."""
        while (left := self._pauses.get(host(url), 0.0) - time.monotonic()) > 0:
            self._sleep(left)
        self.check()

    def check(self) -> None:
        """Raise Stopped in threads whose work no longer matters."""
        self._sleep(0)

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Stopped


def _whole(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except Failed as failed:
        if failed.kind in STOPPING:
            raise
        return failed
    except OSError as error:
        raise Failed(ENVIRONMENT, describe(error)) from error


def _connections() -> int:
    text = os.environ.get("MAAVT_CONNECTIONS", "").strip() or "4"
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise UserError(f"MAAVT_CONNECTIONS={text!r}: expected a whole number from 1 to 64; set it to one, or unset it")
    return int(text)
