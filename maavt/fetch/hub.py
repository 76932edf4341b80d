"""The Hugging Face hub with its own client: which archives a data set has, and their bytes, by hf_xet where it can.

What hf_hub_download lacks: it begins anew after a kill, and checks sizes, but no hashes.
"""

import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get, is_xet_available
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from maavt.fetch import ENVIRONMENT, SESSION, TRANSIENT, Archive, Failed
from maavt.fetch.http import Http
from maavt.work import sha256


def archives(endpoint: str, repository: str, revision: str, pattern: str) -> list[Archive]:
    """The files of a data set whose names match, in the order of their names; a mirror in HF_ENDPOINT goes first.

    Raises Failed, kind session, where the hub cannot be asked or has no such files.
    """
    endpoint = endpoint.rstrip("/")
    if endpoint == "https://huggingface.co":
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or endpoint
    try:
        with _told(None):
            tree = list(HfApi(endpoint).list_repo_tree(repository, revision=revision, repo_type="dataset"))
    except (Failed, ValueError, KeyError, TypeError) as error:  # not Failed: the answer is another one
        raise Failed(SESSION, f"{endpoint} does not list the data set {repository} at {revision} ({error!r:.200}); "
                     "does it exist, may you see it, and does the network reach it?") from error
    found = [
        Archive(name=file.path, size=file.size, sha256=file.lfs.sha256 if getattr(file, "lfs", None) else None,
                url=hf_hub_url(repository, file.path, repo_type="dataset", revision=revision, endpoint=endpoint))
        for file in sorted(tree, key=lambda file: file.path)
        if fnmatch.fnmatch(file.path, pattern) and hasattr(file, "size")
    ]
    if not found:
        raise Failed(SESSION, f"{endpoint}: the data set {repository} has no file like {pattern}")
    return found


def fetch(http: Http, archive: Archive, path: Path) -> None:
    """Put an archive that was listed to `path`; raises Failed."""
    part = path.with_name(f"{path.name}.{(archive.sha256 or str(archive.size))[:16]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    xet = is_xet_available()  # until it fails

    def got() -> int:
        return part.stat().st_size if part.exists() else 0

    def drop(file: Path) -> None:
        http.count(-file.stat().st_size)
        file.unlink()

    def receive(begin: int, count: Callable[[int], None]) -> None:
        nonlocal xet
        facts = get_hf_file_metadata(archive.url, token=get_token(), endpoint=archive.url.partition("/datasets/")[0])
        if facts.size not in (None, archive.size) or len(facts.etag or "") == 64 and facts.etag != archive.sha256:
            raise Failed(TRANSIENT, "the file changed on the hub since it was listed")
        headers = build_hf_headers(token=get_token()) | {"Accept-Encoding": "identity"}
        http.budget.check(archive.size - begin)
        with open(part, "ab") as file:
            if facts.xet_file_data and xet:
                import hf_xet

                xet = False
                group = hf_xet.XetSession().new_download_stream_group(
                    token_refresh_url=facts.xet_file_data.refresh_route, token_refresh_headers=headers)
                wanted = hf_xet.XetFileInfo(facts.xet_file_data.file_hash, archive.size)
                for chunk in group.download_stream(wanted, start=begin):
                    count(len(chunk))
                    file.write(chunk)
            else:
                bar = tqdm(disable=True)  # whose update is how the client tells what comes
                bar.update = count
                http_get(archive.url, file, resume_size=begin, headers=headers, expected_size=archive.size,
                         tqdm_class=lambda **_: bar)

    def attempt() -> None:
        if got() > archive.size:
            drop(part)
        if (begin := got()) < archive.size:
            counted = []
            try:
                with _told(http):
                    receive(begin, lambda size: (http.count(size), counted.append(size)))
            finally:
                http.count(got() - begin - sum(counted))  # what was told, but not written, or thrown away
        if archive.sha256 and sha256(part) != archive.sha256:
            drop(part)
            raise Failed(TRANSIENT, "the bytes are not those that were announced (sha256)")
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)

    for old in set(part.parent.glob(f"{path.name}.*.part")) - {part}:  # of versions that are no more
        drop(old)
    http.on_bytes(got())
    http.persist(archive.url, attempt, got)


@contextmanager
def _told(http: Http | None) -> Iterator[None]:
    """Failures of the hub's client as ours."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise Failed(ENVIRONMENT, "HF_HUB_OFFLINE is set, so the hub is not asked; unset it") from None
    except HfHubHTTPError as error:
        raise (http.refused(error.response) if http else Failed(SESSION, type(error).__name__)) from error
    except ImportError as error:
        raise Failed(ENVIRONMENT, f"the hub's client cannot work: {error}") from None
    except Exception as error:
        if getattr(error, "errno", None) or not (isinstance(error, (OSError, RuntimeError)) or type(
                error).__module__.startswith("httpx")):  # which of its kind the hub's client uses has changed
            raise  # a number: the disk
        raise Failed(TRANSIENT, f"no answer, or a broken one ({type(error).__name__})") from error
