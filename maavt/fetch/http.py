"""Files over HTTP: resumed, verified, put in place whole, retried as long as that may help, and polite.

A file grows under the name *.part beside a note of its validator (ETag or Last-Modified). The next try, in this run
or a later one, asks for the rest with Range and If-Range, so a file that changed on the server starts anew.
"""

import email.utils
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from tenacity import Retrying, retry_if_exception

from maavt.errors import UserError, describe
from maavt.fetch import ENVIRONMENT, PERMANENT, SESSION, STOPPING, TRANSIENT, Failed
from maavt.fetch.budget import Budget
from maavt.work import sha256 as sha256_of

ATTEMPTS = 6  # in a row that bring nothing new
BACKOFF = 1.0  # seconds, doubled for every attempt in vain
LONGEST_BACKOFF = 60.0
LONGEST_PAUSE = 600.0  # seconds that a server may ask us to wait before the run stops instead
FRUITLESS = 20  # files in a row that fail after all attempts, until the server counts as out of reach
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
CHUNK = 1 << 18
LARGEST_ANSWER = 64 << 20  # bytes of an answer that is not a file


class Stopped(Exception):
    """Raised in threads whose work no longer matters."""


@dataclass
class _Tries:
    """Attempts in a row that brought nothing new, and how many bytes there were at best."""

    vain: int = 0
    best: int = 0


