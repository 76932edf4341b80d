"""Stage report: one HTML file, data/report/index.html, that shows the result and opens without a server."""

import argparse
import base64
import hashlib
import sys
from pathlib import Path

import jinja2
from markupsafe import Markup

from maavt.clips import SPLITS, read_manifest
from maavt.errors import UserError, run
from maavt.measure import plots
from maavt.page import published, ran, samples, scored, trained
from maavt.page.draw import svg
from maavt.page.results import Result, read_result, read_table
from maavt.params import Params, load_params
from maavt.shards.reader import Reader
from maavt.work import atomic, machine, project_root


def main(arguments: list[str] | None = None) -> None:
    """Write the report of the models in params.yaml."""
    argparse.ArgumentParser("maavt report", description=__doc__).parse_args(arguments)
    params, data = load_params(), project_root() / "data"
    index = Reader.of(params.dataset).index
    results = [read_result(data, name, index.get("multilabel", False)) for name in params.models]
    try:
        benchmark = {table: read_table(data / "benchmark" / f"{table}.csv") for table in ("parameters", "throughput")}
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename}; run the stages before the report first (dvc repro)") from None
    html = render("index.html", params=params, dataset=params.dataset, models=params.models, splits=SPLITS,
                  results=results, main=results[0], **provenance(params, data, index), **accuracy(params, results),
                  published={"7": published.table_7(params, results, benchmark["parameters"]),
                             "8": published.table_8(params, results, data),
                             "9": published.table_9(benchmark["throughput"])},
                  curves=trained.curves(results), retrieval=trained.retrieval(results),
                  weighted=[result for result in results if result.config.get("blend")],
                  **examples(params, results, data), benchmark=benchmark,
                  to_float=published.int8_to_float(benchmark["throughput"]),
                  drawn={table: svg(getattr(plots, table), rows, label=f"{table} of the benchmark")
                         for table, rows in benchmark.items() if rows})
    with atomic(data / "report" / "index.html") as path:
        path.write_text(html)
    print("data/report/index.html")


def render(name: str, **values) -> str:
    """The page of a template. Every text is escaped; the policy allows only the page's own script, by its hash."""
    folder = jinja2.PackageLoader("maavt.page", "")
    templates = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                   undefined=jinja2.StrictUndefined)
    templates.filters |= {"percent": percent, "points": points, "plain": plain}
    style, script = (Markup(folder.get_source(templates, name)[0]) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template(name).render(style=style, script=script, digest=digest, **values)


def provenance(params: Params, data: Path, index: dict) -> dict:
    """What the sections on the data and on provenance show."""
    shards = data / "shards" / params.dataset
    rejects, quality = read_table(shards / "rejects.csv"), read_table(shards / "quality.csv")
    settings = ran.settings(params)
    try:
        clips = read_manifest(data / "raw" / params.dataset)[0]
    except UserError:
        clips = None
    return {"index": index, "rejects": rejects, "rejected": ran.rejected(rejects), "settings": settings,
            "counts": ran.class_counts(clips, quality, index) if clips else [], "likeness": ran.likeness(quality),
            "made": ran.now(), "revision": ran.revision(), "times": ran.times(params.models), "machine": machine(),
            "command": ran.command(settings)}


def accuracy(params: Params, results: list[Result]) -> dict:
    """What the headline and the section on accuracy show."""
    probe, chance = next((result for result in results if result.name == "linear"), None), scored.chance(results[0])
    found = [(result, scored.accuracies(result)) for result in results]
    return {"scored": [{
        "result": result,
        "accuracies": accuracies,
        "against_probe": scored.against(result, probe) if probe and result is not probe else None,
        "committed": scored.since_last_commit(result, params.dataset),
        "confused": scored.most_confused(result),
        "confusion": scored.confusion(result),
    } for result, accuracies in found], "probe": probe, "chance": chance, "bars": scored.bars(found, chance),
        "by_class": scored.by_class(results), "reliability": scored.reliability(results),
        "over_seconds": scored.over_seconds(results)}


def examples(params: Params, results: list[Result], data: Path) -> dict:
    """What the headline and the section on samples show of single samples."""
    gallery = samples.Gallery(params, results, data)
    found = [(rule, [gallery.card(number) for number in rule.chosen])
             for rule in samples.choose(results[0], params.seed)]
    (_, drawn), _, (_, wrong), _ = found
    return {"axes": samples.axes(gallery.recipe), "recipe": gallery.recipe, "attends": gallery.model is not None,
            "groups": found, "labels": sorted({card["label"] for _, cards in found for card in cards}),
            "three": [*drawn[:2], *(wrong[:1] or drawn[2:3])], "map": gallery.map()}


def percent(share: float | None, digits: int = 1) -> str:
    """0.979 -> 97.9 %."""
    return "" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def points(share: float) -> str:
    """A difference of shares in percentage points with its sign: 0.05 -> +5.0."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def plain(value: object) -> str:
    """A number rounded for reading: 0.5833333333333334 -> 0.5833."""
    return f"{value:,.4g}" if isinstance(value, float) and not value.is_integer() else \
        f"{value:,.0f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(run(main))
