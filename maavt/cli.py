"""The `maavt` command: runs the main() of one module of the package.

Stages are run through it too (`python -m maavt.cli train`), so that a Ctrl-C while torch still loads is one line.
"""

import importlib
import os
import sys

from maavt.errors import UsageError, run
from maavt.work import timed

STAGES = {
    "listing": "stage: what files there are in a folder of one's own",
    "download": "stage: a source -> clips",
    "backbone": "stage: the frozen Vision Transformer's weights",
    "shard": "stage: clips -> WebDataset tars",
    "train": "stage: shards and backbone -> a trained model",
    "evaluate": "stage: a trained model on the test split",
    "benchmark": "stage: parameters and samples per second",
    "report": "stage: one page that shows the result",
}
COMMANDS = {
    "bench": "measure sharding and loading beside the usual way (maavt bench data)",
    "probe": "say of media files whether they can be used, as JSON",
    "clips": "print the manifest of a data set, without downloading it",
    "predict": "say what recordings of any length show, as windows and events",
    "embed": "write the sounds and pictures of recordings as vectors",
    "search": "find pictures by a sound, or sounds by a picture, among such vectors",
    "export": "write a trained model as a folder that travels",
}


def main() -> None:
    """Run a command and exit: 0 done, 1 failed, 2 wrong usage."""
    sys.exit(run(lambda: command(sys.argv[1:])))


def command(arguments: list[str]) -> int | None:
    """Run one command, given with its own arguments."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        lines = "\n".join(f"  {name:10} {what}" for name, what in (STAGES | COMMANDS).items())
        print(f"usage: maavt COMMAND [OPTIONS]\n\n{lines}\n\nmaavt COMMAND --help says more of one.")
        return 0 if arguments else 2
    if name not in STAGES | COMMANDS:
        raise UsageError(f"no command {name!r}; expected one of {', '.join(STAGES | COMMANDS)}")
    # Read when torch loads: the loss of another machine would print its C++ frames, and we tell it in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if name in COMMANDS:
        return importlib.import_module(f"maavt.commands.{name}").main(rest)
    with timed(" ".join(arguments)):
        return importlib.import_module(f"maavt.stages.{name}").main(rest)


if __name__ == "__main__":
    main()
