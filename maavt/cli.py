"""The `maavt` command: what is done with files of one's own, outside the graph of stages."""

import argparse
import sys

from maavt import errors


def main() -> None:
    """Run a subcommand. Exit code 0 done, 1 failed, 2 wrong usage."""
    sys.exit(errors.run(_main))


def _main() -> int:
    from maavt import listing, predict, probe

    parser = argparse.ArgumentParser(prog="maavt", description="Audio-visual recognition. The stages from videos to a "
                                     "measured model are run with `dvc repro`.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    probing = commands.add_parser("probe", help="say of media files whether they can be used")
    probe.add_arguments(probing)
    probing.set_defaults(command=probe.run)
    predicting = commands.add_parser("predict", help="print the classes of clips as JSON")
    predict.add_arguments(predicting)
    predicting.set_defaults(command=predict.predict_files)
    manifest = commands.add_parser("clips", help="print the manifest of a data set, without downloading it")
    listing.add_arguments(manifest)
    manifest.set_defaults(command=listing.run)
    options = parser.parse_args()
    return options.command(options)


if __name__ == "__main__":
    main()
