"""Confusion counts against scikit-learn, and what bad input says."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import confusion_matrix as reference

from cbam.errors import CBAMError
from cbam.evaluate import confusion_matrix


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
