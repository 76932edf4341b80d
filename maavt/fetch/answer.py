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
    """The body as it comes in, unpacked where `packed` says so; raises Failed where the connection breaks, even
    without a word, or when there are more than `limit` bytes."""
    received = 0
    while True:
        try:
            chunk = response.raw.read1(CHUNK, decode_content=packed(response))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Failed(TRANSIENT, f"the connection broke ({type(error).__name__})") from None
        if not chunk:
            break
        received += len(chunk)
        if limit is not None and received > limit:
            raise Failed(PERMANENT, f"an answer of more than {limit} bytes")
        yield chunk
    if response.raw.tell() < (length(response) or 0):
        raise Failed(TRANSIENT, "the connection broke")


def packed(response: requests.Response) -> bool:
    """Whether the body is compressed for the way, though we ask for it as it is."""
    return response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")


def length(response: requests.Response) -> int | None:
    """Bytes of the body, where the server says."""
    text = response.headers.get("Content-Length", "").strip()
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def version(response: requests.Response) -> str:
    """What tells this version of the file from others, as If-Range takes it; "" where there is no such thing."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def rest_of(response: requests.Response, begin: int, known: str) -> int | None:
    """Length of the whole file, where the answer is the part of the `known` version that was asked for; else None."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    right = response.status_code == 206 and found and int(found[1]) == begin and known in ("", version(response))
    return int(found[2]) if right else None


def retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait, with Retry-After or, as the Hugging Face hub does, with RateLimit."""
    text = response.headers.get("Retry-After", "").strip()
    if not text and (found := re.search(r"\b(?:t|reset)=(\d{1,9})\b", response.headers.get("RateLimit", ""))):
        text = found[1]
    if text.isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def host(url: str) -> str:
    """The server's name and port."""
    return urlsplit(url).netloc
