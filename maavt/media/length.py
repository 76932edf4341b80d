"""How short a clip may be: one rule for all who decode one."""

from pathlib import Path

from maavt.media.decode import MIN_COVERAGE, Media, decode
from maavt.media.rejected import Rejected
from maavt.params import Spectrogram

SHORTEST = 0.5  # seconds that picture and sound of any clip must reach
REST = 0.1  # seconds: what is left behind the last whole pair or window, if it is more, is in one more of them


def read_media(path: Path, recipe: Spectrogram, frame_size: int, **options) -> Media:
    """decode() by a recipe; the one place that says how short a clip may be.

    Raises Rejected: as `too short` what picture or sound, if it is there, reaches less of than shortest(recipe).
    """
    span, limit = options.pop("span", recipe.clip_seconds), shortest(recipe)
    try:
        media = decode(path, frame_size=frame_size, sample_rate=recipe.sample_rate, pad=recipe.pad,
                       **{"seconds": recipe.clip_seconds} | options)
    except Rejected as rejected:
        if rejected.reason != "too short":
            raise
        raise Rejected("too short", f"{rejected.detail}; expected {limit:g} s at least") from None
    picture, sound = (min(seconds, span) for seconds in (media.video_seconds, media.audio_seconds))
    if min(media.seconds, span) < limit - 1e-3:
        raise Rejected("too short", f"{picture:.2f} s of picture, {sound:.2f} s of sound; expected {limit:g} s at "
                       "least of each")
    return media


def shortest(recipe: Spectrogram) -> float:
    """How many seconds of a clip picture and sound must each reach."""
    return MIN_COVERAGE * recipe.clip_seconds if recipe.pad == "silence" else SHORTEST
