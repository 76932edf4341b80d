"""The `maavt` command: what is done with files of one's own, outside the graph of stages."""

import argparse
import sys
from typing import get_args

from maavt import errors, listing, probe
from maavt.params import Model


def main() -> None:
    """Run a subcommand. Exit code 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="maavt", description="Audio-visual recognition. The stages from videos to a "
                                     "measured model are run with `dvc repro`.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("probe", help="say of media files whether they can be used, as JSON")
    probe.add_arguments(command)
    command.set_defaults(run=probe.run)
    command = commands.add_parser("predict", help="print the classes of clips, second by second, as JSON")
    command.add_argument("files", nargs="+", metavar="FILE", help="a video with sound")
    command.add_argument("--model", choices=get_args(Model), default="maavt", help="which trained model to ask")
    command.set_defaults(run=_predict)
    command = commands.add_parser("clips", help="print the manifest of a data set, without downloading it")
    listing.add_arguments(command)
    command.set_defaults(run=listing.run)
    options = parser.parse_args()
    sys.exit(errors.run(lambda: options.run(options)))


def _predict(options: argparse.Namespace) -> int:
    from maavt.predict import predict_files  # only now: it takes torch seconds to load

    return predict_files(options.files, options.model)


if __name__ == "__main__":
    main()
