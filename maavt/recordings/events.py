"""Windows with their classes -> events: what is heard and seen from when to when."""

from collections.abc import Iterable, Iterator

from maavt.clips import BACKGROUND


def events_of(windows: Iterable[dict], threshold: float) -> Iterator[dict]:
    """Neighbouring windows of one class as one event, with the mean probability; background is none, nor is a window
    whose class is less probable than the threshold."""
    last = None
    runs = []
    for window in windows:
        name = window["class"] if window["probability"] >= threshold else BACKGROUND
        if last is None or name != runs[-1][0] or window["from"] > last + 1e-3:
            runs.append((name, []))
        runs[-1][1].append(window)
        last = window["to"]
    for name, run in runs:
        if name != BACKGROUND:
            chance = sum(window["probability"] for window in run) / len(run)
            yield {"class": name, "from": run[0]["from"], "to": run[-1]["to"], "probability": round(chance, 4)}
