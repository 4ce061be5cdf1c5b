"""Counts, scores and calibration against scikit-learn or by hand, and what bad input says."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix as reference

from cbam.errors import CBAMError
from cbam.evaluate import confusion_matrix
from cbam.evaluate.metrics import BINS, calibration, class_scores, confused_pairs


def test_counts_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 7, (500,), generator=generator)
    predictions = torch.where(
        torch.rand(500, generator=generator) < 0.6, labels, torch.randint(0, 7, (500,), generator=generator)
    )
    found = confusion_matrix(predictions, labels, 7)
    assert found.tolist() == reference(labels, predictions, labels=range(7)).tolist()


def test_a_class_without_images():
    confusion = confusion_matrix(torch.tensor([2, 0]), torch.tensor([0, 0]), 3)
    assert confusion.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_no_images_at_all():
    none = torch.tensor([], dtype=torch.long)
    assert confusion_matrix(none, none, 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("predictions", "labels", "n", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2).long(), 3, r"logits\.argmax"),
        (torch.zeros(2), torch.zeros(2).long(), 3, r"integer predictions, given torch\.float32"),
        (torch.tensor([0, 3]), torch.tensor([0, 1]), 3, r"predictions must lie in 0\.\.2 .* given 0\.\.3"),
        (torch.tensor([0, 1]), torch.tensor([-1, 1]), 3, r"labels must lie in 0\.\.2 .* given -1\.\.1"),
        (torch.tensor([0]), torch.tensor([0]), 0, "at least one class"),
    ],
)
def test_bad_input_is_explained(predictions, labels, n, message):
    with pytest.raises(CBAMError, match=message):
        confusion_matrix(predictions, labels, n)


@pytest.fixture(scope="module")
def answers():
    """Labels and predictions of seven classes; class 5 has no image and is predicted, class 6 neither."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 5, (400,), generator=generator)
    guesses = torch.randint(0, 6, (400,), generator=generator)
    return labels, torch.where(torch.rand(400, generator=generator) < 0.6, labels, guesses)


class TestClassScores:
    def test_every_score_by_its_definition(self, answers):
        labels, predicted = answers
        scores = class_scores(confusion_matrix(predicted, labels, 7))
        for k in range(5):
            hits = int(((labels == k) & (predicted == k)).sum())
            precision, recall = hits / int((predicted == k).sum()), hits / int((labels == k).sum())
            assert scores.precision[k] == pytest.approx(precision)
            assert scores.recall[k] == pytest.approx(recall)
            assert scores.f1[k] == pytest.approx(2 * precision * recall / (precision + recall))
        assert (scores.precision[5], scores.recall[5], scores.f1[5]) == (0, None, 0)
        assert (scores.precision[6], scores.recall[6], scores.f1[6]) == (None, None, None)
        assert scores.images[5:] == (0, 0)
        assert scores.predicted[5] == int((predicted == 5).sum()) > 0

    @pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
    def test_means_are_scikit_learn_s(self, answers):
        labels, predicted = answers
        scores = class_scores(confusion_matrix(predicted, labels, 7))
        assert scores.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
        expected = sk.f1_score(labels, predicted, labels=range(5), average="macro")
        assert scores.macro_f1 == pytest.approx(expected)

    def test_a_class_that_is_never_predicted(self):
        scores = class_scores(torch.tensor([[4, 0], [2, 0]]))
        assert scores.precision == (pytest.approx(2 / 3), None)
        assert scores.recall == (1.0, 0.0)
        assert scores.f1 == (pytest.approx(0.8), 0.0)
        assert scores.macro_f1 == pytest.approx(0.4), "a class that is never found counts as 0"


class TestCalibration:
    def test_against_scikit_learn_s_curve(self):
        generator = torch.Generator().manual_seed(7)
        confidence = torch.rand(1000, generator=generator)
        correct = torch.rand(1000, generator=generator) < confidence**2
        found = calibration(confidence, correct)
        accuracy, sure = calibration_curve(correct.numpy(), confidence.double().numpy(), n_bins=BINS)
        assert [each.accuracy for each in found.bins] == pytest.approx(accuracy.tolist())
        assert [each.confidence for each in found.bins] == pytest.approx(sure.tolist())
        by_hand = 0.0
        for low in range(BINS):
            inside = (confidence > low / BINS) & (confidence <= (low + 1) / BINS)
            gap = (confidence[inside].double().mean() - correct[inside].double().mean()).abs()
            by_hand += float(inside.sum() / 1000 * gap)
        assert found.ece == pytest.approx(by_hand)
        assert sum(each.images for each in found.bins) == 1000

    def test_one_that_is_always_sure_and_half_right(self):
        found = calibration(torch.ones(4), torch.tensor([True, True, False, False]))
        assert found.ece == 0.5
        assert [(each.low, each.high, each.images) for each in found.bins] == [(pytest.approx(14 / 15), 1, 4)]

    def test_probabilities_that_are_not_finite(self):
        assert calibration(torch.tensor([0.5, float("nan")]), torch.tensor([True, True])) is None


def test_pairs_in_order():
    confusion = torch.tensor([[10, 3, 3], [3, 0, 0], [0, 1, 99]])
    found = [(pair.true, pair.predicted, pair.images, pair.share) for pair in confused_pairs(confusion, 3)]
    assert found == [(1, 0, 3, 1.0), (0, 1, 3, 3 / 16), (0, 2, 3, 3 / 16)]
    assert confused_pairs(torch.eye(3).long(), 5) == []
    many = confused_pairs(torch.ones(1000, 1000).long(), 4)
    assert [(pair.true, pair.predicted) for pair in many] == [(0, 1), (0, 2), (0, 3), (0, 4)]
