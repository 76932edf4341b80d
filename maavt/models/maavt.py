"""MA-AVT: prompts for a frozen Vision Transformer that two streams share (supplement, sections B and C).

Not in the paper: `lora_rank` and `bottleneck` give each stream something of its own in every block; with `head_blocks`
the heads read the class and background tokens after so many blocks, evenly spaced, the last one among them, and after
all but the last the mean of the patches beside, all standardised with `standardise`; with `head_bands`, after the
middle one of these, the mean of each row and of each column of patches as well, which in a spectrogram are moments and
bands of frequencies; `merge` makes so many patches of each stream part of others in every block but the last.

B pairs, N tokens of a stream, D width, K blocks, C classes, H numbers of a stream that the heads read. The tokens of a
stream are [class prompt, patches, (background prompt), unimodal prompts, shared prompts].
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from maavt.models.adapters import StreamAdapters
from maavt.models.head import Head
from maavt.models.inference import FastPatches, constant, fast_blocks
from maavt.models.merge import Merged
from maavt.models.output import Output
from maavt.models.vit import (
    as_images,
    attention_scores,
    both,
    check_heads,
    embed_patches,
    remade,
    run_merging,
    streams,
)

LSA_HEADS = 8
AT_ONCE = 32  # pairs that are looked at before training; prompts begin as patches of the first so many
PROJECTOR_OUTPUTS = {"mlp": 256, "linear": 512}


@dataclass(frozen=True, kw_only=True)
class MaavtConfig:
    """What MA-AVT is built from, beside the backbone; `background` adds the background prompt and its head."""

    classes: int
    background: bool
    multilabel: bool = False
    tokens: int = 5
    prompt_std: float = 0.02
    prompt_init: str = "random"
    unimodal_prompts: bool = True
    shared_prompts: bool = True
    lsa: bool = True
    contrastive: str = "blockwise"
    contrastive_trains: str = "all"
    projector: str = "mlp"
    lora_rank: int = 0
    bottleneck: int = 0
    head_blocks: int = 1
    head_bands: bool = False
    standardise: bool = False
    merge: int = 0

    def __post_init__(self):
        if self.head_blocks < 1:
            raise ValueError(f"head_blocks: {self.head_blocks}; expected 1 or more")
        for name in ("tokens", "lora_rank", "bottleneck", "merge"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected 0 or more")
        if self.projector not in PROJECTOR_OUTPUTS:
            raise ValueError(f"projector: {self.projector!r}; expected one of {', '.join(PROJECTOR_OUTPUTS)}")
        if self.prompt_init not in ("random", "patches"):
            raise ValueError(f"prompt_init: {self.prompt_init!r}; expected random or patches")
        if self.contrastive not in ("blockwise", "final", "off"):
            raise ValueError(f"contrastive: {self.contrastive!r}; expected blockwise, final or off")
        if self.contrastive_trains not in ("all", "projectors"):
            raise ValueError(f"contrastive_trains: {self.contrastive_trains!r}; expected all or projectors")


class Prompts(nn.Module):
    """Learnable tokens that attend to one another before they join a stream (LSA): () -> (tokens, D).

    With `added` what they attend to is added to them, at first nothing, so that they begin as they are.
    """

    def __init__(self, tokens: int, width: int, std: float, lsa: bool, added: bool):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tokens, width) * std)
        self.attention = Attention(width, LSA_HEADS, qkv_bias=True) if lsa else None
        self.added = added
        if lsa and added:
            nn.init.zeros_(self.attention.proj.weight)
            nn.init.zeros_(self.attention.proj.bias)

    def forward(self) -> Tensor:
        if self.attention is None:
            return self.tokens
        attended = self.attention(self.tokens[None])[0]
        return self.tokens + attended if self.added else attended


class MAAVT(nn.Module):
    """Frames (B, 3, S, S) and spectrograms (B, S, S), both normalised -> Output.

    The backbone may be kept in a smaller type (bf16): tokens run in the backbone's type, prompts, heads and
    projectors stay in float32. Raises ValueError when 8 heads do not divide the backbone's width.
    """

    def __init__(self, backbone: VisionTransformer, config: MaavtConfig):
        super().__init__()
        width = backbone.embed_dim
        self.config, self.backbone, self.checkpointing = config, backbone, False
        self.class_prompt = nn.Parameter(backbone.cls_token.detach()[0].float().clone())  # (1, D)
        backbone.cls_token = None  # the class prompt stands in for it
        self.background_prompt = nn.Parameter(torch.randn(1, width) * config.prompt_std) if config.background else None
        groups = {"audio": config.unimodal_prompts, "visual": config.unimodal_prompts, "shared": config.shared_prompts}
        groups = [name for name, wanted in groups.items() if wanted and config.tokens]
        if groups and config.lsa:
            check_heads(width, LSA_HEADS)
        self.prompts = nn.ModuleDict(
            {name: Prompts(config.tokens, width, config.prompt_std, config.lsa, config.prompt_init == "patches")
             for name in groups}
        )
        blocks = {"blockwise": len(backbone.blocks), "final": 1, "off": 0}[config.contrastive]
        if blocks and "shared" not in groups:
            raise ValueError("the contrastive loss needs shared prompts; expected contrastive: off without them")
        self.visual_projectors = nn.ModuleList(_projector(config.projector, width) for _ in range(blocks))
        self.audio_projectors = nn.ModuleList(_projector(config.projector, width) for _ in range(blocks))
        self.adapters = nn.ModuleList(StreamAdapters(width, config.lora_rank, config.bottleneck)
                                      for _ in backbone.blocks if config.lora_rank or config.bottleneck)
        self.early = read_early(config.head_blocks, len(backbone.blocks))
        self.grid = backbone.patch_embed.grid_size
        self.banded = self.early[len(self.early) // 2] if config.head_bands and self.early else None
        means = len(self.early) + (0 if self.banded is None else sum(self.grid))
        sizes = [width * (len(self.early) + means)] * bool(self.early) + [width]
        self.head = Head(sizes, config.classes, standardise=config.standardise)
        self.background_head = Head(sizes, 1, standardise=config.standardise) if config.background else None

    @torch.no_grad()
    def begin(self, frames: Tensor, spectrograms: Tensor, absent: tuple[Tensor, Tensor]) -> None:
        """Before training, look at some pairs (B, ...) to train on, and at what stands in for an absent picture and an
        absent sound (1, ...): see `prompt_init` and `standardise`."""
        if self.config.prompt_init == "patches":
            self._begin_prompts(frames, spectrograms)
        if self.config.standardise:
            form = self.for_inference()
            pairs = zip(frames.split(AT_ONCE), spectrograms.split(AT_ONCE), strict=True)
            read = torch.cat([both(form.encode(*some)) for some in (*pairs, absent)])
            self.head.begin(read[:-1, 0], read[-1, 0])
            if self.background_head is not None:
                self.background_head.begin(read[:-1, 1], read[-1, 1])

    def _begin_prompts(self, frames: Tensor, spectrograms: Tensor) -> None:
        """Prompts begin as patches of these pairs, drawn at random, the shared ones half of each stream, and the
        background prompt as the class prompt. The frozen ViT takes random tokens among its own badly: its CLS token
        then says little (docs/recipe.md)."""
        frames, spectrograms = frames[:AT_ONCE], spectrograms[:AT_ONCE]
        kind = self.backbone.patch_embed.proj.weight.dtype
        patches = embed_patches(self.backbone, torch.cat([frames.to(kind), as_images(spectrograms).to(kind)])).float()
        visual, audio = (stream.flatten(0, 1) for stream in streams(patches))

        def drawn(stream: Tensor, count: int) -> Tensor:
            order = torch.randperm(len(stream)).repeat(-(-count // len(stream)))  # again where there are too few
            return stream[order[:count].to(stream.device)]

        count = self.config.tokens
        for name, prompts in self.prompts.items():
            own = {"visual": [(visual, count)], "audio": [(audio, count)],
                   "shared": [(visual, count - count // 2), (audio, count // 2)]}[name]
            prompts.tokens.copy_(torch.cat([drawn(stream, share) for stream, share in own]))
        if self.background_prompt is not None:
            self.background_prompt.copy_(self.class_prompt + self.backbone.pos_embed[0, :1])

    def trained(self) -> list[str]:
        """Names of what is trained and kept: the prompts with their attention, the adapters, and the heads."""
        names = ["class_prompt", "head"]
        names += ["prompts"] if self.prompts else []
        names += ["adapters"] if len(self.adapters) else []
        return names + (["background_prompt", "background_head"] if self.config.background else [])

    def training_only(self) -> list[str]:
        """Names of what is trained but discarded afterwards, and not counted: the projectors (section C)."""
        return ["visual_projectors", "audio_projectors"] if len(self.visual_projectors) else []

    def aligning(self) -> list[str]:
        """Names of what is kept beside what is trained, and not counted: the last block's projectors, by which the
        vectors of the streams are compared."""
        return [f"{name}.{len(self.visual_projectors) - 1}" for name in self.training_only()]

    def parts(self) -> dict[str, list[str]]:
        """What learns at a rate of its own, by the name of its setting."""
        return {"adapter": ["adapters"], "prompt": ["class_prompt", "background_prompt", "prompts"]}

    def set_compute_type(self, kind: torch.dtype) -> None:
        """Keep the frozen weights in the type that they are multiplied in."""
        self.backbone.to(kind)

    def for_inference(self, kind: torch.dtype | None = None, *, pack: bool = True) -> nn.Module:
        """A copy for inference alone, in the compute type or in another; `pack` is False for torch.compile."""
        return MaavtInference(self, kind or self.backbone.patch_embed.proj.weight.dtype, pack)

    def for_vectors(self, kind: torch.dtype | None = None, *, pack: bool = True) -> nn.Module:
        """A copy that says vectors of pictures and sounds, too; ValueError where nothing ever compared them."""
        if not len(self.visual_projectors):
            raise ValueError("it was trained without the contrastive loss, which alone makes pictures and sounds "
                             "comparable; expected maavt.contrastive: blockwise or final")
        return MaavtVectors(self, kind or self.backbone.patch_embed.proj.weight.dtype, pack)

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        x, patches = self._tokens(frames, spectrograms)  # (2 B, N, D): visual, then audio
        shared = slice(-self.config.tokens, None) if "shared" in self.prompts else None
        merged = Merged.none(x, 1, patches) if self.config.merge else None
        compared = self.training and self.visual_projectors
        *blocks, last = self._blocks()
        projections, summaries = [], []
        for number, (block, own) in enumerate(blocks):
            x, merged = remade(self.checkpointing, run_merging, block, x, merged, self.config.merge, own=own)
            if number in self.early:
                behind = 1 + (merged.patches if merged else patches)
                tokens = torch.cat([x[:, :1], x[:, behind : behind + self.config.background]], 1)
                grid = self.grid if number == self.banded else None
                summaries.append(early_summary(tokens, x[:, 1:behind], merged, grid))
            if compared and self.config.contrastive == "blockwise":
                projections.append(self._project(number, x[:, shared]))
        patches = merged.patches if merged else patches
        x = torch.cat([x[:, :1], x[:, 1 + patches :], x[:, 1 : 1 + patches]], 1)  # what is read first
        merged = merged and replace(merged, first=x.shape[1] - patches)
        read = x.shape[1] - patches if compared else 1 + self.config.background
        block, own = last
        x, _ = remade(self.checkpointing, run_merging, block, x, merged, read=slice(0, read), own=own)
        if compared:
            projections.append(self._project(-1, x[:, -self.config.tokens :]))
        summaries.append(self.backbone.norm(x[:, : 1 + self.config.background]).float())
        summary = both(torch.cat(summaries, -1))
        parts = self.head.each(summary[:, 0])
        return Output(
            logits=parts.sum(0) + self.head.bias,
            background=self.background_head(summary[:, 1])[:, 0] if self.config.background else None,
            projections=projections or None,
            streams=[*(parts + self.head.bias)] if self.training else None,
            multilabel=self.config.multilabel,
        )

    @torch.no_grad()
    def attention_map(self, frames: Tensor, spectrograms: Tensor, *, background: bool = False
                      ) -> tuple[Tensor, Tensor]:
        """Where the class prompt, or the `background` prompt, looks in the last block: (B, patches) of the frame and of
        the spectrogram, sum 1.

        Patches that have become one share what it gets evenly: the more there are, the more it weighs in attention.
        """
        x, patches = self._tokens(frames, spectrograms)
        merged, behind = Merged.none(x, 1, patches), x.shape[1] - 1 - patches  # tokens behind the patches
        *blocks, (last, last_own) = self._blocks()
        for block, own in blocks:
            x, merged = run_merging(block, x, merged, self.config.merge, own=own)
        query = x.shape[1] - behind if background else 0
        scores = merged.spread(attention_scores(last, x, query=query, own=last_own).float())
        return streams(scores.softmax(-1))

    def _blocks(self) -> list[tuple[Block, StreamAdapters | None]]:
        """The blocks, each with what the streams have of their own in it."""
        return list(zip(self.backbone.blocks, self.adapters or [None] * len(self.backbone.blocks), strict=True))

    def _tokens(self, frames: Tensor, spectrograms: Tensor) -> tuple[Tensor, int]:
        """Both streams as one batch (2 B, N, D), and the number of patches."""
        kind = self.backbone.patch_embed.proj.weight.dtype
        patches = embed_patches(self.backbone, torch.cat([frames.to(kind), as_images(spectrograms).to(kind)]))
        learned = self.learned_tokens().to(kind).repeat_interleave(len(frames), 0)  # (2 B, 1 + M, D)
        return torch.cat([learned[:, :1], patches, learned[:, 1:]], 1), patches.shape[1]

    def learned_tokens(self) -> Tensor:
        """All tokens but the patches, of the visual and the audio stream, class prompt first: (2, 1 + M, D)."""
        position = self.backbone.pos_embed[0, :1]
        made = {name: prompts() for name, prompts in self.prompts.items()}
        background = [self.background_prompt] if self.config.background else []
        return torch.stack([
            torch.cat([self.class_prompt + position, *background, *(made[g] for g in (stream, "shared") if g in made)])
            for stream in ("visual", "audio")
        ])

    def _project(self, block: int, shared: Tensor) -> tuple[Tensor, Tensor]:
        """The mean shared prompt of each stream through the block's projectors, of length 1: (B, P) each."""
        if self.config.contrastive_trains == "projectors":
            shared = shared.detach()
        visual, audio = streams(shared.float().mean(1))
        return (nn.functional.normalize(self.visual_projectors[block](visual), dim=-1),
                nn.functional.normalize(self.audio_projectors[block](audio), dim=-1))


