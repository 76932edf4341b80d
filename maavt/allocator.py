"""The C library's allocator, told to keep what was freed for what is asked for next."""

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h


def keep_freed(spare: int, largest: int) -> None:
    """Keep up to `spare` freed bytes in this process, of pieces up to `largest` bytes; only with GNU's C library.

    The next clip or training step asks for the same again. To get it anew from the system, page by page, took a
    twentieth of the time of sharding and a tenth or more of training on a CPU.
    """
    with suppress(AttributeError):  # another library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, spare)
        mallopt(MMAP_THRESHOLD, largest)
