import torch

from maavt.training.retrieval import recall


def test_recall_counts_the_rows_whose_own_is_among_the_nearest():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert [round(recall(similarity, k), 4) for k in (1, 2, 3)] == [0.3333, 0.6667, 1.0]


def test_projections_that_are_all_alike_find_nothing():
    assert recall(torch.ones(6, 6), 5) == 0.0
    assert recall(torch.full((6, 6), torch.nan), 5) == 0.0
