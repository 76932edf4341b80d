"""Options that several commands share, and the kinds of their values."""

import argparse
from pathlib import Path

from maavt.work import default_workers


def add_asking(parser: argparse.ArgumentParser, files: str = "a video with sound, or a folder of them") -> None:
    """What commands that ask a model about recordings take."""
    parser.add_argument("files", nargs="+", type=named, metavar="FILE|FOLDER", help=files)
    add_model(parser)
    parser.add_argument("--workers", type=number, default=None, help="processes that decode while the model runs "
                        "(default: MAAVT_WORKERS, or the number of CPU cores)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model is asked, and where it runs."""
    parser.add_argument("--model", default="maavt", type=named, metavar="NAME|DIR", help="a model trained in this "
                        "project, or the folder of an exported one (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: MAAVT_DEVICE, or the GPU where there is one)")


def workers(options: argparse.Namespace) -> int:
    """How many processes decode."""
    return options.workers or default_workers()


def named(text: str) -> str:
    """A path that is not empty: "" would be the folder in which the command runs."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; expected a file or a folder")
    return text


def path(text: str) -> Path:
    """The same as a Path."""
    return Path(named(text))


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive number")
    return value


def number(text: str) -> int:
    """A positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive whole number")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")
    return value
