"""Stage train: shards and backbone -> data/models/MODEL, the best epoch on the validation split, and its curves.

A killed run goes on after its last whole epoch and ends with the same numbers. With MAAVT_PROCESSES several processes
train together, each on its share of every batch.
"""

import argparse
import math
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from dvclive import Live
from scmrepo.exceptions import SCMError
from timm.models.vision_transformer import VisionTransformer

from maavt.errors import UserError, run
from maavt.models import MODELS, create_model, model_settings
from maavt.models.backbone import load_backbone, read_origin
from maavt.models.vit import count, train_only
from maavt.params import Params, load_params
from maavt.progress import progress
from maavt.shards.loader import Loader
from maavt.shards.reader import Reader
from maavt.training.adapter import save_adapter, trained_weights
from maavt.training.losses import losses, mine_background, whole_batch
from maavt.training.processes import ALONE, Team, launch
from maavt.training.runtime import Normaliser, pick_device, place, predict
from maavt.work import atomic, project_root, publish, workspace


def main(arguments: list[str] | None = None) -> None:
    """Train one model and move what was trained into place."""
    parser = argparse.ArgumentParser("maavt train", description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="maavt")
    name = parser.parse_args(arguments).model
    params = load_params()
    if best := launch(fit, params.train.batch, name, params):
        print(f"{name}: {best['accuracy']:.3f} of the validation pairs right after epoch {best['epoch']}")


def fit(team: Team, name: str, params: Params) -> dict:
    """Train one model, alone or as one of several processes, of which the first alone writes; returns the number and
    the accuracy of its best epoch."""
    data = project_root() / "data"
    loaders = {split: Loader(Reader.of(params.dataset), split, batch=params.train.batch // team.ranks,
                             image_size=params.image_size, augment=params.augment[params.dataset])
               for split in ("train", "val")}
    relevant = [replace(params.train, epochs=params.epochs), getattr(params, name), params.backbone, params.tokens,
                params.image_size, params.seed]
    with ExitStack() as stack:
        folder = team.of_first(lambda: stack.enter_context(
            workspace(f"train-{name}", *relevant, read_origin(params.backbone), params.augment[params.dataset],
                      loaders["train"].index)))
        if team.first:
            for split, counts in loaders["train"].index["splits"].items():
                print(f"{split}: {counts['samples'] + counts['rejected']} clips seen, {counts['samples']} used, "
                      f"{counts['rejected']} rejected")
        training = Training(name, params, loaders, folder, data / "curves" / name, team)
        training.run()
        if team.first:
            save_adapter(folder / "model", training.best["weights"], training.config())
            publish(folder / "model", data / "models" / name)
        return {key: training.best.get(key) for key in ("epoch", "accuracy")}


