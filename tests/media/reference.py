"""What ffmpeg makes of a file: a decoder other than ours to hold ours to."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

SIZE, RATE = 112, 16000
EXACT = "flags=bilinear+accurate_rnd+full_chroma_int"
# as colours first, for what is cut out of those of a quarter of the size begins at even places
SQUARE = (f"scale={EXACT},format=gbrp,scale='if(gt(iw*sar,ih),round({SIZE}*iw*sar/ih),{SIZE})':"
          f"'if(gt(iw*sar,ih),{SIZE},round({SIZE}*ih/iw/sar))':{EXACT},"
          f"crop={SIZE}:{SIZE}:floor((iw-{SIZE})/2):floor((ih-{SIZE})/2)")


def run(*options) -> subprocess.CompletedProcess:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats", *map(str, options)]
    return subprocess.run(command, check=True, capture_output=True)


def shown(path: Path, begin: float = 0, seconds: float = 10, track: str = "0:v:0") -> tuple[np.ndarray, np.ndarray]:
    """Times (N,) and pictures (N, SIZE, SIZE, 3) of the frames of a file, from shortly before `begin` on."""
    seek = ("-copyts", "-start_at_zero", "-ss", begin - 1) if begin else ()
    made = run(*seek, "-t", seconds + 1, "-i", path, "-map", track, "-vf", f"showinfo,{SQUARE}", "-fps_mode",
               "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    times = re.findall(r"\] n: .* pts_time:\s*(-?[\d.]+)", made.stderr.decode(errors="replace"))
    pictures = np.frombuffer(made.stdout, np.uint8).reshape(-1, SIZE, SIZE, 3)
    return np.array(times[: len(pictures)], float), pictures.astype(np.float32)


def heard(path: Path, seconds: float = 10) -> np.ndarray:
    """The mono sound of a file, on the clock of its frames."""
    made = run("-i", path, "-t", seconds, "-map", "0:a:0", "-af", "aresample=async=1:first_pts=0", "-ac",
               1, "-ar", RATE, "-f", "f32le", "-")
    return np.frombuffer(made.stdout, np.float32)


def off_view(frames: np.ndarray, path: Path, begin: float = 0) -> list[tuple[int, float, float]]:
    """Second, mean difference in levels from the picture on view at second + 0.5, and from that most alike, for each
    of our frames."""
    times, pictures = shown(path, begin, len(frames))
    found = []
    for second, frame in enumerate(frames):
        apart = np.abs(pictures - frame.astype(np.float32)).mean((1, 2, 3))
        on_view = max(np.searchsorted(times, begin + second + 0.5 + 1e-4) - 1, 0)
        found.append((second, round(float(apart[on_view]), 2), round(float(apart.min()), 2)))
    return found
