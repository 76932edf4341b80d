"""Git LFS: files in a repository that only point to the real ones, and the batch API that says where those are."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from maavt.fetch import PERMANENT, SESSION, TRANSIENT, Failed
from maavt.fetch.http import Http

_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-[^\n]*\n)*"
                      rb"oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n")
_MEDIA_TYPE = "application/vnd.git-lfs+json"


class Pointer(NamedTuple):
    """The real file's SHA-256 and its size in bytes."""

    oid: str
    size: int


class Place(NamedTuple):
    """Where a real file can be fetched from, and the headers that are needed for it."""

    url: str
    headers: dict[str, str]


def pointer(path: Path) -> Pointer | None:
    """What a file points to, or None for a file that is no pointer."""
    if path.stat().st_size > 1024:
        return None
    match = _POINTER.fullmatch(path.read_bytes())
    return Pointer(match[1].decode(), int(match[2])) if match else None


def locate(http: Http, endpoint: str, pointers: Collection[Pointer]) -> dict[str, Place | Failed]:
    """Place of each object by its oid, with one request; or why there is none. Raises Failed for all at once."""
    request = {"operation": "download", "transfers": ["basic"], "hash_algo": "sha256",
               "objects": [{"oid": p.oid, "size": p.size} for p in dict.fromkeys(pointers)]}
    answer = http.ask("POST", f"{endpoint.rstrip('/')}/objects/batch", json=request,
                      headers={"Accept": _MEDIA_TYPE, "Content-Type": _MEDIA_TYPE})
    try:
        objects = {item["oid"]: _place(item) for item in json.loads(answer)["objects"]}
    except (ValueError, KeyError, TypeError):
        raise Failed(SESSION, f"{endpoint} does not answer as a Git LFS server does; is the address right?") from None
    lost = Failed(TRANSIENT, "the LFS server says nothing of this file")
    return {p.oid: objects.get(p.oid, lost) for p in pointers}


def _place(item: dict) -> Place | Failed:
    if error := item.get("error"):
        gone = (code := error["code"]) in (404, 410, 422)
        return Failed(PERMANENT if gone else TRANSIENT,
                      f"the LFS server {'has no such file' if gone else 'fails'} (code {code})")
    action = item["actions"]["download"]
    return Place(action["href"], dict(action.get("header") or {}))