class MaavtInference(nn.Module):
    """MA-AVT for inference: prompts with their attention folded into constants, projectors gone, both streams in one
    pass whose last block is computed for the class and background tokens alone."""

    def __init__(self, model: MAAVT, kind: torch.dtype, pack: bool):
        super().__init__()
        vit, self.background, self.multilabel = model.backbone, model.config.background, model.config.multilabel
        self.see, self.hear = FastPatches(vit, kind, pack, channels=3), FastPatches(vit, kind, pack, channels=1)
        self.blocks, self.norm = fast_blocks(vit, kind, pack, own=model.adapters), constant(vit.norm, kind)
        self.merge, self.early, self.banded, self.grid = model.config.merge, model.early, model.banded, model.grid
        self.register_buffer("learned", model.learned_tokens().detach().to(kind), persistent=False)  # (2, 1 + M, D)
        self.head = constant(model.head, torch.float32)
        self.background_head = constant(model.background_head, torch.float32) if self.background else None

    def forward(self, frames: Tensor, spectrograms: Tensor) -> Output:
        return self.decide(self.encode(frames, spectrograms))

    def encode(self, frames: Tensor, spectrograms: Tensor) -> Tensor:
        """Each stream by itself, read at the class and background tokens: (2 B, 1 or 2, H), visual then audio."""
        return self._run(frames, spectrograms, 1 + self.background)[1]

    def _run(self, frames: Tensor, spectrograms: Tensor, read: int) -> tuple[Tensor, Tensor]:
        """The first `read` of all tokens after the last block (2 B, read, D), and what encode() gives."""
        x = torch.cat([self.see(frames), self.hear(spectrograms[:, None])])  # (2 B, N, D)
        learned = self.learned[:, None].expand(-1, frames.shape[0], -1, -1).flatten(0, 1)  # ONNX has this for any B
        x = torch.cat([learned, x], 1)  # what is read first; attention does not see the order
        first = learned.shape[1]
        merged = Merged.none(x, first, x.shape[1] - first) if self.merge else None
        *blocks, last = self.blocks
        summaries = []
        for number, block in enumerate(blocks):
            x, merged = block.merging(x, merged, self.merge) if merged else (block(x), None)
            if number in self.early:
                behind = first + merged.patches if merged else None
                grid = self.grid if number == self.banded else None
                summaries.append(early_summary(x[:, : 1 + self.background], x[:, first:behind], merged, grid))
        x = last(x, read, merged)
        summaries.append(self.norm(x[:, : 1 + self.background]).float())
        return x, torch.cat(summaries, -1)

    def decide(self, encoded: Tensor) -> Output:
        """What the heads say of both streams, as encode() gives them."""
        summary = both(encoded)
        return Output(self.head(summary[:, 0]),
                      self.background_head(summary[:, 1])[:, 0] if self.background else None,
                      multilabel=self.multilabel)