class Http:
    """Connections that share a budget, and pauses that servers ask for. Use from any thread."""

    def __init__(self, budget: Budget, *, connections: int | None = None, on_bytes: Callable[[int], Any] = int):
        self.budget = budget
        self.connections = connections or _connections()
        self.on_bytes = on_bytes  # called with bytes received, or with minus those that were thrown away
        self.sizes: dict[str, int] = {}  # of files being received, by URL, where the server tells
        self._stopping = threading.Event()
        self._local = threading.local()
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
            with self._open(method, url, headers or {}, json) as response:
                return b"".join(_chunks(response, LARGEST_ANSWER))

        return self._try(url, attempt)

    def file(self, url: str, path: Path, *, part: Path | None = None, size: int | None = None,
             sha256: str | None = None, headers: dict | None = None,
             page: Callable[[str, str], str] | None = None) -> None:
        """Put the file at `url` to `path`, by way of `part` (beside it by default); raises Failed.

        `page` is called with the text and the URL of a web page that comes instead, and returns where the file is.
        """
        part = part or path.with_name(f"{path.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._try(url, lambda tries: _Transfer(self, url, part, size, sha256, headers or {}, page, tries).run())
        os.replace(part, path)
        _note_of(part).unlink(missing_ok=True)

    def _try(self, url: str, attempt: Callable[[_Tries], Any]) -> Any:
        tries = _Tries()

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
        try:
            result = retrying(once)
        except Failed as failed:
            if failed.kind == TRANSIENT:
                self._fruitless += 1
                if self._fruitless >= FRUITLESS or "HTTP 429" in failed.reason:
                    raise Failed(SESSION, f"{_host(url)} does not serve us any more ({failed.reason}); wait a while, "
                                 "or check the network") from failed
            else:
                self._fruitless = 0  # it did answer
            raise
        self._fruitless = 0
        return result

    def _open(self, method: str, url: str, headers: dict, json: Any = None) -> requests.Response:
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
        code, host = response.status_code, _host(response.url)
        if code in (429, 503) and (pause := _retry_after(response)) is not None:
            if pause > LONGEST_PAUSE:
                return Failed(SESSION, f"{host} asks to wait {pause:.0f} s; run the same command again after that")
            self._pauses[host] = max(self._pauses.get(host, 0.0), time.monotonic() + pause)
        if code in (408, 425, 429) or code >= 500:
            return Failed(TRANSIENT, f"HTTP {code}")
        if code in (401, 403, 407):
            return Failed(SESSION, f"{host} refuses access (HTTP {code}): it wants a login or a token, or it blocks "
                          "this network")
        return Failed(PERMANENT, f"gone (HTTP {code})" if code in (404, 410) else f"HTTP {code}")

    def _take_turn(self, url: str) -> None:
        """Wait as long as the host has asked anybody here to."""
        while (left := self._pauses.get(_host(url), 0.0) - time.monotonic()) > 0:
            self._sleep(left)
        self._sleep(0)

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Stopped


class _Transfer:
    """One attempt to bring a .part to its full length."""

    def __init__(self, http: Http, url: str, part: Path, size: int | None, sha256: str | None, headers: dict,
                 page: Callable[[str, str], str] | None, tries: _Tries):
        self.http, self.url, self.part, self.page, self.tries = http, url, part, page, tries
        self.size, self.sha256, self.headers = size, sha256, headers

    def run(self) -> None:
        offset, validator = self._begun()
        if not (self.size is not None and offset == self.size and self.sha256):
            self._receive(self.url, offset, validator)
        if self.sha256 and sha256_of(self.part) != self.sha256:
            self._drop()
            raise Failed(TRANSIENT, "the bytes are not those that were announced (sha256)")
        with open(self.part, "rb") as file:
            os.fsync(file.fileno())

    def _receive(self, url: str, offset: int, validator: str, pages: int = 3) -> None:
        headers = dict(self.headers)
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator:
                headers["If-Range"] = validator
        with self.http._open("GET", url, headers) as response:
            if response.headers.get("Content-Type", "").startswith("text/html"):
                if not self.page or not pages:
                    raise Failed(SESSION, f"{_host(url)} sends a web page instead of the file: it wants a login, or "
                                 "a portal is in between")
                text = b"".join(_chunks(response, LARGEST_ANSWER)).decode(errors="replace")
                url = self.page(text, response.url)
            else:
                return self._save(response, offset, validator)
        self._receive(url, offset, validator, pages - 1)

    def _save(self, response: requests.Response, offset: int, validator: str) -> None:
        total = int(length) if (length := response.headers.get("Content-Length", "")).isdecimal() else None
        if response.status_code == 416:  # nothing is left, unless the file changed
            if response.headers.get("Content-Range", "").strip() != f"bytes */{offset}":
                self._drop()
                raise Failed(TRANSIENT, "the file changed on the server")
            return
        if response.status_code == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
            if not match or int(match[1]) != offset or validator not in ("", _validator(response)):
                self._drop()
                raise Failed(TRANSIENT, "the file changed on the server")
            total = int(match[2])
        else:
            offset = 0
        if self.size is not None and total not in (None, self.size):
            raise Failed(TRANSIENT, f"the server announces {total} bytes; expected {self.size}")
        if offset == 0:
            self._drop()
            note = {"of": self._identity(), "validator": _validator(response)}
            _note_of(self.part).write_text(json.dumps(note))
        if total is not None:
            self.http.sizes[self.url] = total
            self.http.budget.check(total - offset)
        with open(self.part, "ab") as file:
            for chunk in _chunks(response):
                self.http.budget.take(len(chunk))
                file.write(chunk)
                self.tries.best = max(self.tries.best, file.tell())
                self.http.on_bytes(len(chunk))
                self.http._sleep(0)
        got = self.part.stat().st_size
        expected = self.size if total is None else total
        if expected is not None and got != expected:
            if got > expected:
                self._drop()
            raise Failed(TRANSIENT, "the connection broke")

    def _begun(self) -> tuple[int, str]:
        """(bytes, validator) of the part that is there and may be gone on with."""
        try:
            note = json.loads(_note_of(self.part).read_text())
            offset = self.part.stat().st_size
            usable = note["of"] == self._identity() and (note["validator"] or self.sha256)
            if usable and (self.size is None or offset <= self.size):
                if not self.tries.best:
                    self.http.on_bytes(offset)
                self._improve()
                return offset, note["validator"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        self._drop()
        return 0, ""

    def _improve(self) -> None:
        self.tries.best = max(self.tries.best, self.part.stat().st_size)

    def _identity(self) -> str:
        return self.sha256 or self.url

    def _drop(self) -> None:
        if self.part.exists():
            size = self.part.stat().st_size
            self.http.budget.give(size)
            self.http.on_bytes(-size if self.tries.best else 0)
            self.part.unlink()
        _note_of(self.part).unlink(missing_ok=True)


def _whole(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except Failed as failed:
        if failed.kind in STOPPING:
            raise
        return failed
    except OSError as error:
        raise Failed(ENVIRONMENT, describe(error)) from error


def _chunks(response: requests.Response, limit: int | None = None) -> Iterator[bytes]:
    """The body as it comes in; ends early where the connection breaks without a word."""
    received = 0
    while True:
        try:
            chunk = response.raw.read1(CHUNK, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Failed(TRANSIENT, f"the connection broke ({type(error).__name__})") from None
        if not chunk:
            return
        received += len(chunk)
        if limit is not None and received > limit:
            raise Failed(PERMANENT, f"an answer of more than {limit} bytes")
        yield chunk


def _validator(response: requests.Response) -> str:
    """What tells this version of the file from others, as If-Range takes it; "" where there is no such thing."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _retry_after(response: requests.Response) -> float | None:
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _connections() -> int:
    text = os.environ.get("MAAVT_CONNECTIONS", "").strip() or "4"
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise UserError(f"MAAVT_CONNECTIONS={text!r}: expected a whole number from 1 to 64; set it to one, or unset it")
    return int(text)
