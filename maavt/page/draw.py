"""Charts, images and audio as parts of one HTML file that needs no other."""

import base64
import io
import re
from collections.abc import Callable

import av
import matplotlib
import numpy as np
from markupsafe import Markup
from PIL import Image

from maavt.measure.plots import GREY, HUES, INK, svg_text

SAMPLE_RATE = 16000  # hertz
BIT_RATE = 48000  # bits per second of audio
OWN_IDS = re.compile(r' id="(?:figure|axes|patch|line2d|text|legend|xtick|ytick|matplotlib\.axis|[A-Za-z]+Collection)'
                     r'_\d+"')
matplotlib.use("agg")


def svg(draw: Callable, *arguments, label: str) -> Markup:
    """The SVG element that `draw(figure, ...)` draws, in the colours of the style sheet; `label` describes it."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 9, "text.color": INK,
                "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
                "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
    with matplotlib.rc_context(settings):
        drawn = svg_text(draw, *arguments, transparent=True)
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn, flags=re.S)  # a style would be the page's
    drawn = OWN_IDS.sub("", re.sub(r"\s*\n\s*", "\n", drawn[drawn.index("<svg"):]))
    # the style sheet has the first of the models that share a hue
    names = {INK: "ink", GREY: "grey", **{hue: name for name, hue in reversed(HUES.items())}}
    for colour, name in names.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    return Markup(drawn.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(label), 1))


def jpeg(pixels: np.ndarray, quality: int = 85) -> str:
    """An image (H, W, 3) or (H, W) of uint8 as a data URL."""
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return _url("image/jpeg", buffer.getvalue())


def png(pixels: np.ndarray) -> str:
    """Pixels (H, W, 4) of uint8 as a data URL."""
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
        return _url("image/png", buffer.getvalue())


def mp3(waveform: np.ndarray) -> str | None:
    """A waveform (N,) at SAMPLE_RATE as a data URL, which every browser plays; None where FFmpeg has no MP3 encoder."""
    if "libmp3lame" not in av.codecs_available:
        return None
    with io.BytesIO() as buffer:
        with av.open(buffer, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as container:
            stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, layout="mono")
            stream.bit_rate = BIT_RATE
            frame = av.AudioFrame.from_ndarray(waveform.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
        return _url("audio/mpeg", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
