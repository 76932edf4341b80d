"""Stage train: shards and backbone -> data/models/MODEL, the epoch that the validation split chooses, and the curves.

A killed run goes on where it was kept last, after an epoch or within one, and ends with the same numbers. A SIGTERM
keeps all and ends with exit code 75: again later. With MAAVT_PROCESSES several processes train together, each on its
share of every batch.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from zlib import crc32

import torch
from dvclive import Live
from scmrepo.exceptions import SCMError

from maavt.errors import UserError, run
from maavt.models import MODELS, create_model, model_settings
from maavt.models.backbone import load_backbone, read_origin
from maavt.models.merge import left
from maavt.models.vit import count, train_only, under
from maavt.params import Params, Train, load_params
from maavt.progress import Waited, progress
from maavt.shards.loader import Loader
from maavt.shards.reader import Reader
from maavt.training.adapter import save_adapter, trained_weights
from maavt.training.augment import augment_sound, drop_modality
from maavt.training.average import Average
from maavt.training.blend import blend
from maavt.training.checkpoint import Checkpoint, NotFinite
from maavt.training.losses import losses, mine_background, whole_batch
from maavt.training.precision import bootstrap_error, mean_average_precision, standard_error
from maavt.training.processes import ALONE, Team, launch, preemptible
from maavt.training.retrieval import retrieval
from maavt.training.runtime import Normaliser, pick_device, place, predict
from maavt.work import atomic, machine, project_root, publish, workspace, write_table

SUMS = ("loss", "class_loss", "background_loss", "contrastive_loss", "contrastive_chance", "accuracy")
STEP_ROWS = 200  # rows of steps.csv, about
FIRST, LOOKS = 128, 10  # pairs that a model may look at before training, drawn from at most so many times as many


def main(arguments: list[str] | None = None) -> None:
    """Train one model and move what was trained into place."""
    parser = argparse.ArgumentParser("maavt train", description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="maavt")
    name = parser.parse_args(arguments).model
    params = load_params()
    with preemptible():
        best = launch(fit, params.train.batch, name, params)
    if best:
        print(f"{name}: {best['accuracy']:.3f} of the validation pairs right after epoch {best['epoch']}"
              + (f", mean average precision {best['map']:.3f}" if best["map"] is not None else ""))


def fit(team: Team, name: str, params: Params) -> dict:
    """Train one model, alone or as one of several processes, of which the first alone writes; returns the number and
    the accuracy of the epoch that is kept."""
    data = project_root() / "data"
    loaders = {split: Loader(Reader.of(params.dataset), split, batch=params.train.batch // team.ranks,
                             image_size=params.image_size, augment=params.augment[params.dataset])
               for split in ("train", "val")}
    epochs = params.epochs(loaders["train"].steps(team.ranks))
    relevant = [replace(params.train, epochs=epochs), getattr(params, name), params.backbone, params.tokens,
                params.image_size, params.seed]
    with ExitStack() as stack:
        folder = team.of_first(lambda: stack.enter_context(
            workspace(f"train-{name}", *relevant, read_origin(params.backbone), params.augment[params.dataset],
                      params.augment_sound, loaders["train"].index)))
        if team.first:
            for split, counts in loaders["train"].index["splits"].items():
                print(f"{split}: {counts['samples'] + counts['rejected']} clips seen, {counts['samples']} used, "
                      f"{counts['rejected']} rejected")
        training = Training(name, params, loaders, folder, data / "curves" / name, team)
        training.run()
        if team.first:
            save_adapter(folder / "model", training.best["weights"], training.config())
            publish(folder / "model", data / "models" / name)
            with atomic(data / "timing" / f"{name}.json") as path:
                path.write_text(json.dumps(training.timing(), indent=1) + "\n")
        return {key: training.best.get(key) for key in ("epoch", "accuracy", "map")}


class Training:
    """One model in training. `best` is the epoch that is kept so far: number, accuracy and weights.

    Of several processes the first alone keeps `best`, `history`, curves and checkpoint, and prints; the `loaders` of
    each give it its share of a batch.
    """

    def __init__(self, name: str, params: Params, loaders: dict[str, Loader], folder: Path, curves: Path,
                 team: Team = ALONE):
        self.name, self.params, self.loaders, self.curves, self.team = name, params, loaders, curves, team
        self.kept = Checkpoint(self, folder, team)
        self.index = index = loaders["train"].index
        torch.manual_seed(params.seed)
        backbone = load_backbone(params.backbone, image_size=params.image_size)
        self.normalise = Normaliser(
            image_size=params.image_size,
            image_mean=tuple(backbone.default_cfg["mean"]),
            image_std=tuple(backbone.default_cfg["std"]),
            spectrogram_mean=index["splits"]["train"]["mean"],
            spectrogram_std=index["splits"]["train"]["std"] or 1.0,
            scaling=index["spectrogram"]["scaling"],
            frame_mean=tuple(index["splits"]["train"]["frame_mean"]),
        )
        self.multilabel = loaders["train"].multilabel
        self.settings = model_settings(name, params, classes=len(index["classes"]), background=index["background"],
                                       multilabel=self.multilabel)
        self.own = own = getattr(params, name)
        self.mining = 0.0 if index["background"] or self.multilabel else getattr(own, "mining", 0.0)
        self.device = pick_device()
        self.model = place(create_model(name, backbone, self.settings), self.device, training=True)
        train_only(self.model, self.model.trained() + self.model.training_only())
        if team.first and self.settings.get("merge"):
            patches, blocks = backbone.patch_embed.num_patches, len(backbone.blocks)
            print(f"{name}: of {patches} patches of each stream maavt.merge leaves the last block "
                  f"{left(patches, self.settings['merge'], blocks)}")
        if hasattr(self.model, "begin"):
            self.model.begin(*self._first_pairs())
        train = params.train
        self.optimizer = torch.optim.AdamW(_groups(self.model, own, train.learning_rate),
                                           weight_decay=train.weight_decay, fused=True)
        self.model.checkpointing = train.checkpointing
        self.parallel = team.parallel(self.model)
        self.steps = loaders["train"].steps(team.ranks)
        self.epochs = params.epochs(self.steps)
        over = train.average * self.steps * self.epochs  # as many steps as the average looks back over
        self.average = Average(self.model, 1 - 1 / over if over > 1 else 0.0)
        self.loss_settings = {name: getattr(own, name) for name in ("same_class", "contrastive_weight", "stream_weight")
                              if hasattr(own, name)}
        self.scheduler = _schedule(self.optimizer, train, self.epochs, self.steps)
        self.step_log: list[list[float]] = []  # epoch, step, samples and sums of the epoch so far, learning rate
        self.log_every = max(1, self.steps * self.epochs // STEP_ROWS)
        self.epoch, self.best, self.history = 0, {"map" if self.multilabel else "accuracy": -1.0}, []
        self.blended: dict[str, float] | None = None  # how much the streams count in the head
        self.took: list[float] = []  # seconds of each epoch that ran without a break, validation included
        self.found: dict[str, dict | None] = {}  # how well sounds find their pictures, before and after training

    def _first_pairs(self) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Frames and spectrograms of some pairs to train on, if possible of those that have both, drawn alike in all
        processes, and what stands in for an absent one of either."""
        train, settings = self.loaders["train"], self.params
        few = Loader(train.reader, "train", batch=FIRST, image_size=train.image_size, augment=train.augment)
        looked, whole = [], []
        for batch in islice(few.shuffled(seed=settings.seed, epoch=0, held=settings.train.shuffle), LOOKS):
            looked.append(self.normalise(batch, self.device)[:2])
            has_both = slice(None) if batch.absent is None else (batch.absent == 0).to(self.device)
            whole.append(tuple(side[has_both] for side in looked[-1]))
            if sum(len(frames) for frames, _ in whole) >= FIRST or not train.lacking:
                break
        if not sum(len(frames) for frames, _ in whole):
            whole = looked
        frames, sound = (torch.cat(side)[:FIRST] for side in zip(*whole, strict=True))
        return frames, sound, self.normalise.nothing(frames[:1], sound[:1])

    def run(self) -> None:
        """All epochs, or those that a killed run left."""
        self.found["before"] = self._retrieve()
        self.kept.resume()
        with self.kept.leaving(), self._live() as live:
            for scores in self.history:
                _log(live, scores)
            while self.epoch < self.epochs:
                self.epoch += 1
                begin, resumed = time.monotonic(), self.kept.going_on is not None
                try:
                    scores = self._train_epoch()
                except NotFinite:
                    self.kept.go_back()
                    continue
                with self.average.applied():
                    found = self._validate()
                    scores |= {f"val/{name}": found[name] for name in ("accuracy", "map") if name in found}
                    if self.team.first:
                        self._choose(found)
                if not resumed:
                    self.took.append(time.monotonic() - begin)
                if self.team.first:
                    self.history.append(scores)
                    self.kept.save()
                    _log(live, scores)
                    self._warn(scores["train/accuracy"], found["chance"])
            if self.team.first:  # metrics.json otherwise tells of the last epoch alone
                live.summary["kept"] = {"epoch": self.best["epoch"], **self._reached()}
                live.make_summary()
                write_table(self.curves / "steps.csv", ("epoch", *SUMS, "learning_rate"),
                            step_rows(self.step_log, self.steps))
        if self.team.first:
            self.model.load_state_dict(self.best["weights"] | self.best["projectors"], strict=False)
            self.found["after"] = self._retrieve()
            if getattr(self.own, "blend", False):
                self._blend()

    def _blend(self) -> None:
        """Weigh the streams in the head of the kept epoch. What validation found of that epoch stays as it is: the
        same pairs would speak too well of weights that were fitted to them."""
        self.blended = blend(self.model, self.loaders["val"].in_order(), self.normalise)
        if self.blended:
            self.best["weights"]["head.weight"] = self.model.head.weight.detach().cpu().clone()
            said = ", ".join(f"{part.replace('_', ' ')} {weight:.2f}" for part, weight in self.blended.items())
            print(f"{self.name}: by the validation pairs, the parts of its head count: {said}")

    def _retrieve(self) -> dict | None:
        """How well the sounds of the validation split find their pictures now."""
        return retrieval(self.model, self.loaders["val"].in_order(), self.normalise) if self.team.first else None

    def _live(self) -> Live | nullcontext:
        if not self.team.first:
            return nullcontext()
        try:
            live = Live(str(self.curves), save_dvc_exp=False, dvcyaml=None, report=None)
            live.step = 1  # epochs count from 1
            return live
        except SCMError as error:
            raise UserError(f"git: {error}; DVC needs a repository with a commit, make one here: git init && "
                            "git add . && git commit -m start") from None

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the training pairs; returns mean losses and the accuracy on them."""
        self.model.train()
        device, train, team, seed = self.device, self.params.train, self.team, self.params.seed
        drawn = (seed * 100_003 + self.epoch) * team.ranks + team.rank
        generator = torch.Generator(device).manual_seed(drawn)
        torch.manual_seed(drawn)  # torchaudio's masks take no generator
        sums, lone = torch.zeros(6, device=device), torch.zeros((), device=device)
        begun, pairs = self.kept.begin(generator, sums, lone)
        batches = Waited(self.loaders["train"].shuffled(seed=seed, epoch=self.epoch, held=train.shuffle,
                                                        rank=team.rank, ranks=team.ranks, skip=begun))
        label = f"{self.name} epoch {self.epoch}/{self.epochs}"
        total = self.loaders["train"].share(team.ranks) * team.ranks
        with progress(label=label, unit="pair", total=total, silent=not team.first) as bar:
            bar.update(pairs)
            for step, batch in enumerate(batches, begun + 1):
                frames, sound, labels = self.normalise(batch, device)
                sound, whole = augment_sound(sound, self.params.augment_sound), None
                if self.loaders["train"].lacking or train.modality_dropout:
                    absent = drop_modality(batch.absent, len(labels), train.modality_dropout, generator)
                    frames, sound = self.normalise.fill(frames, sound, absent)
                    whole = absent == 0
                if self.mining:
                    sound, labels, alone = mine_background(sound, labels, self.mining, generator, whole)
                    lone += alone
                output, labels, whole = whole_batch(self.parallel(frames, sound), labels, team.gather, whole)
                parts = losses(output, labels, whole=whole, **self.loss_settings)
                self.optimizer.zero_grad(set_to_none=True)
                parts.total.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.average.update()
                pairs += len(labels)
                sums += torch.stack([*(part.detach() * len(labels) for part in
                                       (parts.total, parts.classes, parts.background, parts.contrastive, parts.chance)),
                                     _right(output.predicted(), labels)])
                if team.first and (step % 10 == 0 or step == self.steps):  # reading waits for the device
                    bar.set_postfix(loss=f"{sums[0].item() / pairs:.3f}", accuracy=f"{sums[5].item() / pairs:.3f}",
                                    data_wait=batches, refresh=False)
                bar.update(len(labels))
                if team.first and (step % self.log_every == 0 or step == self.steps):
                    self.step_log.append([self.epoch, step, pairs, *sums.tolist(), max(self.scheduler.get_last_lr())])
                self.kept.after(step, pairs, generator, sums, lone)
        means = (sums / max(pairs, 1)).tolist()
        lone = team.sum(lone).item()
        if lone and team.first:
            print(f"epoch {self.epoch}: {lone:.0f} pairs had no partner of another class in their batch and were not "
                  "made background")
        return {f"train/{name}": mean for name, mean in zip(SUMS, means, strict=True)} | {
            "train/learning_rate": max(self.scheduler.get_last_lr())}

    def _validate(self) -> dict[str, float]:
        """Of the validation pairs of all processes: `accuracy`, and with several labels `map`; the standard error of
        the number that chooses the epoch (`error`), by clips, since pairs of one clip depend on one another; and the
        most that always predicting the most frequent label may reach (`chance`)."""
        val, team = self.loaders["val"], self.team
        told = predict(self.model, val.in_order(team.rank, team.ranks), self.normalise,
                       background=self.index["background"])
        classes = len(self.index["classes"])
        counts = torch.zeros(classes + 1, device=self.device)  # each class, background
        right = torch.zeros(2, val.pairs, dtype=torch.int64, device=self.device)  # whether it is right, its clip
        said = torch.zeros(2, val.pairs, classes, device=self.device) if self.multilabel else None  # labels, scores
        for row, prediction in enumerate(told, val.pairs * team.rank // team.ranks):
            self.kept.look_up()
            right[:, row] = torch.tensor([prediction.right, crc32(prediction.key.encode())])
            for label in prediction.labels:
                counts[label] += 1
            if self.multilabel:
                said[0, row, list(prediction.labels)] = 1
                said[1, row] = torch.from_numpy(prediction.classes)
        right, clips = team.sum(right).cpu().numpy()
        share = team.sum(counts).max().item() / max(val.pairs, 1)
        found = {"accuracy": right.mean().item() if len(right) else 0.0,
                 "chance": share + 2 * (share * (1 - share) / max(val.pairs, 1)) ** 0.5}
        if not self.multilabel:
            return found | {"error": standard_error(right, clips)}
        labels, scores = team.sum(said).cpu().numpy()
        return found | {"map": mean_average_precision(labels, scores), "error": bootstrap_error(labels, scores, clips)}

    def _choose(self, found: dict[str, float]) -> None:
        """Hold on to the epoch unless an earlier one was better by more than its standard error, which is as much as
        validation can tell (Breiman et al. 1984, section 3.4.3): of epochs that look alike the last one has learned at
        the lowest rate. By the mean average precision where there is one."""
        reached = found.get("map", found["accuracy"])
        most, error = max((self.best.get("most", -1.0), self.best.get("error", 0.0)), (reached, found["error"]))
        if reached >= most - error:
            weights = {name: tensor.cpu().clone() for name, tensor in trained_weights(self.model).items()}
            projectors = {name: tensor.cpu().clone() for name, tensor in self.model.state_dict().items()
                          if under(name, self.model.training_only())}
            self.best = {**found, "epoch": self.epoch, "most": most, "error": error, "weights": weights,
                         "projectors": projectors}
        else:
            self.best |= {"most": most, "error": error}

    def _reached(self) -> dict[str, float]:
        """What the kept epoch reached on the validation split."""
        return {f"val_{key}": self.best[key] for key in ("accuracy", "map") if key in self.best}

    def _warn(self, accuracy: float, chance: float) -> None:
        """Say once, after a third of the epochs, when nothing was learned that holds for other pairs."""
        if self.epoch == -(-self.epochs // 3) < self.epochs and self.best["accuracy"] <= chance:
            rates = "".join(f" or {self.name}.{part}_rate" for part in self.model.parts())
            print(f"{self.name}: after {self.epoch} of {self.epochs} epochs {self.best['accuracy']:.3f} of the "
                  f"validation pairs are right, which luck gives as well (up to {chance:.3f}); of the training pairs "
                  f"{accuracy:.3f}. Try a third of train.learning_rate ({self.params.train.learning_rate}){rates}, "
                  f"more epochs than {self.epochs} (train.epochs), or listen to some clips: may the label be heard or "
                  "seen in them?")

    def timing(self) -> dict:
        """How long this training took: a file of its own, which no stage depends on, so that the same seed makes the
        same outputs."""
        return {"seconds_per_epoch": round(statistics.median(self.took), 2) if self.took else None,
                "epochs_measured": len(self.took), "machine": machine()}

    def config(self) -> dict:
        """config.json: all that is needed to load the model and to know where it comes from."""
        kept = train_only(self.model, self.model.trained())
        return {
            "model": self.name,
            "settings": self.settings,
            "tokens": self.params.tokens,
            "backbone": self.params.backbone,
            "backbone_sha256": read_origin(self.params.backbone)["sha256"],
            "image_size": self.params.image_size,
            "normaliser": asdict(self.normalise),
            "dataset": self.index["dataset"],
            "classes": self.index["classes"],
            "background": self.index["background"],
            "multilabel": self.multilabel,
            "spectrogram": self.index["spectrogram"],
            "frame_size": self.index["frame_size"],
            "missing": self.index.get("missing", "reject"),
            "augment": self.params.augment[self.index["dataset"]],
            "augment_sound": asdict(self.params.augment_sound),
            "trainable": count(kept),
            "recipe": self.params.recipe,
            "train": asdict(self.params.train) | {"epochs": self.epochs},
            "seed": self.params.seed,
            "epoch": self.best["epoch"],
            **self._reached(),
            "retrieval": self.found if self.found["after"] else None,
            "blend": self.blended,
        }


def step_rows(log: list[list[float]], steps: int) -> list[dict]:
    """Rows of steps.csv: means over the samples since the row before, with the epoch as a number such as 1.25."""
    rows, before = [], None
    for epoch, step, samples, *sums, learning_rate in log:
        _, past, *past_sums = before if before and before[0] == epoch else (epoch, 0, *[0] * len(sums))
        means = [(new - old) / max(samples - past, 1) for new, old in zip(sums, past_sums, strict=True)]
        rows.append({"epoch": f"{epoch - 1 + step / steps:.4f}",
                     **{name: f"{mean:.5g}" for name, mean in zip(SUMS, means, strict=True)},
                     "learning_rate": f"{learning_rate:.4g}"})
        before = epoch, samples, *sums
    return rows


def _right(predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many predictions (B,) are the label, or one of several."""
    return (predicted == labels).sum() if labels.dim() == 1 else labels.gather(1, predicted[:, None]).sum()


def _groups(model: torch.nn.Module, own: object, rate: float) -> list[dict]:
    """What is trained, with its learning rate: a part has a share of the common one where the model's settings `own`
    say so."""
    shares = {owner: getattr(own, f"{part}_rate") for part, owners in model.parts().items() for owner in owners}
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = next((share for owner, share in shares.items() if under(name, [owner])), 1.0)
            groups.setdefault(share, []).append(parameter)
    return [{"params": parameters, "lr": rate * share} for share, parameters in groups.items()]


def _schedule(optimizer: torch.optim.Optimizer, train: Train, epochs: int, steps: int
              ) -> torch.optim.lr_scheduler.LRScheduler:
    """How the rates rise to their peaks in the share `warmup` of all steps, and fall again."""
    total = epochs * steps + 1
    rising = train.warmup * total if train.warmup * total > 1 else 0.0
    if train.schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=total, pct_start=rising / total)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(rising, 1), 1) * 0.1 ** (step // (train.step_epochs * steps)))


def _log(live: Live, scores: dict[str, float]) -> None:
    for name, score in scores.items():
        live.log_metric(name, score)
    live.next_step()


if __name__ == "__main__":
    sys.exit(run(main))
