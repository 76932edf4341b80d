"""One section of a YouTube video with yt-dlp, and what its messages mean.

MAAVT_COOKIES (a file), MAAVT_PROXY (a URL), MAAVT_SLEEP (seconds between videos, or two numbers: from, to) and
MAAVT_FFMPEG (a path) are passed on.
"""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

from maavt.errors import UserError
from maavt.fetch import ENVIRONMENT, TRANSIENT, Failed, explain

FORMAT = "bv*[height<=480]+ba/b[height<=480]/bv*+ba/b"
RUNTIMES = {"deno": "deno", "node": "node", "bun": "bun", "quickjs": "qjs"}  # yt-dlp's name, the program's name


def section(url: str, start: float, seconds: float, path: Path, parts: Path) -> None:
    """Put `seconds` of the video at `url` from second `start` to `path`; raises Failed."""
    try:
        from yt_dlp import YoutubeDL
        from yt_dlp.postprocessor.ffmpeg import FFmpegPostProcessor
        from yt_dlp.utils import YoutubeDLError, download_range_func
    except ImportError:
        raise Failed(ENVIRONMENT, "yt-dlp is not installed; pip install 'maavt[youtube]'") from None
    options = _options() | {"download_ranges": download_range_func(None, [(start, start + seconds)])}
    FFmpegPostProcessor._ffmpeg_location.set(find_ffmpeg())  # as its own command does; not all of it asks the options
    parts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parts, prefix="youtube-") as folder:
        options |= {"paths": {"home": folder}, "outtmpl": {"default": "clip.%(ext)s"}}
        warnings: list[str] = []  # which often explain an error
        options["logger"] = SimpleNamespace(debug=len, info=len, error=len, warning=warnings.append)
        try:
            with YoutubeDL(options) as downloader:
                downloader.download([url])
        except YoutubeDLError as error:
            raise explain("youtube", f"{error} {' '.join(warnings)}") or Failed(TRANSIENT, "yt-dlp failed") from None
        files = [file for file in Path(folder).iterdir() if file.suffix == ".mp4" and file.stat().st_size]
        if len(files) != 1:
            raise Failed(TRANSIENT, "yt-dlp brought nothing")
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(files[0], path)


def check_tools() -> None:
    """Raise Failed, kind environment, when something is missing that every video needs."""
    if not find_ffmpeg():
        raise Failed(ENVIRONMENT, "yt-dlp needs ffmpeg: pip install 'maavt[youtube]', or set MAAVT_FFMPEG")
    if not any(map(shutil.which, RUNTIMES.values())):
        raise Failed(ENVIRONMENT, "yt-dlp needs a JavaScript runtime such as deno or node")


def find_ffmpeg() -> str | None:
    """The program: MAAVT_FFMPEG, the one on the path, or the one of imageio-ffmpeg."""
    if path := os.environ.get("MAAVT_FFMPEG") or shutil.which("ffmpeg"):
        return path
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


def _options() -> dict:
    options = {
        "format": FORMAT, "force_keyframes_at_cuts": True, "merge_output_format": "mp4",
        "postprocessors": [{"key": "FFmpegVideoRemuxer", "preferedformat": "mp4"}],
        "ffmpeg_location": find_ffmpeg(),
        "js_runtimes": {name: {} for name, program in RUNTIMES.items() if shutil.which(program)},
        "noplaylist": True, "cachedir": False, "quiet": True, "noprogress": True, "retries": 3, "socket_timeout": 30,
        "overwrites": True,
    }
    for option, variable in ("proxy", "MAAVT_PROXY"), ("cookiefile", "MAAVT_COOKIES"):
        if value := os.environ.get(variable):
            options[option] = value
    if sleep := os.environ.get("MAAVT_SLEEP", "").replace(",", " ").split():
        try:
            options |= {"sleep_interval": float(sleep[0]), "max_sleep_interval": float(sleep[-1])}
        except ValueError:
            raise UserError(f"MAAVT_SLEEP={' '.join(sleep)!r}: expected seconds, such as 5 or 5,20") from None
    return options
