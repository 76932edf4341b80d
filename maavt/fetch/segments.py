"""One large file over several connections: pieces that come later are asked for ahead, and handed on in their order.

What is on disk is thus always the beginning of the file, and is gone on with as after a single connection.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import requests

from maavt.fetch.answer import chunks

PIECE = 16 << 20  # bytes of one request; in memory until those before them are there


def in_order(response: requests.Response, ask: Callable[[int, int], bytes | bytearray], begin: int, end: int,
             share: Callable[[], int]) -> Iterator[bytes | bytearray]:
    """The bytes of a file from `begin` to `end`, over as many connections as `share()` says at the time.

    `response` has all of them. It is read until it meets what was asked for with `ask(begin, end)` in other threads,
    or to its end, where that fails: then nothing was lost. Later, what `ask` raises is raised here.
    """
    pieces: deque[tuple[int, Future]] = deque()
    at = following = begin
    pool = ThreadPoolExecutor(thread_name_prefix="piece")

    def top_up(most: int) -> None:
        nonlocal following
        while following < end and len(pieces) < most:
            stop = min(following + PIECE, end)
            pieces.append((following, pool.submit(ask, following, stop)))
            following = stop

    try:
        with response:
            for chunk in chunks(response):
                if not pieces:
                    following = at + PIECE
                top_up(share() - 1)
                if pieces and at + len(chunk) >= (first := pieces[0][0]):
                    if not (pieces[0][1].done() and pieces[0][1].exception()):
                        yield chunk[: first - at]
                        break
                    pieces.clear()
                yield chunk
                at += len(chunk)
            else:
                return
        while pieces:
            piece = pieces[0][1].result()
            pieces.popleft()
            top_up(share())
            yield piece
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