class MaavtVectors(MaavtInference):
    """MA-AVT for inference with what the contrastive loss compares in the last block: the mean shared prompt of each
    stream through its projector, of length 1 -> (Output, visual (B, P), audio (B, P))."""

    def __init__(self, model: MAAVT, kind: torch.dtype, pack: bool):
        super().__init__(model, kind, pack)
        self.tokens = model.config.tokens
        self.project = nn.ModuleList(constant(projectors[-1], torch.float32)
                                     for projectors in (model.visual_projectors, model.audio_projectors))

    def forward(self, frames: Tensor, spectrograms: Tensor) -> tuple[Output, Tensor, Tensor]:
        x, encoded = self._run(frames, spectrograms, self.learned.shape[1])
        means = streams(x[:, -self.tokens :].float().mean(1))
        visual, audio = (nn.functional.normalize(project(mean), dim=-1)
                         for project, mean in zip(self.project, means, strict=True))
        return self.decide(encoded), visual, audio


def read_early(count: int, blocks: int) -> list[int]:
    """Numbers of the blocks, but the last, after which the heads read, if they read `count` of so many blocks, at most
    all of them, evenly spaced."""
    count = min(count, blocks)
    return [blocks * number // count - 1 for number in range(1, count)]


def early_summary(read: Tensor, patches: Tensor, merged: Merged | None, grid: tuple[int, int] | None) -> Tensor:
    """What the heads read of an early block, from its class and background tokens (B, R, D) and its patches (B, P, D),
    of which some may stand for several: each token beside the mean of the patches, and where they are to be read as a
    `grid` those of its rows and of its columns, (B, R, 2 D or more). Each counts with mean 0 and deviation 1: the
    backbone's own norm suits the last block alone."""
    read, patches = (F.layer_norm(tokens.float(), tokens.shape[-1:]) for tokens in (read, patches))
    if merged:
        patches = patches.gather(1, merged.source[..., None].expand(-1, -1, patches.shape[-1]))
    means = [patches.mean(1)]
    if grid:
        laid = patches.unflatten(1, grid)
        means += [laid.mean(2).flatten(1), laid.mean(1).flatten(1)]
    return torch.cat([read, torch.cat(means, -1)[:, None].expand(-1, read.shape[1], -1)], -1)


def _projector(kind: str, width: int) -> nn.Module:
    outputs = PROJECTOR_OUTPUTS[kind]
    if kind == "linear":
        return nn.Linear(width, outputs)
    return nn.Sequential(nn.Linear(width, outputs), nn.GELU(), nn.Linear(outputs, outputs))
