"""A large file on Google Drive or at any URL with gdown, which goes on with the part of an earlier run.

What it lacks: kinds of failure, and a way on from a part that the server does not go on with.
"""

import glob
from pathlib import Path

import gdown
from gdown.exceptions import DownloadCancelled, DownloadError, FileURLRetrievalError

from maavt.fetch import PERMANENT, SESSION, TRANSIENT, Failed, Stopped
from maavt.fetch.http import TIMEOUT, WEB_PAGE, Http


def fetch(http: Http, url: str, path: Path) -> None:
    """Put the file at `url` to `path`; raises Failed."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def parts() -> list[Path]:
        return list(path.parent.glob(f"{glob.escape(path.name)}????????.part"))  # as gdown names them

    def got() -> int:
        return sum(part.stat().st_size for part in parts())

    def drop() -> None:
        http.count(-got())
        for part in parts():
            part.unlink()

    def attempt() -> None:
        have = got()

        def count(received: int, total: int | None) -> None:
            nonlocal have
            if total:
                http.sizes[url] = total
                http.budget.check(total - received)
            http.count(received - have)
            have = received

        try:
            with http.telling(url):
                gdown.download(url, str(path), quiet=True, use_cookies=False, resume=True, timeout=TIMEOUT,
                               progress=count, cancel=http.stopping)
        except DownloadCancelled:
            raise Stopped from None
        except FileURLRetrievalError as error:
            raise _explain(" ".join(str(error).split())) from None
        except DownloadError as error:
            if "incomplete" not in str(error):  # there are several parts, or this one cannot be gone on with
                drop()
            raise Failed(TRANSIENT, "the connection broke, or the file changed on the server") from None
        except KeyError as error:
            raise Failed(TRANSIENT, f"Google Drive's answer has no {error}") from None
        with open(path, "rb") as file:
            if file.read(64).lstrip()[:1] == b"<":
                http.count(-path.stat().st_size)
                path.unlink()
                raise Failed(SESSION, f"{url} {WEB_PAGE}")

    http.on_bytes(got())
    http.persist(url, attempt, got)


def _explain(page: str) -> Failed:
    if any(words in page.lower() for words in ("quota", "too many users")):
        return Failed(SESSION, "Google Drive's quota for this file is used up; try again in a day, or fetch the file "
                      "with a browser where you are signed in, and set ave.local to it")
    if any(words in page.lower() for words in ("does not exist", "no longer available", "in violation")):
        return Failed(PERMANENT, "Google Drive has no such file any more")
    return Failed(TRANSIENT, "Google Drive sends a page instead of the file: it fails, refuses access or wants a login")
