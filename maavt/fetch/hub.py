"""The Hugging Face hub with its own client: which archives a data set has, and their bytes, by hf_xet where it can.

What hf_hub_download lacks: it begins anew after a kill, checks no hashes, waits whatever happens, and never gives up.
"""

import fnmatch
import io
import os
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_token, hf_hub_url, set_client_factory
from huggingface_hub.file_download import http_get, is_xet_available
from huggingface_hub.utils import build_hf_headers, disable_progress_bars
from huggingface_hub.utils._http import default_client_factory

from maavt.fetch import ENVIRONMENT, SESSION, TRANSIENT, Archive, Failed
from maavt.fetch.http import Http, length
from maavt.work import sha256

CHUNK = 1 << 18  # bytes that a broken connection may cost


def archives(http: Http, endpoint: str, repository: str, revision: str, pattern: str) -> list[Archive]:
    """The files of a data set whose names match, in the order of their names; a mirror in HF_ENDPOINT goes first.

    From then on the hub's client waits and fails as `http` does. Raises Failed, kind session, where the hub cannot be
    asked or has no such files.
    """
    if constants.is_offline_mode():
        raise Failed(ENVIRONMENT, "HF_HUB_OFFLINE is set, so the hub is not asked; unset it")
    made = default_client_factory()
    hooks = {"request": [*made.event_hooks["request"], lambda request: http.wait_for(request.url)],
             "response": [http.judge]}
    set_client_factory(lambda: type(made)(event_hooks=hooks, follow_redirects=True, timeout=None))
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    disable_progress_bars()  # ours shows all files
    endpoint = endpoint.rstrip("/")
    if endpoint == "https://huggingface.co":
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or endpoint
    try:
        listed = http.persist(endpoint, lambda: list(HfApi(endpoint).list_repo_tree(
            repository, revision=revision, repo_type="dataset")))
    except (Failed, ValueError, KeyError, TypeError) as error:  # not Failed: the answer is another one
        raise Failed(SESSION, f"{endpoint} does not list the data set {repository} at {revision} ({error!r:.200}); "
                     "does it exist, may you see it, and does the network reach it?") from error
    found = [
        Archive(name=file.path, size=file.size, sha256=file.lfs.sha256 if getattr(file, "lfs", None) else None,
                url=hf_hub_url(repository, file.path, repo_type="dataset", revision=revision, endpoint=endpoint))
        for file in sorted(listed, key=lambda file: file.path)
        if fnmatch.fnmatch(file.path, pattern) and hasattr(file, "size")
    ]
    if not found:
        raise Failed(SESSION, f"{endpoint}: the data set {repository} has no file like {pattern}")
    return found


class _Part(io.BufferedWriter):
    """A file on its way, written to behind what is there, and counted."""

    def __init__(self, path: Path, http: Http):
        super().__init__(io.FileIO(path, "ab"))
        self.http, self.again = http, False

    def write(self, data: bytes) -> int:
        self.http.count(len(data))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        """Called where a server sends all of it again, which http_get would let it do for ever."""
        if self.again:
            raise Failed(TRANSIENT, "the connection broke, and the server does not go on where it did")
        self.again = True
        self.http.count(-self.seek(0, os.SEEK_END))
        return super().truncate(0)


def fetch(http: Http, archive: Archive, path: Path) -> None:
    """Put an archive that was listed to `path`; raises Failed."""
    part = http.part(path, f".{(archive.sha256 or str(archive.size).zfill(16))[:16]}")
    xet = is_xet_available()  # until it fails

    def receive(file: _Part) -> None:
        nonlocal xet
        facts = get_hf_file_metadata(archive.url, token=get_token(), endpoint=archive.url.partition("/datasets/")[0])
        if facts.size not in (None, archive.size) or len(facts.etag or "") == 64 and facts.etag != archive.sha256:
            raise Failed(TRANSIENT, "the file changed on the hub since it was listed")
        headers = build_hf_headers(token=get_token()) | {"Accept-Encoding": "identity"}
        http.budget.check(archive.size - file.tell())
        if not facts.xet_file_data or not xet:
            return http_get(archive.url, file, resume_size=file.tell(), headers=headers, expected_size=archive.size)
        import hf_xet

        xet, session = False, hf_xet.XetSession()
        http.at_stop.append(session.sigint_abort)
        try:
            http.wait_for(archive.url)
            group = session.new_download_stream_group(token_refresh_url=facts.xet_file_data.refresh_route,
                                                      token_refresh_headers=headers)
            wanted = hf_xet.XetFileInfo(facts.xet_file_data.file_hash, archive.size)
            for chunk in group.download_stream(wanted, start=file.tell()):
                file.write(chunk)
        finally:
            http.at_stop.remove(session.sigint_abort)
            http.wait_for(archive.url)

    def attempt() -> None:
        if length(part) < archive.size:
            with _Part(part, http) as file:
                receive(file)
        if length(part) != archive.size or archive.sha256 and sha256(part) != archive.sha256:
            http.drop(part)
            raise Failed(TRANSIENT, "the bytes are not those that were announced (size or sha256)")
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)

    http.persist(archive.url, attempt, lambda: length(part))
