"""Stage download: a source -> data/raw/DATASET with the clips, clips.csv and classes.json."""

import argparse
import sys

from maavt.clips import write_manifest
from maavt.errors import run
from maavt.params import load_params
from maavt.sources import SOURCES
from maavt.work import project_root, publish, workspace


def main(arguments: list[str] | None = None) -> None:
    """Fetch or make what is missing, then move the whole folder into place."""
    argparse.ArgumentParser("maavt download", description=__doc__).parse_args(arguments)
    params = load_params()
    source = SOURCES[params.dataset]
    settings = getattr(params, params.dataset, None)
    with workspace("download", params.dataset, settings, params.seed) as folder:
        clips = source.fetch(params, folder / "raw")
        write_manifest(folder / "raw", clips, source.labels(params))
        publish(folder / "raw", project_root() / "data" / "raw" / params.dataset)
    failed = sum(clip.status != "ok" for clip in clips)
    print(f"{params.dataset}: {len(clips) - failed} clips of {len(clips)} in data/raw/{params.dataset}")


if __name__ == "__main__":
    sys.exit(run(main))
