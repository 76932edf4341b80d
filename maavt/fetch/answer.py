"""What a server answers: its body, and what its headers say."""

import email.utils
import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3

from maavt.fetch import PERMANENT, TRANSIENT, Failed

CHUNK = 1 << 18
LARGEST_ANSWER = 64 << 20  # bytes of an answer that is not a file


def chunks(response: requests.Response, limit: int | None = None) -> Iterator[bytes]:
    """The body as it comes in; ends early where the connection breaks without a word.

    Raises Failed where it breaks, or is longer than `limit` bytes.
    """
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


def length(response: requests.Response) -> int | None:
    """Bytes of the body, where the server says."""
    return int(text) if (text := response.headers.get("Content-Length", "")).isdecimal() else None


def version(response: requests.Response) -> str:
    """What tells this version of the file from others, as If-Range takes it; "" where there is no such thing."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def rest_of(response: requests.Response, begin: int, known: str) -> int | None:
    """Length of the whole file, where the answer is the part of the `known` version that was asked for; else None."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
    right = response.status_code == 206 and found and int(found[1]) == begin and known in ("", version(response))
    return int(found[2]) if right else None


def retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def host(url: str) -> str:
    """The server's name and port."""
    return urlsplit(url).netloc