class Training:
    """One model in training. `best` is its best epoch so far: number, accuracy and weights.

    Of several processes the first alone keeps `best`, `history`, curves and checkpoint, and prints; the `loaders` of
    each give it its share of a batch.
    """

    def __init__(self, name: str, params: Params, loaders: dict[str, Loader], folder: Path, curves: Path,
                 team: Team = ALONE):
        self.name, self.params, self.loaders, self.curves, self.team = name, params, loaders, curves, team
        self.checkpoint = folder / "checkpoint.pt"
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
        )
        self.settings = model_settings(name, params, classes=len(index["classes"]), background=index["background"])
        self.mining = 0.0 if index["background"] else getattr(getattr(params, name), "mining", 0.0)
        self.device = pick_device()
        self.model = place(create_model(name, backbone, self.settings), self.device)
        train_only(self.model, self.model.trained() + self.model.training_only())
        self.optimizer = torch.optim.AdamW(_groups(self.model, name, params),
                                           weight_decay=params.train.weight_decay, fused=True)
        self.parallel = team.parallel(self.model)
        self.steps = loaders["train"].steps(team.ranks)
        self.scheduler = _schedule(self.optimizer, params, self.steps)
        self.epoch, self.best, self.history = 0, {"accuracy": -1.0}, []

    def run(self) -> None:
        """All epochs, or those that a killed run left."""
        self._resume()
        with self._live() as live:
            for scores in self.history:
                _log(live, scores)
            while self.epoch < self.params.epochs:
                self.epoch += 1
                scores = self._train_epoch()
                scores["val/accuracy"] = self._validate()
                if self.team.first:
                    self._keep(scores)
                    _log(live, scores)

    def _live(self) -> Live | nullcontext:
        if not self.team.first:
            return nullcontext()
        try:
            return Live(str(self.curves), save_dvc_exp=False, dvcyaml=None, report=None)
        except SCMError as error:
            raise UserError(f"git: {error}; DVC needs a repository with a commit, make one here: git init && "
                            "git add . && git commit -m start") from None

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the training pairs; returns mean losses and the accuracy on them."""
        self.model.train()
        device, train, team, seed = self.device, self.params.train, self.team, self.params.seed
        generator = torch.Generator(device).manual_seed((seed * 100_003 + self.epoch) * team.ranks + team.rank)
        batches = self.loaders["train"].shuffled(seed=seed, epoch=self.epoch, held=train.shuffle, rank=team.rank,
                                                 ranks=team.ranks)
        sums, pairs, lone = torch.zeros(5, device=device), 0, torch.zeros((), device=device)
        label = f"{self.name} epoch {self.epoch}/{self.params.epochs}"
        total = self.steps * train.batch
        with progress(label=label, unit="pair", total=total, silent=not team.first) as bar:
            for step, batch in enumerate(batches, 1):
                frames, sound, labels = self.normalise(batch, device)
                if self.mining:
                    sound, labels, alone = mine_background(sound, labels, self.mining, generator)
                    lone += alone
                output, labels = whole_batch(self.parallel(frames, sound), labels, team.gather)
                parts = losses(output, labels)
                self.optimizer.zero_grad(set_to_none=True)
                parts.total.backward()
                self.optimizer.step()
                self.scheduler.step()
                pairs += len(labels)
                sums += torch.stack([*(part.detach() * len(labels) for part in
                                       (parts.total, parts.classes, parts.background, parts.contrastive)),
                                     (output.predicted() == labels).sum()])
                if team.first and (step % 10 == 0 or step == self.steps):  # reading waits for the device
                    bar.set_postfix(loss=f"{sums[0].item() / pairs:.3f}", accuracy=f"{sums[4].item() / pairs:.3f}",
                                    refresh=False)
                bar.update(len(labels))
        means = (sums / max(pairs, 1)).tolist()
        if not math.isfinite(means[0]):
            raise UserError(f"the loss of {self.name} is no longer finite in epoch {self.epoch}; lower "
                            f"train.learning_rate (it is {train.learning_rate})")
        lone = team.sum(lone).item()
        if lone and team.first:
            print(f"epoch {self.epoch}: {lone:.0f} pairs had no partner of another class in their batch and were not "
                  "made background")
        names = ("loss", "class_loss", "background_loss", "contrastive_loss", "accuracy")
        return {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}

    def _validate(self) -> float:
        """The strict accuracy over the validation pairs of all processes."""
        batches = self.loaders["val"].in_order(self.team.rank, self.team.ranks)
        told = predict(self.model, batches, self.normalise, background=self.index["background"])
        right = [prediction.predicted == prediction.label for prediction in told]
        right, pairs = self.team.sum(torch.tensor([sum(right), len(right)], device=self.device)).tolist()
        return right / max(pairs, 1)

    def _keep(self, scores: dict[str, float]) -> None:
        """Write the epoch down, so that a killed run goes on after it."""
        self.history.append(scores)
        if scores["val/accuracy"] > self.best["accuracy"]:
            weights = {name: tensor.cpu().clone() for name, tensor in trained_weights(self.model).items()}
            self.best = {"accuracy": scores["val/accuracy"], "epoch": self.epoch, "weights": weights}
        state = {
            "epoch": self.epoch, "best": self.best, "history": self.history,
            "weights": {name: tensor for name, tensor in self.model.state_dict().items()
                        if not name.startswith("backbone.")},
            "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
        }
        with atomic(self.checkpoint) as path:
            torch.save(state, path)

    def _resume(self) -> None:
        state = self.team.of_first(self._read_checkpoint)
        if state is None:
            return
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.team.first:
            self.best, self.history = state["best"], state["history"]
            print(f"{self.name}: goes on after epoch {self.epoch}")

    def _read_checkpoint(self) -> dict | None:
        if not self.checkpoint.exists():
            return None
        return torch.load(self.checkpoint, weights_only=True, map_location="cpu")  # best["weights"] stays there

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
            "spectrogram": self.index["spectrogram"],
            "frame_size": self.index["frame_size"],
            "augment": self.params.augment[self.index["dataset"]],
            "trainable": count(kept),
            "train": asdict(self.params.train) | {"epochs": self.params.epochs},
            "seed": self.params.seed,
            "epoch": self.best["epoch"],
            "val_accuracy": self.best["accuracy"],
        }


def _groups(model: torch.nn.Module, name: str, params: Params) -> list[dict]:
    """What is trained, with its learning rate: a tuned ViT (MBT) needs a smaller one than what begins anew."""
    rate = params.train.learning_rate
    own = rate * getattr(getattr(params, name), "encoder_rate", 1.0)
    tuned = [p for part in model.children() if isinstance(part, VisionTransformer) for p in part.parameters()]
    held = {id(parameter) for parameter in tuned}
    fresh = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
    tuned = [parameter for parameter in tuned if parameter.requires_grad]
    return [{"params": fresh, "lr": rate}] + ([{"params": tuned, "lr": own}] if tuned else [])


def _schedule(optimizer: torch.optim.Optimizer, params: Params, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    train = params.train
    if train.schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=params.epochs * steps + 1)
    return torch.optim.lr_scheduler.StepLR(optimizer, train.step_epochs * steps, gamma=0.1)


def _log(live: Live, scores: dict[str, float]) -> None:
    for name, score in scores.items():
        live.log_metric(name, score)
    live.next_step()


if __name__ == "__main__":
    sys.exit(run(main))
