"""params.yaml, read once into frozen dataclasses; every mistake in it is reported at once.

Settings that change a result live there and nowhere else. What changes only where or how fast the work is done
is an option or a MAAVT_* environment variable.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML, YAMLError

from maavt.errors import UserError
from maavt.work import project_root

FEWEST, MOST = 3, 100  # epochs that `auto` makes
PER_DATASET = ("image_size", "shard.frame_size", "train.epochs", "train.batch")  # one for all, or for each data set
PAPER = {  # what `recipe: paper` resets, and the default that it resets; any other value is an error
    "maavt": {"depth": (1.0, 1.0), "lora_rank": (0, 4), "bottleneck": (0, 32), "head_blocks": (1, 4),
              "head_bands": (False, True), "standardise": (False, True), "contrastive_trains": ("all", "projectors"),
              "same_class": ("negatives", "left_out"), "contrastive_weight": (1.0, 1.0), "stream_weight": (0.0, 1.0),
              "blend": (False, True), "prompt_init": ("random", "patches"), "prompt_rate": (1.0, 0.1),
              "merge": (0, 0)},
    "lavish": {"depth": (1.0, 1.0)}, "mbt": {"depth": (1.0, 1.0)},
    "augment_sound": {"time_mask": (0.0, 0.1), "frequency_mask": (0.0, 0.15), "stretch": (0.0, 0.1),
                      "shift": (0.0, 0.1)},
    "train": {"average": (0.0, 0.1), "modality_dropout": (0.0, 0.0)},
}
settings = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=16, le=2048)]
NUMBER, WORD, TABLE = "a number", "a word", "a table"  # tags of forms, which errors leave out
Whole = Annotated[Annotated[Count, Tag(NUMBER)] | Annotated[Literal["auto"], Tag(WORD)],
                  Discriminator(lambda value: WORD if value == "auto" else NUMBER)]
Either = Discriminator(lambda value: TABLE if isinstance(value, dict) else NUMBER)
Model = Literal["maavt", "linear", "lavish", "mbt"]
Weights = str
PartRate = Annotated[float, Field(gt=0, le=10)]
Depth = Annotated[float, Field(gt=0, le=1)]
Augment = Literal["crop", "resized_crop"]


def per_dataset(kind: type) -> type:
    """One of a kind for all data sets, or one for each."""
    return Annotated[Annotated[kind, Tag(NUMBER)] | Annotated[dict[str, kind], Tag(TABLE)], Either]


@settings
class Synth:
    """The made data set: clips per split, frame size in pixels, frames per second."""

    classes: Annotated[int, Field(ge=4, le=12, multiple_of=2)]
    train: Count
    val: Count
    test: Count
    size: Annotated[int, Field(ge=32, le=1024, multiple_of=2)]
    fps: Annotated[int, Field(ge=1, le=60)]


@settings
class Ave:
    """AVE: where its zip is, or a zip or folder of one's own."""

    local: str
    url: str


@settings
class Vggsound:
    """VGGSound: where its list and archives are, whether gaps are filled from YouTube, or a folder of one's own."""

    local: str
    annotations: str
    hub: str
    repository: str
    revision: str
    archives: str
    youtube: bool
    youtube_url: str
    val_share: Share


@settings
class Cremad:
    """CREMA-D: where its git repository and LFS server are, or a clone of one's own; which splits."""

    local: str
    files: str
    lfs: str
    split: Literal["published", "actors"]
    val_share: Share
    test_share: Share


@settings
class Folder:
    """Clips of one's own: below folders named like their classes, or named in a table."""

    root: str
    table: str
    group: str
    span: Literal["head", "windows", "table"]
    overlap: Annotated[float, Field(ge=0)]
    val_share: Share
    test_share: Share


@settings
class Download:
    """The download stage."""

    min_coverage: Share


