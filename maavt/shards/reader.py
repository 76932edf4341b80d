"""Shards -> samples, from a folder or from http(s), s3 or any other place that fsspec reads, held to their index.

A shard is hashed before it is read for the first time (a fetched one each time), so that a damaged one is an error
that names it and never half used. A fetched shard lies in a temporary file while it is read: memory does not grow with
its size.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import fsspec
from webdataset.tariterators import group_by_keys, tar_file_expander

from maavt.errors import UserError, redacted
from maavt.work import project_root, sha256

TRIES = 3  # to fetch a file
PAUSE = 1.0  # seconds before the second try; doubled for the third


class Reader:
    """The shards below `place`, a folder or a URL; `index` is its index.json. Raises UserError when there is none."""

    def __init__(self, place: str | os.PathLike):
        self.place = os.fspath(place).rstrip("/")
        self.remote = "://" in self.place
        self.advice = "copy it there again" if self.remote else "run the shard stage again (dvc repro -f shard)"
        self.verified: dict[str, tuple] = {}  # the state of each shard's file when it was hashed
        self.index = self._read_index()

    @classmethod
    def of(cls, dataset: str) -> "Reader":
        """The shards of a data set: at MAAVT_SHARDS (a folder or URL that holds index.json), else in data/shards.

        Raises UserError for shards of another one.
        """
        reader = cls(os.environ.get("MAAVT_SHARDS") or project_root() / "data" / "shards" / dataset)
        if (found := reader.index.get("dataset")) != dataset:
            raise UserError(f"the shards at {reader.place} are of the data set {found}, and params.yaml asks for "
                            f"{dataset}; unset MAAVT_SHARDS or set it to those of {dataset}, or set dataset: {found}")
        return reader

    def _read_index(self) -> dict:
        try:
            if self.remote:
                with _fetched(f"{self.place}/index.json") as file:
                    return json.loads(file.read())
            return json.loads((Path(self.place) / "index.json").read_text())
        except FileNotFoundError:
            advice = "copy data/shards/DATASET there, or change MAAVT_SHARDS" if os.environ.get("MAAVT_SHARDS") else \
                "run the shard stage first (dvc repro shard)"
            raise UserError(f"no {self.place}/index.json; {advice}") from None
        except ValueError as error:
            raise UserError(f"{self.place}/index.json is damaged ({error}); {self.advice}") from None

    def samples(self, names: list[str]) -> Iterator[dict]:
        """The samples of these shards in order as raw bytes, {"__key__": ..., "json": ..., ...}.

        The next shard is fetched and hashed meanwhile. Raises UserError for one that is missing, cannot be fetched or
        differs from what the index says.
        """
        yield from group_by_keys(tar_file_expander(self._opened(names)))

    def _opened(self, names: list[str]) -> Iterator[dict]:
        """Each shard, open, as webdataset hands them from one step of a pipeline to the next."""
        with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
            ahead = [pool.submit(self._open, name) for name in names[:1]]
            try:
                for number, name in enumerate(names):
                    file = ahead.pop().result()
                    ahead += [pool.submit(self._open, name) for name in names[number + 1 : number + 2]]
                    with file:
                        yield {"url": redacted(f"{self.place}/{name}"), "stream": file}
            finally:
                for future in ahead:
                    future.add_done_callback(lambda done: done.exception() or done.result().close())

    def _open(self, name: str) -> BinaryIO:
        """A shard, open and found to be what the index says."""
        path, expected = f"{self.place}/{name}", self.index["shards"][name]["sha256"]
        try:
            file = _fetched(path) if self.remote else open(path, "rb")
        except FileNotFoundError:
            raise UserError(f"no shard {path}, which index.json names; {self.advice}") from None
        state = os.fstat(file.fileno())
        state = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if self.verified.get(name) != state:
            if sha256(file.fileno()) != expected:
                file.close()
                raise UserError(f"the shard {path} is not the one that index.json describes (damaged or cut); "
                                f"{self.advice}")
            self.verified[name] = state
            file.seek(0)
        return file


def _fetched(url: str) -> BinaryIO:
    """A file from elsewhere, in an unnamed temporary file."""
    for number in range(TRIES):
        file = tempfile.TemporaryFile()
        try:
            files, path = fsspec.url_to_fs(url)
            size = 0 if "http" in files.protocol else None  # 0: one request, read from front to back
            with files.open(path, "rb", block_size=size) as source:
                while data := source.read(1 << 20):
                    file.write(data)
            file.seek(0)
            return file
        except ImportError as error:
            raise UserError(f"{url}: {error}; for s3 that is pip install 'maavt[s3]'") from None
        except Exception as error:  # each protocol has errors of its own
            file.close()
            if isinstance(error, FileNotFoundError):  # fsspec says so, too, of a server that is down
                cause = error.__cause__
                if not url.startswith("http") or isinstance(cause, FileNotFoundError | None) or \
                        getattr(cause, "status", 0) == 404:
                    raise
                error = cause
            if number + 1 == TRIES:
                raise UserError(f"{url} cannot be fetched ({type(error).__name__}: {error}), tried {TRIES} times; is "
                                "the place reachable from here, and are its keys set?") from None
            time.sleep(PAUSE * 2**number)
