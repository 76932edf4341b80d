"""Stage download: a source -> data/raw/DATASET with the clips, clips.csv and classes.json; of a folder of one's own
also not_taken.csv, the files that are no clips.

What was fetched stays in .work/download/DATASET-..., so that another run, after a failure or with other settings or
code, fetches only what is missing. Once DVC has the clips in its cache, the folder raw/ there may be removed to save
disk: the next run takes them from the cache.
"""

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from maavt.clips import Clip, Labels, placed, read_manifest, write_manifest
from maavt.errors import UsageError, UserError, run
from maavt.fetch import KINDS, Failed, cached
from maavt.fetch.budget import Budget
from maavt.fetch.http import Http
from maavt.params import Params, load_params
from maavt.sources import SOURCES, synth
from maavt.sources import folder as own
from maavt.sources.lists import warnings
from maavt.sources.splits import tell
from maavt.sources.store import Store, summary
from maavt.work import kept, link, link_tree, project_root, publish, workspace, write_table

NOT_TAKEN = "not_taken.csv"


def main(arguments: Sequence[str] = ()) -> None:
    """Fetch or make what is missing, then move the whole folder into place."""
    retry = _retry(arguments)
    params = load_params()
    source = SOURCES[params.dataset]
    with _folder(params) as folder:
        if source is synth:
            clips = synth.fetch(params, folder / "raw")
            write_manifest(folder / "raw", clips, synth.labels(params))
            finished = folder / "raw"
        else:
            clips = placed(collect(params, folder, retry), _earlier(params, folder / "earlier"), params.seed)
            finished = folder / "finished"
            link_tree(folder / "raw", finished)
            write_manifest(finished, clips, _labels(params, clips))
            if (folder / NOT_TAKEN).exists():
                link(folder / NOT_TAKEN, finished / NOT_TAKEN)
        publish(finished, project_root() / "data" / "raw" / params.dataset, keep=source is synth)  # others are kept
    failed = sum(clip.status != "ok" for clip in clips)
    print(f"{params.dataset}: {len(clips) - failed} clips of {len(clips)} in data/raw/{params.dataset}")


def collect(params: Params, folder: Path, retry: Sequence[str] = ()) -> list[Clip]:
    """Bring the clips into `folder`/raw, and return the manifest, which is in `folder` too, however it ends.

    Raises UserError when the work had to stop, or when fewer clips than download.min_coverage came of it.
    """
    source = SOURCES[params.dataset]
    budget = Budget(folder)
    http = Http(budget)
    try:
        lists = source.annotations(params, folder, http) if hasattr(source, "annotations") else None
    except Failed as failed:
        raise UserError(f"the list of clips: {failed}; nothing was fetched yet") from None
    if source is own:
        found = own.survey(params)
        clips = found.clips
        write_table(folder / NOT_TAKEN, ("path", "reason"), [dict(zip(("path", "reason"), row, strict=True))
                                                             for row in found.not_taken])
        for line in found.notes:
            print(line)
    else:
        clips = source.clips(params, lists)
    if not _from_here(params):
        root = Path(os.environ.get("DVC_ROOT") or project_root())
        cached.restore(root, f"data/raw/{params.dataset}", folder / "raw", {clip.path for clip in clips})
    with Store(folder, clips, budget, retry=retry) as store:
        for line in warnings(store.clips):
            print(f"warning: {line}", file=sys.stderr)
        stopped, otherwise = None, "transient: not fetched yet"
        try:
            otherwise = source.fetch(params, store, http)
        except Failed as failed:
            stopped = failed
        finally:
            store.refresh()
            write_manifest(folder, store.manifest(otherwise), _labels(params, clips))
        if stopped:
            print(summary(store.manifest(otherwise)))
            raise UserError(f"{stopped.reason}\nThe download stopped here; what came is kept, and the same command "
                            f"goes on. The state of each clip is in {folder / 'clips.csv'}")
        store.inspect(source.SHORTEST, keep=params.shard.missing == "keep")
        store.tidy()
        clips = store.manifest(otherwise)
    write_manifest(folder, clips, _labels(params, clips))
    print(summary(clips))
    if source is own:
        for line in tell((clip for clip in clips if clip.status == "ok"), _labels(params, clips)):
            print(line)
    _check_coverage(clips, params, folder)
    return clips


def _earlier(params: Params, folder: Path) -> list[Clip]:
    """The clips of this data set when it was last made with this seed, by DVC's cache."""
    root = Path(os.environ.get("DVC_ROOT") or project_root())
    shutil.rmtree(folder, ignore_errors=True)
    if cached.seed(root, "download") == params.seed:
        cached.restore(root, f"data/raw/{params.dataset}", folder, {"clips.csv", "classes.json"})
    with suppress(UserError):
        return read_manifest(folder)[0]
    return []


def _labels(params: Params, clips: list[Clip]) -> Labels:
    source = SOURCES[params.dataset]
    return own.labels(params, clips) if source is own else source.labels(params)


def _check_coverage(clips: list[Clip], params: Params, folder: Path) -> None:
    here = sum(clip.status == "ok" for clip in clips)
    if here < params.download.min_coverage * len(clips):
        raise UserError(
            f"{here} of {len(clips)} clips are here; expected at least {params.download.min_coverage:.0%}. Why the "
            f"others are not stands above and in {folder / 'clips.csv'}. Run the same command again to try those again "
            "that may come, MAAVT_RETRY=permanent for the others too, or lower download.min_coverage in params.yaml"
        )


@contextmanager
def _folder(params: Params):
    """Where to work: what comes from this machine is made anew when code or settings change, the rest is kept."""
    if _from_here(params):
        settings = getattr(params, params.dataset)
        with workspace("download", params.dataset, settings, params.seed) as folder:
            yield folder
    else:
        with kept("download", f"{params.dataset}-{_origin(params)}") as folder:
            yield folder


def _from_here(params: Params) -> bool:
    return params.dataset in ("synth", "folder") or bool(getattr(params, params.dataset).local)


def _origin(params: Params) -> str:
    """What tells apart places that the same data set may come from."""
    settings = getattr(params, params.dataset)
    names = {"ave": ["url"], "vggsound": ["repository", "revision"], "cremad": ["files"]}[params.dataset]
    return hashlib.sha256("\n".join(getattr(settings, name) for name in names).encode()).hexdigest()[:8]


def _retry(arguments: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(prog="maavt download", description=__doc__.partition("\n")[0])
    parser.add_argument("--retry", action="append", default=[], choices=KINDS, metavar="KIND",
                        help=f"try again what failed for good, too ({', '.join(KINDS)}); MAAVT_RETRY does the same")
    kinds = parser.parse_args(list(arguments)).retry + os.environ.get("MAAVT_RETRY", "").replace(",", " ").split()
    if unknown := set(kinds) - set(KINDS):
        raise UsageError(f"MAAVT_RETRY: there is no kind {', '.join(unknown)}; expected {', '.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(run(partial(main, sys.argv[1:])))