@settings
class Spectrogram:
    """How a clip becomes pairs of a frame and a spectrogram: params.yaml says what each setting means.

    A fbank has `bins` and `shift_ms`, an stft `n_fft` and `hop` (samples); times without a unit are whole seconds.
    """

    kind: Literal["fbank", "stft"]
    sample_rate: Annotated[int, Field(ge=8000, le=192000)]
    clip_seconds: Annotated[int, Field(ge=1, le=600)]
    pad: Literal["silence", "tile"]
    pairs: Literal["every", "covered", "one"]
    seconds: Whole
    offset: Annotated[int, Field(ge=0)] = 0
    bins: Annotated[int, Field(ge=8, le=512)] | None = None
    shift_ms: Annotated[float, Field(ge=1, le=100)] | None = None
    n_fft: Annotated[int, Field(ge=16, le=8192)] | None = None
    hop: Annotated[int, Field(ge=8, le=8192)] | None = None
    scaling: Literal["dataset", "sample"]

    @model_validator(mode="after")
    def _fit_together(self):
        mistakes = []
        for kind, names in (("fbank", ("bins", "shift_ms")), ("stft", ("n_fft", "hop"))):
            mistakes += [f"{name}: {'missing' if self.kind == kind else 'not of an ' + self.kind}; expected "
                         f"{'a value' if self.kind == kind else 'it in recipes of the kind ' + kind + ' only'}"
                         for name in names if (getattr(self, name) is None) == (self.kind == kind)]
        if self.seconds == "auto":
            if self.pairs != "covered" or self.offset:
                mistakes.append(f"seconds: 'auto' with pairs: {self.pairs}, offset {self.offset}; expected pairs: "
                                "covered and no offset, or a number")
        elif self.offset + self.seconds > self.clip_seconds:
            mistakes.append(f"seconds: {self.seconds} from offset {self.offset} on are more than clip_seconds, "
                            f"{self.clip_seconds}; expected at most that")
        elif self.pairs == "every" and self.clip_seconds % self.seconds or self.pairs != "one" and self.offset:
            mistakes.append(f"clip_seconds: {self.clip_seconds} (offset {self.offset}) is not a whole number of pairs "
                            f"of {self.seconds} s; expected a multiple, and no offset")
        if self.pairs == "covered" and self.pad != "tile":
            mistakes.append(f"pad: {self.pad!r}; expected tile, since pairs that a clip does not reach are left out")
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def suited(self, lengths: Iterable[float]) -> "Spectrogram":
        """This recipe with `auto` decided for clips of these lengths in seconds: a pair is as long as three quarters of
        the clips are at least, where that is up to 3 s; of longer clips pairs have 2 s."""
        if self.seconds != "auto":
            return self
        known = sorted(min(length, self.clip_seconds) for length in lengths if length)
        most = int(known[len(known) // 4] + 0.1) if known else 2
        return replace(self, seconds=min(max(most if most <= 3 else 2, 1), self.clip_seconds))

    @property
    def windowed(self) -> bool:
        """Whether training takes its window of sound anywhere in the clip."""
        return self.pairs == "one" and self.seconds < self.clip_seconds


@settings
class Shard:
    """The shard stage."""

    frame_size: per_dataset(Pixels)
    jpeg_quality: Annotated[int, Field(ge=1, le=95)]
    clips_per_shard: Count
    min_coverage: Share
    missing: Literal["reject", "keep"]
    spectrogram: dict[str, Spectrogram]


@settings
class AugmentSound:
    """Augmentation of spectrograms: widest masks, largest stretch and shift, as shares of their sides."""

    time_mask: Share
    frequency_mask: Share
    stretch: Share
    shift: Share


@settings
class Train:
    """The train stage; batch and shuffle count pairs. epochs: auto are as many as make `steps`."""

    epochs: per_dataset(Whole)
    steps: Count
    batch: per_dataset(Annotated[int, Field(ge=2)])
    learning_rate: Annotated[float, Field(gt=0, lt=10)]
    schedule: Literal["one_cycle", "step"]
    step_epochs: Count
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    average: Annotated[float, Field(ge=0, lt=1)]
    modality_dropout: Share
    shuffle: Count
    checkpointing: bool


@settings
class Evaluate:
    """The evaluate stage."""

    vggsounder: bool


@settings
class Maavt:
    """MA-AVT beside `tokens`: how prompts begin, the ablation switches (section D), and what the paper has not."""

    prompt_std: Annotated[float, Field(gt=0, le=2)]
    prompt_init: Literal["random", "patches"]
    unimodal_prompts: bool
    shared_prompts: bool
    lsa: bool
    contrastive: Literal["blockwise", "final", "off"]
    projector: Literal["mlp", "linear"]
    mining: Annotated[float, Field(ge=0, lt=1)] | None
    depth: Depth
    lora_rank: Annotated[int, Field(ge=0, le=1024)]
    bottleneck: Annotated[int, Field(ge=0, le=4096)]
    head_blocks: Annotated[int, Field(ge=1, le=1000)]
    head_bands: bool
    standardise: bool
    merge: Annotated[int, Field(ge=0, le=4096)]
    adapter_rate: PartRate
    same_class: Literal["negatives", "left_out"]
    contrastive_trains: Literal["all", "projectors"]
    contrastive_weight: Annotated[float, Field(ge=0)]
    stream_weight: Annotated[float, Field(ge=0)]
    blend: bool
    prompt_rate: PartRate


@settings
class Linear:
    """The linear probe."""

    head_rate: PartRate


@settings
class Lavish:
    """LAVISH; null takes what Table 7's counts need at the backbone's width."""

    adapter_rate: PartRate
    depth: Depth
    reduction: Count | None
    latents: Count | None
    batch_norm: bool | None
    groups: Count
    expansion: Annotated[int, Field(ge=0)]


@settings
class Mbt:
    """MBT."""

    depth: Depth
    bottlenecks: Annotated[int, Field(ge=0)]
    fusion_layer: Annotated[int, Field(ge=0)] | None
    encoder_rate: PartRate


@settings
class Benchmark:
    """The benchmark stage: what is timed, at which size, how often (0 rounds: not at all)."""

    backbones: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: Count
    batches: Annotated[tuple[Count, ...], Field(min_length=1)]
    rounds: Annotated[int, Field(ge=0)]
    budget_seconds: Annotated[float, Field(gt=0)]


@settings
class Params:
    """All of params.yaml. What differs by data set is, as load_params() gives it, that of the data set."""

    recipe: Literal["best", "paper"]
    dataset: Literal["synth", "ave", "vggsound", "cremad", "folder"]
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    backbone: str
    weights: Weights
    tokens: Annotated[int, Field(ge=0, le=1000)]
    image_size: per_dataset(Pixels)
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    synth: Synth
    ave: Ave
    vggsound: Vggsound
    cremad: Cremad
    folder: Folder
    download: Download
    shard: Shard
    augment: dict[str, Augment]
    augment_sound: AugmentSound
    train: Train
    evaluate: Evaluate
    maavt: Maavt
    linear: Linear
    lavish: Lavish
    mbt: Mbt
    benchmark: Benchmark

    @model_validator(mode="after")
    def _fit_together(self):
        mistakes = [f"{key}: nothing for the data set {self.dataset!r}; expected a number" for key in PER_DATASET
                    if isinstance(value := attrgetter(key)(self), dict) and self.dataset not in value]
        if mistakes:
            raise ValueError("\n".join(mistakes))
        own = {key: self._own(key) for key in PER_DATASET}
        for key, backbone, size in (
            ("image_size", self.backbone, own["image_size"]),
            *(("benchmark.image_size", name, self.benchmark.image_size) for name in self.benchmark.backbones),
        ):
            patch = re.search(r"_patch(\d+)", backbone)
            if not patch:
                mistakes.append(f"{key}: the backbone {backbone!r} names no patch size; expected one of timm's "
                                "Vision Transformers, such as vit_base_patch16_224")
            elif size % int(patch[1]):
                fit = size // int(patch[1]) * int(patch[1])
                mistakes.append(f"{key}: {size} is not a multiple of the patch size {patch[1]} of {backbone}; "
                                f"expected such as {fit or int(patch[1])} or {fit + int(patch[1])}")
        if own["image_size"] > own["shard.frame_size"]:
            mistakes.append(f"image_size: {own['image_size']} is more than shard.frame_size, "
                            f"{own['shard.frame_size']}; expected at most that, since pictures are cropped from stored "
                            "frames")
        for name, places in (("vggsound.youtube_url", ["{id}"]), ("cremad.files", ["{path}"])):
            value = getattr(getattr(self, name.split(".")[0]), name.split(".")[1])
            mistakes += [f"{name}: {value!r}; expected {place} in it" for place in places if place not in value]
        for name in ("cremad", "folder"):
            if (block := getattr(self, name)).val_share + block.test_share >= 1:
                mistakes.append(f"{name}: val_share {block.val_share} and test_share {block.test_share} leave nothing "
                                "to train on; expected a sum below 1")
        if self.folder.span == "table" and not self.folder.table:
            mistakes.append("folder.span: 'table' without folder.table; expected a table with the columns from and to")
        if (recipe := self.shard.spectrogram.get("folder")) and self.folder.overlap >= recipe.clip_seconds:
            mistakes.append(f"folder.overlap: {self.folder.overlap:g}; expected less than the {recipe.clip_seconds} s "
                            "of a clip")
        if self.dataset == "folder" and not self.folder.root:
            mistakes.append("folder.root: ''; expected the folder that holds your clips")
        if self.evaluate.vggsounder and self.dataset != "vggsound":
            mistakes.append(f"evaluate.vggsounder: true, but the data set is {self.dataset}; expected false, or "
                            "dataset: vggsound")
        if self.dataset not in self.shard.spectrogram:
            mistakes.append(f"shard.spectrogram: no recipe for the data set {self.dataset!r}; expected one")
        if self.dataset not in self.augment:
            mistakes.append(f"augment: nothing for the data set {self.dataset!r}; expected crop or resized_crop")
        if self.recipe == "paper":
            mistakes += [f"{block}.{name}: {value!r}, but recipe: paper resets it to {paper!r}; expected recipe: best, "
                         f"or the default, {default!r}"
                         for block, resets in PAPER.items() for name, (paper, default) in resets.items()
                         if (value := getattr(getattr(self, block), name)) not in (paper, default)]
        if len(set(self.models)) < len(self.models):
            mistakes.append(f"models: {list(self.models)} names one twice; expected each once")
        if self.weights == "packaged" and self.backbone != "vit_small_patch14_dinov2":
            mistakes.append(f"weights: 'packaged' holds vit_small_patch14_dinov2, not {self.backbone!r}; expected "
                            "timm, random or a path for this backbone")
        if self.maavt.contrastive != "off" and not (self.tokens and self.maavt.shared_prompts):
            mistakes.append(f"maavt.contrastive: {self.maavt.contrastive!r} needs shared prompts; expected off when "
                            "tokens is 0 or maavt.shared_prompts is false")
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def epochs(self, steps: int) -> int:
        """How often training goes through the data set, in so many steps each time."""
        own = self.train.epochs
        return min(max(-(-self.train.steps // steps), FEWEST), MOST) if own == "auto" else own

    def _own(self, key: str) -> object:
        """The value of one of PER_DATASET for the data set."""
        value = attrgetter(key)(self)
        return value[self.dataset] if isinstance(value, dict) else value

    def resolved(self) -> "Params":
        """These settings with what holds for the data set; `recipe: paper` resets what PAPER names."""
        paper = self.recipe == "paper"
        made = replace(self, image_size=self._own("image_size"),
                       shard=replace(self.shard, frame_size=self._own("shard.frame_size")),
                       train=replace(self.train, epochs=self._own("train.epochs"), batch=self._own("train.batch")))
        if self.maavt.mining is None:
            made = replace(made, maavt=replace(made.maavt, mining=0.2 if paper else 0.0))
        if not paper:
            return made
        return replace(made, **{block: replace(getattr(made, block), **{name: paper for name, (paper, _) in
                                                                        resets.items()})
                                for block, resets in PAPER.items()})


def load_params(path: Path | None = None) -> Params:
    """Read and check params.yaml (by default the project's).

    Raises UserError with one line per mistake: the key, the value and what was expected.
    """
    path = path or project_root() / "params.yaml"
    try:
        values = YAML(typ="safe").load(path.read_text())  # YAML 1.2, as DVC reads it: `off` is a word
    except FileNotFoundError:
        raise UserError(f"no {path}; expected the file of the settings, as the repository holds it") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return parse_params(values, path.name)


def parse_params(values: object, name: str = "params.yaml") -> Params:
    """Check settings that were read from `name`; raises UserError as load_params does."""
    try:
        return TypeAdapter(Params).validate_json(json.dumps(values, default=str), strict=True).resolved()
    except ValidationError as error:
        mistakes = [line for item in error.errors() for line in _explain(item)]
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    raise UserError(f"{count} in {name}:\n" + "\n".join(f"  {line}" for line in mistakes))


def flat(values: dict, above: str = "") -> dict[str, object]:
    """Settings by their full keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return found


def check_weights(params: Params, root: Path) -> None:
    """Raises UserError when `weights` is neither a word that is known nor a file; a path counts from `root`."""
    if params.weights not in ("packaged", "timm", "random") and not (root / params.weights).is_file():
        raise UserError(f"weights: no file {root / params.weights}; expected packaged, timm, random or the path of a "
                        ".safetensors file")


def _explain(item: dict) -> list[str]:
    key = ".".join(str(part) for part in item["loc"] if part not in (NUMBER, WORD, TABLE)) or "the file"
    value = item["input"]
    if item["type"] == "value_error":  # raised above: says key, value and expectation itself
        where = f"{key}." if item["loc"] else ""
        return [where + line for line in str(item["ctx"]["error"]).splitlines()]
    if item["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return [f"{key}: missing; expected a value"]
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return [f"{key}: {value!r}, but there is no such setting; expected a key that params.yaml documents"]
    if item["type"] == "too_short":
        return [f"{key}: {value!r}; expected at least {item['ctx']['min_length']}"]
    if item["type"] == "tuple_type":
        return [f"{key}: {value!r}; expected a list, such as [{value}]"]
    expected = item["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return [f"{key}: {value!r}; expected {expected}"]
