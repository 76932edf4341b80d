"""`maavt clips DATASET`: the manifest of a data set as CSV, without downloading a clip."""

import argparse
import csv
import sys
from dataclasses import fields

from maavt.clips import SPLITS, Clip
from maavt.commands.options import path
from maavt.params import load_params
from maavt.sources import SOURCES
from maavt.sources.lists import warnings
from maavt.work import UnixLines


def main(arguments: list[str] | None = None) -> None:
    """Print the manifest, and warnings about splits that share sources on stderr."""
    parser = argparse.ArgumentParser("maavt clips", description=__doc__)
    parser.add_argument("dataset", choices=SOURCES, help="a data set")
    parser.add_argument("--annotations", type=path, metavar="DIR", help="the lists as the authors publish them "
                        "(default: those in the package)")
    args = parser.parse_args(arguments)
    clips = SOURCES[args.dataset].clips(load_params(), args.annotations)
    writer = csv.writer(UnixLines(sys.stdout))
    writer.writerow(field.name for field in fields(Clip))
    writer.writerows(clip.row().values() for clip in clips)
    for line in warnings(clips) if args.dataset != "synth" else ():
        print(f"warning: {line}", file=sys.stderr)
    if missing := [split for split in SPLITS if split not in {clip.split for clip in clips}]:
        print(f"warning: no clip in {' and '.join(missing)}; give --annotations with the full list", file=sys.stderr)
