import pytest
import torch
import torch.nn.functional as F

from maavt.models.maavt import MAAVT, MaavtConfig
from maavt.shards.loader import Batch
from maavt.training.blend import blend, fitted
from maavt.training.runtime import Normaliser
from tests.models.reference import layer_scale_vit

CLASSES, PAIRS = 4, 200
TRUTH = torch.arange(PAIRS) % CLASSES
KNOWS = 3 * F.one_hot(TRUTH, CLASSES) + torch.randn(PAIRS, CLASSES, generator=torch.Generator().manual_seed(0))
SHOUTS = 9 * torch.randn(PAIRS, CLASSES, generator=torch.Generator().manual_seed(1))


def right(said: torch.Tensor, weights=(1.0, 1.0)) -> float:
    return (sum(w * part for w, part in zip(weights, said, strict=True)).argmax(1) == TRUTH).float().mean().item()


@pytest.mark.parametrize("several", [False, True])
def test_a_stream_that_is_sure_of_anything_counts_little_and_the_other_is_heard(several):
    said = torch.stack([SHOUTS, KNOWS])
    truth = F.one_hot(TRUTH, CLASSES).float() if several else TRUTH
    shouting, knowing = fitted(said, torch.zeros(CLASSES), truth)
    assert shouting < 0.1 < 0.4 < knowing
    assert right(said, (shouting, knowing)) > right(said) + 0.3
    turned = fitted(said.flip(0), torch.zeros(CLASSES), truth)
    assert turned == pytest.approx((knowing, shouting), abs=1e-3)


def test_a_part_that_is_at_chance_is_left_out_and_the_others_alone_are_heard():
    said = torch.stack([SHOUTS, KNOWS])
    weights = fitted(said, torch.zeros(CLASSES), TRUTH)
    assert 0 <= weights[0] < 0.04 and right(said, weights) == pytest.approx(right(said, (0, 1)), abs=0.02)
    against = torch.stack([-KNOWS, KNOWS])  # what speaks against the truth is no witness either
    assert fitted(against, torch.zeros(CLASSES), TRUTH)[0] < 1e-3


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("pairs", [4, PAIRS])
def test_the_weights_are_where_the_class_loss_and_the_squared_distance_from_one_together_are_least(several, pairs):
    said = torch.stack([KNOWS + SHOUTS / 9, KNOWS - SHOUTS / 9])[:, :pairs].double() / 2
    bias, truth = torch.linspace(-1, 1, CLASSES).double(), TRUTH[:pairs]

    def objective(weights: torch.Tensor) -> torch.Tensor:
        logits = torch.einsum("p,pnc->nc", weights, said) + bias
        right = F.one_hot(truth, CLASSES).bool()
        each = F.logsigmoid(torch.where(right, logits, -logits)) if several else logits.log_softmax(1)[right]
        return -each.sum() + (weights - 1).square().sum()

    found = fitted(said, bias, F.one_hot(truth, CLASSES).float() if several else truth)
    weights = torch.tensor(found, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objective(weights), weights)
    curve = torch.autograd.functional.hessian(objective, weights.detach())
    assert (weights > 0.01).all() and torch.linalg.solve(curve, slope).abs().max() < 2e-4  # the next Newton step


@pytest.mark.parametrize("pairs", [1, 8, PAIRS])
def test_pairs_that_are_all_right_do_not_carry_the_weights_off(pairs):
    sure = 8.0 * F.one_hot(TRUTH, CLASSES)
    assert all(1 <= weight < 1.5 for weight in fitted(torch.stack([sure, sure])[:, :pairs], torch.zeros(CLASSES),
                                                       TRUTH[:pairs]))


def batches(labels: torch.Tensor, absent: torch.Tensor | None = None) -> list[Batch]:
    drawn = torch.Generator().manual_seed(3)
    return [Batch(frames=torch.randint(256, (len(labels), 3, 32, 32), dtype=torch.uint8, generator=drawn),
                  spectrograms=torch.randn(len(labels), 32, 32, generator=drawn), labels=labels,
                  keys=["a"] * len(labels), seconds=[0.0] * len(labels), absent=absent)]


NORMALISE = Normaliser(image_size=32, image_mean=(0.5,) * 3, image_std=(0.5,) * 3, spectrogram_mean=0.0,
                       spectrogram_std=0.5)


@pytest.mark.parametrize("blocks, names", [
    (1, ["picture", "sound"]), (2, ["picture_early", "picture_last", "sound_early", "sound_last"])])
def test_the_head_says_afterwards_what_the_weighed_parts_say_and_nothing_else_of_the_model_changes(blocks, names):
    torch.manual_seed(0)
    model = MAAVT(layer_scale_vit(), MaavtConfig(classes=CLASSES, background=True, tokens=2, head_blocks=blocks)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = torch.tensor([0, 1, -1, 2, 3, 0])
    weights = blend(model, batches(labels), NORMALISE)
    assert list(weights) == names and 1 not in weights.values()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight"}
    width = model.backbone.embed_dim
    parts = before["head.weight"].split([2 * width, width] * 2 if blocks == 2 else width, 1)
    torch.testing.assert_close(model.head.weight.detach(), torch.cat([
        weight * part for weight, part in zip(weights.values(), parts, strict=True)], 1))


@pytest.mark.parametrize("knowing", [0, 1], ids=["picture", "sound"])
def test_the_stream_that_is_right_is_the_one_that_counts_more(knowing):
    torch.manual_seed(0)
    model = MAAVT(layer_scale_vit(), MaavtConfig(classes=CLASSES, background=False, tokens=2))
    (batch,) = batches(torch.zeros(64, dtype=torch.int64))
    with torch.no_grad():
        model.head.weight.mul_(20)
        said = model.train()(*NORMALISE(batch, torch.device("cpu"))[:2]).streams
        model.head.bias.sub_(sum(stream.mean(0) for stream in said))  # else it says almost the same of everything
        truth = (said[knowing] - said[knowing].mean(0)).argmax(1)
    weights = [*blend(model.eval(), batches(truth), NORMALISE).values()]
    assert len(truth.unique()) == CLASSES and weights[knowing] > 1 > weights[1 - knowing]


def test_background_and_pairs_that_lack_a_modality_have_no_say():
    def found(labels, absent=None):
        torch.manual_seed(0)
        model = MAAVT(layer_scale_vit(), MaavtConfig(classes=CLASSES, background=True, tokens=2)).eval()
        return blend(model, batches(torch.tensor(labels), absent), NORMALISE)

    whole = found([0, 1, 2, 3])
    lacking = torch.tensor([0, 0, 1, 2], dtype=torch.uint8)
    assert found([0, 1, -1, -1]) == found([0, 1, 2, 3], lacking) != whole
    assert found([-1, -1, -1, -1]) is None


def test_a_pair_of_which_no_number_is_said_has_no_say():
    torch.manual_seed(0)
    model = MAAVT(layer_scale_vit(), MaavtConfig(classes=CLASSES, background=False, tokens=2)).eval()
    (batch,) = batches(torch.arange(4))
    batch.spectrograms[0] = torch.nan
    weights = blend(model, [batch], NORMALISE)
    assert all(0 < weight < 2 for weight in weights.values())
    batch.spectrograms[:] = torch.nan
    assert blend(model, [batch], NORMALISE) is None


def test_no_pairs_at_all_weigh_nothing():
    model = MAAVT(layer_scale_vit(), MaavtConfig(classes=CLASSES, background=False, tokens=2)).eval()
    assert blend(model, [], NORMALISE) is None
