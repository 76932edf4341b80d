"""A file on its way: it grows under the name *.part beside a note of its version (ETag or Last-Modified).

The next attempt, in this run or a later one, asks for the rest with Range and If-Range, so a file that changed on the
server starts anew.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from maavt.fetch import SESSION, TRANSIENT, Failed, Stopped, segments
from maavt.fetch.answer import LARGEST_ANSWER, chunks, host, length, packed, rest_of, version
from maavt.work import sha256 as sha256_of

if TYPE_CHECKING:
    from maavt.fetch.http import Http


@dataclass
class Tries:
    """Attempts in a row that brought nothing new, and how many bytes there were at best."""

    vain: int = 0
    best: int = 0


class _Alone(Exception):
    """The server sends one piece of a file, but not several at once."""


class Transfer:
    """One attempt to bring a .part to its full length."""

    def __init__(self, http: Http, url: str, part: Path, size: int | None, sha256: str | None, headers: dict,
                 page: Callable[[str, str], str] | None, tries: Tries):
        self.http, self.url, self.part, self.page, self.tries = http, url, part, page, tries
        self.size, self.sha256, self.headers = size, sha256, headers
        self._over = threading.Event()

    def run(self) -> None:
        """Raises Failed."""
        try:
            offset, known = self._begun()
            if not (self.size is not None and offset == self.size and self.sha256):
                self._receive(self.url, offset, known)
        finally:
            self._over.set()
        if self.sha256 and sha256_of(self.part) != self.sha256:
            self._drop()
            raise Failed(TRANSIENT, "the bytes are not those that were announced (sha256)")
        with open(self.part, "rb") as file:
            os.fsync(file.fileno())

    def _receive(self, url: str, offset: int, known: str, pages: int = 3) -> None:
        with self.http.open("GET", url, self.headers | (_range(f"{offset}-", known) if offset else {})) as response:
            if response.headers.get("Content-Type", "").startswith("text/html"):
                if not self.page or not pages:
                    raise Failed(SESSION, f"{host(url)} sends a web page instead of the file: it wants a login, or "
                                 "a portal is in between")
                text = b"".join(chunks(response, LARGEST_ANSWER)).decode(errors="replace")
                place = self.page(text, response.url)
            else:
                return self._save(response, url, offset, known)
        self._receive(place, offset, known, pages - 1)

    def _save(self, response: requests.Response, url: str, offset: int, known: str) -> None:
        if response.status_code == 416:  # nothing is left, unless the file changed
            if response.headers.get("Content-Range", "").strip() != f"bytes */{offset}":
                self._drop()
                raise Failed(TRANSIENT, "the file changed on the server")
            return
        if response.status_code == 206:
            total = rest_of(response, offset, known)
            if total is None or packed(response):
                self._drop()
                raise Failed(TRANSIENT, "the file changed on the server")
        else:
            offset, known, total = 0, version(response), length(response)
            if packed(response):  # the length is another one, and its parts are of no use
                known, total = "", None
        if self.size is not None and total not in (None, self.size):
            raise Failed(TRANSIENT, f"the server announces {total} bytes; expected {self.size}")
        if offset == 0:
            self._drop()
            _note_of(self.part).write_text(json.dumps({"of": self._identity(), "validator": known}))
        if total is not None:
            self.http.sizes[self.url] = total
            self.http.budget.check(total - offset)
        with open(self.part, "ab") as file, closing(self._body(response, url, offset, total, known)) as body:
            for chunk in body:
                self.http.budget.take(len(chunk))
                file.write(chunk)
                self.tries.best = max(self.tries.best, file.tell())
                self.http.on_bytes(len(chunk))
                self.http.check()
        got = self.part.stat().st_size
        expected = self.size if total is None else total
        if expected is not None and got != expected:
            if got > expected:
                self._drop()
            raise Failed(TRANSIENT, "the connection broke")

    def _body(self, response: requests.Response, url: str, begin: int, end: int | None, known: str) -> Iterator[bytes]:
        """What the answer brings, with other connections ahead of it, where the server can do that."""
        ranges = response.status_code == 206 or response.headers.get("Accept-Ranges", "").strip() == "bytes"
        if not ranges or not (known or self.sha256) or end is None or end - begin < 2 * segments.PIECE:
            return chunks(response)
        return segments.in_order(response, partial(self._piece, url, known, end), begin, end,
                                 partial(self.http.share, url))

    def _piece(self, url: str, known: str, total: int, begin: int, end: int) -> bytearray:
        """These bytes of the file, over a connection of its own; raises Failed."""
        got = bytearray()

        def attempt(tries: Tries) -> None:
            at = begin + len(got)
            try:
                response = self.http.open("GET", url, self.headers | _range(f"{at}-{end - 1}", known))
            except Failed as failed:
                if failed.kind == TRANSIENT and "HTTP 429" not in failed.reason:
                    raise
                raise _Alone(failed.reason) from None
            with response:
                if rest_of(response, at, known) != total:
                    raise _Alone("the file changed on the server")
                for chunk in chunks(response):
                    got.extend(chunk[: end - begin - len(got)])
                    tries.best = len(got)
                    self.http.check()
                    if self._over.is_set():
                        raise Stopped
                    if len(got) == end - begin:
                        return
            raise Failed(TRANSIENT, "the connection broke")

        try:
            self.http.persist(attempt)
        except _Alone as alone:
            self.http.alone.add(host(url))
            raise Failed(TRANSIENT, str(alone)) from None
        return got

    def _begun(self) -> tuple[int, str]:
        """(bytes, version) of the part that is there and may be gone on with."""
        try:
            note = json.loads(_note_of(self.part).read_text())
            offset = self.part.stat().st_size
            usable = note["of"] == self._identity() and (note["validator"] or self.sha256)
            if usable and (self.size is None or offset <= self.size):
                if not self.tries.best:
                    self.http.on_bytes(offset)
                self.tries.best = max(self.tries.best, offset)
                return offset, note["validator"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        self._drop()
        return 0, ""

    def _identity(self) -> str:
        return self.sha256 or self.url

    def _drop(self) -> None:
        if self.part.exists():
            size = self.part.stat().st_size
            self.http.budget.give(size)
            self.http.on_bytes(-size if self.tries.best else 0)
            self.part.unlink()
        forget(self.part)


def forget(part: Path) -> None:
    """Remove the note beside a part."""
    _note_of(part).unlink(missing_ok=True)


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _range(wanted: str, known: str) -> dict[str, str]:
    return {"Range": f"bytes={wanted}"} | ({"If-Range": known} if known else {})
