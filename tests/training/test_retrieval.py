from types import SimpleNamespace

import pytest
import torch

from maavt.shards.loader import Batch
from maavt.training.retrieval import recall, retrieval
from maavt.training.runtime import Normaliser


def test_recall_counts_the_rows_whose_own_is_among_the_nearest():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert [round(recall(similarity, k), 4) for k in (1, 2, 3)] == [0.3333, 0.6667, 1.0]


def test_projections_that_are_all_alike_find_nothing():
    assert recall(torch.ones(6, 6), 5) == 0.0
    assert recall(torch.full((6, 6), torch.nan), 5) == 0.0


class Projecting(torch.nn.Module):
    """Its projections are rows of tables, of which the first pixel of a picture and the first number of a sound give
    the number."""

    visual_projectors = ("one",)

    def __init__(self, visual: torch.Tensor, audio: torch.Tensor):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))
        self.visual, self.audio = visual, audio

    def forward(self, frames, spectrograms):
        seen, heard = (side.flatten(1)[:, 0].round().long() for side in (frames, spectrograms))
        return SimpleNamespace(projections=[(self.visual[seen], self.audio[heard])])


NORMALISE = Normaliser(image_size=2, image_mean=(0.0,) * 3, image_std=(1 / 255,) * 3, spectrogram_mean=0.0,
                       spectrogram_std=0.5, frame_mean=(0.0,) * 3)


def batch(numbers: list[int], labels: list[int], absent: list[int] | None = None) -> Batch:
    values = torch.tensor(numbers)
    return Batch(values[:, None, None, None].expand(-1, 3, 2, 2).byte(), values[:, None, None].expand(-1, 2, 2).half(),
                 torch.tensor(labels), [str(number) for number in numbers], [0] * len(numbers),
                 absent=None if absent is None else torch.tensor(absent, dtype=torch.uint8))


def test_retrieval_is_the_mean_of_sound_to_picture_and_back():
    # The picture of 1 is nearer to the sound of 0 than the sound of 1 is; every sound finds its own picture.
    visual, audio = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [0, 0, 1]]), torch.eye(3)
    similarity = visual @ audio.T
    assert (recall(similarity, 1), recall(similarity.T, 1)) == (pytest.approx(2 / 3), 1)
    found = retrieval(Projecting(visual, audio), [batch([0, 1], [0, 0]), batch([2], [1])], NORMALISE)
    assert found == {"pairs": 3, "recall_1": [0.8333], "recall_5": [1]}


def test_retrieval_leaves_out_background_and_pairs_that_lack_a_modality():
    visual = audio = torch.eye(2)[[0, 1, 0, 0]]  # the last two are like the first
    both = [batch([0, 1, 2, 3], [0, 1, -1, 1], [0, 0, 0, 2])]
    assert retrieval(Projecting(visual, audio), both, NORMALISE) == {"pairs": 2, "recall_1": [1], "recall_5": [1]}
    everything = [batch([0, 1, 2, 3], [0, 1, 0, 1])]
    assert retrieval(Projecting(visual, audio), everything, NORMALISE)["recall_1"] == [0.25]


def test_retrieval_needs_two_pairs_and_projectors():
    model = Projecting(torch.eye(2), torch.eye(2))
    assert retrieval(model, [batch([0, 1], [0, -1])], NORMALISE) is None
    model.visual_projectors = ()
    assert retrieval(model, [batch([0, 1], [0, 1])], NORMALISE) is None
