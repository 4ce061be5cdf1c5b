from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_fscore_support

from cbam.evaluate.labels import label_scores


def area(said, true):
    """Average precision written out: the precision at each image that has the label, in the order of probability."""
    order = said.argsort(descending=True)
    hits = true[order].cumsum(0)
    places = torch.arange(1, len(said) + 1)
    return float((hits / places)[true[order] == 1].mean())


def test_average_precision_is_its_definition():
    generator = torch.Generator().manual_seed(3)
    said = torch.rand(60, 4, generator=generator, dtype=torch.float64)
    true = (torch.rand(60, 4, generator=generator) < 0.3).int()
    scores = label_scores(said, true)
    for label, found in enumerate(scores.average_precision):
        assert found == pytest.approx(area(said[:, label], true[:, label]))
    assert scores.mean_ap == pytest.approx(sum(scores.average_precision) / 4)
    assert scores.images == tuple(true.sum(0).tolist())


def test_a_threshold_of_one_half():
    scores = label_scores(
        torch.tensor([[0.5, 0.1], [0.4, 0.9], [0.8, 0.2]]), torch.tensor([[1, 0], [1, 1], [0, 0]])
    )
    assert scores.recall == (0.5, 1.0)
    assert scores.precision == (0.5, 1.0)
    assert scores.exact == pytest.approx(1 / 3)
    assert scores.macro_f1 == pytest.approx(0.75)


def test_a_label_without_images_counts_in_no_mean():
    scores = label_scores(torch.tensor([[0.9, 0.9], [0.2, 0.1]]), torch.tensor([[1, 0], [0, 0]]))
    assert scores.average_precision == (1.0, None)
    assert (scores.mean_ap, scores.macro_f1) == (1.0, 1.0)


def test_the_scores_of_each_label_and_of_all_together_are_scikit_learn_s():
    generator = torch.Generator().manual_seed(5)
    said = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    true = (torch.rand(40, 3, generator=generator) < 0.4).int()
    scores, found = label_scores(said, true), (said >= 0.5).int()
    precision, recall, f1, images = precision_recall_fscore_support(true, found)
    assert scores.precision == pytest.approx(tuple(precision))
    assert scores.recall == pytest.approx(tuple(recall))
    assert scores.f1 == pytest.approx(tuple(f1))
    assert scores.images == tuple(images)
    assert scores.predicted == tuple(found.sum(0).tolist())
    assert scores.micro_f1 == pytest.approx(f1_score(true, found, average="micro"))
    assert scores.micro_f1 != pytest.approx(scores.macro_f1)


def test_a_single_label_has_one_row():
    """scikit-learn takes a table with one column for two classes."""
    scores = label_scores(torch.tensor([[0.9], [0.2], [0.7], [0.1]]), torch.tensor([[1], [0], [0], [1]]))
    assert (scores.images, scores.predicted) == ((2,), (2,))
    assert (scores.precision, scores.recall, scores.f1) == ((0.5,), (0.5,), (0.5,))
    assert scores.micro_f1 == 0.5
