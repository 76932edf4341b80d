"""The paper's Tables 7, 8 and 9 beside what was measured here. Accuracies of another data set than the paper's AVE are
left out."""

from pathlib import Path

from maavt.measure.paper import read_paper
from maavt.measure.plots import INT8
from maavt.page.results import Result, read_table
from maavt.params import Params

DATA_SET, GPU = "ave", "A5000"  # the paper's in Tables 7 and 8, and in Table 9
SIZE, EPOCHS, TOKENS = 224, 50, 5  # its settings (section C)
WEIGHTS = ".augreg_in21k"  # of the backbones


def table_7(params: Params, results: list[Result], counted: list[dict[str, str]]) -> list[dict]:
    """Parameters in millions and accuracy on AVE of each model and backbone."""
    rows = []
    for paper in read_paper("7"):
        own = next((row for row in counted if row["backbone"] == f"{paper['backbone']}_patch16_224"
                    and row["model"] in (f"{paper['model']}_paper", paper["model"])
                    and (row["paper_trainable_m"] or paper["model"] != "maavt")), {})
        result = next((result for result in results if result.name == paper["model"]
                       and result.config["backbone"].startswith(paper["backbone"])), None)
        rows.append({
            "model": paper["model"], "backbone": paper["backbone"],
            "paper_trained": paper["trainable_params_m"], "paper_total": paper["total_params_m"],
            "trained": _millions(own.get("trainable")), "total": _millions(own.get("total_as_in_paper")),
            "paper_accuracy": paper["ave_accuracy"],
            "accuracy": 100 * result.metrics["accuracy"] if result and params.dataset == DATA_SET else None,
            "differs": differences(params, result.config) if result and params.dataset == DATA_SET else [],
        })
    return rows


def differences(params: Params, config: dict, tokens: int = TOKENS) -> list[str]:
    """How a model that was trained here differs from the paper's."""
    found = [(f"backbone {config['backbone']}, {params.weights}",
              not config["backbone"].endswith(f"_patch16_224{WEIGHTS}") or params.weights != "timm"),
             (f"{config['image_size']} px", config["image_size"] != SIZE),
             (f"{config['train']['epochs']} epochs", config["train"]["epochs"] != EPOCHS),
             (f"recipe {config['recipe']}", config["recipe"] != "paper" and config["model"] == "maavt"),
             (f"{config['tokens']} tokens", config["tokens"] != tokens and config["model"] == "maavt")]
    return [text for text, true in found if true]


def table_8(params: Params, results: list[Result], data: Path) -> list[dict]:
    """Accuracy over the number of tokens: of an ablation, else of this run; no rows for other data sets than AVE."""
    if params.dataset != DATA_SET:
        return []
    ablation = data / "ablation" / "ablation.csv"
    swept = {row["setting"]: row for row in (read_table(ablation) if ablation.exists() else ())
             if row["model"] == "maavt"}
    result = next((result for result in results if result.name == "maavt"), None)
    rows = []
    for paper in read_paper("8"):
        row = {"tokens": int(paper["tokens"]), "paper_accuracy": paper["ave_accuracy"], "accuracy": None, "origin": "",
               "differs": []}
        if found := swept.get(f"tokens={paper['tokens']}"):
            row |= {"accuracy": 100 * float(found["accuracy_mean"]),
                    "origin": f"make ablate, {found['seeds']} seeds; its settings are those of its experiments",
                    "std": 100 * float(found.get("accuracy_std") or 0)}
        elif result and result.config["tokens"] == row["tokens"]:
            row |= {"accuracy": 100 * result.metrics["accuracy"], "origin": "this run",
                    "differs": differences(params, result.config, row["tokens"])}
        rows.append(row)
    return rows


def table_9(timed: list[dict[str, str]]) -> list[dict]:
    """Samples per second at inference, and as a ratio to LAVISH, which depends less on the machine."""
    paper_rows = read_paper("9")
    rows = []
    for paper in paper_rows:
        lavish = next(row for row in paper_rows if (row["model"], row["backbone"]) == ("lavish", paper["backbone"]))
        own = [row for row in timed if row["backbone"].startswith(f"{paper['backbone']}_patch16_224")
               and row["mode"] == "inference" and row["model"] in (f"{paper['model']}_paper", paper["model"])]
        own = max(own, key=lambda row: (row["model"].endswith("_paper"), int(row["batch"])), default=None)
        rows.append({
            "model": paper["model"], "backbone": paper["backbone"], "paper": paper["samples_per_second"],
            "paper_ratio": float(paper["samples_per_second"]) / float(lavish["samples_per_second"]),
            "here": own and float(own["samples_per_second"]), "ratio": own and own["ratio_to_lavish"],
            "device": own and own["device"], "batch": own and own["batch"],
            "differs": [f"device {own['device']}"] if own and GPU not in own["device"] else [],
        })
    return rows


def int8_to_float(timed: list[dict[str, str]]) -> dict[int, str]:
    """Of each row in int8, by its place in the table: how many times as fast it is as the same model in float."""
    def one(row: dict[str, str]) -> tuple[str, ...]:
        return tuple(row[key] for key in ("model", "backbone", "mode", "batch"))

    rate = {one(row): float(row["samples_per_second"]) for row in timed}
    return {place: f"{rate[one(row)] / rate[own]:.2f}" for place, row in enumerate(timed) if row["model"].endswith(INT8)
            and (own := one(row | {"model": row["model"].removesuffix(INT8)})) in rate}


def _millions(number: str | None) -> str:
    return f"{float(number) / 1e6:.2f}" if number else ""
