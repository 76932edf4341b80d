"""A large file on Google Drive or at any URL with gdown, which goes on with the part of an earlier run.

What it lacks: kinds of failure, and a way on from a part that the server does not go on with. MAAVT_COOKIES is a file
of cookies, as browsers export them, for a file that not everybody may see.
"""

import os
from http.cookiejar import MozillaCookieJar
from pathlib import Path
from tempfile import TemporaryDirectory

import gdown
import requests
from gdown.download import get_url_from_gdrive_confirmation
from gdown.exceptions import DownloadCancelled, DownloadError, FileURLRetrievalError

from maavt.errors import UserError
from maavt.fetch import SESSION, TRANSIENT, Failed, Stopped, explain
from maavt.fetch.http import TIMEOUT, WEB_PAGE, Http, length


def fetch(http: Http, url: str, path: Path) -> None:
    """Put the file at `url` to `path`; raises Failed."""
    part = http.part(path, ".bygdown")  # eight more, as gdown names its own
    cookies = MozillaCookieJar()
    try:
        if name := os.environ.get("MAAVT_COOKIES"):
            cookies.load(name, ignore_discard=True, ignore_expires=True)
    except OSError as error:
        raise UserError(f"MAAVT_COOKIES={name}: {error}; expected a file of cookies in Netscape's format") from None

    def attempt() -> None:
        have = length(part)
        part.touch()

        def count(received: int, total: int | None) -> None:
            nonlocal have
            if total:
                http.sizes[url] = total
                http.budget.check(total - received)
            http.count(received - have)
            have = received

        http.wait_for(url)
        with TemporaryDirectory() as own:  # gdown writes its cookies back
            cookies.save(f"{own}/cookies", ignore_discard=True, ignore_expires=True)
            try:
                gdown.download(url, str(path), quiet=True, cookies_file=f"{own}/cookies", resume=True, timeout=TIMEOUT,
                               progress=count, cancel=http.stopping)
            except DownloadCancelled:
                raise Stopped from None
            except (FileURLRetrievalError, KeyError, AssertionError) as error:
                raise _explain(http, url, " ".join(str(error).split()), cookies) from None
            except DownloadError as error:
                if "incomplete" not in str(error):  # this one cannot be gone on with
                    http.drop(part)
                raise Failed(TRANSIENT, "the connection broke, or the file changed on the server") from None
        with open(path, "rb") as file:
            if file.read(64).lstrip()[:1] == b"<":
                http.drop(path)
                raise Failed(SESSION, f"{url} {WEB_PAGE}")

    http.persist(url, attempt, lambda: length(part))


def _explain(http: Http, url: str, told: str, cookies: MozillaCookieJar) -> Failed:
    """Why a page came instead of the file. gdown tells a line of it, but no status: it is asked for once more."""
    if failed := explain("drive", told):
        return failed
    with requests.get(url, cookies=cookies, timeout=TIMEOUT, stream=True) as answer:
        if not answer.ok:
            http.judge(answer)
        page = next(answer.iter_content(1 << 20), b"").decode(errors="replace")
    if 'id="download-form" action="' in page and "confirm=" not in url:
        return _explain(http, get_url_from_gdrive_confirmation(page), told, cookies)
    return explain("drive", f"{answer.url} {page}") or Failed(
        TRANSIENT, "Google Drive sends a page that gdown does not know")
