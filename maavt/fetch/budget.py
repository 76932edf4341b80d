"""How much disk a download may take: MAAVT_DISK_BUDGET (such as 300GB), and always less than what is free.

By hand, since shutil and the downloaders look at the free space of one moment alone.
"""

import os
import shutil
import threading
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from maavt.errors import UserError
from maavt.fetch import ENVIRONMENT, Failed

RESERVE = 1 << 30  # bytes that stay free
_LOOK = 64 << 20  # bytes between two looks at the free space


class Budget:
    """Counts the bytes below a folder against the limit; safe to use from threads."""

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder = folder
        self.limit = _limit() if limit is None else limit
        self.used = sum(os.lstat(os.path.join(place, name)).st_size
                        for place, _, names in os.walk(folder) for name in names)
        self._unseen = _LOOK
        self._lock = threading.Lock()

    def check(self, size: int) -> None:
        """Raise Failed, kind environment, when `size` more bytes would be too many."""
        if self.used + size > self.limit:
            raise Failed(ENVIRONMENT, f"the disk budget of {self.limit / 1e9:.1f} GB (MAAVT_DISK_BUDGET) is used up: "
                         f"{self.used / 1e9:.1f} GB are there and {size / 1e9:.1f} GB more are needed")
        if shutil.disk_usage(self.folder).free - size < RESERVE:
            raise Failed(ENVIRONMENT, f"the disk of {self.folder} is almost full; free some space")

    def take(self, size: int) -> None:
        """Count bytes about to be written; raises as `check` does."""
        with self._lock:
            self._unseen += size
            if self.used + size > self.limit or self._unseen >= _LOOK:
                self.check(size)
                self._unseen = 0
            self.used += size

    def give(self, size: int) -> None:
        """Count bytes that were removed."""
        with self._lock:
            self.used -= size


def _limit() -> int:
    text = os.environ.get("MAAVT_DISK_BUDGET", "").strip()
    try:
        return TypeAdapter(ByteSize).validate_python(text) if text else 1 << 62
    except ValidationError:
        raise UserError(f"MAAVT_DISK_BUDGET={text!r}: expected a size such as 300GB; set it to one, or unset it"
                        ) from None
