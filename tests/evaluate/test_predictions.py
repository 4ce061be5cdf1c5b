"""What is kept of each image, and that a file gives it back."""

from __future__ import annotations

import pytest
import torch

from cbam.errors import CBAMError
from cbam.evaluate.predictions import Predictions

LOGITS = torch.tensor([[4.0, 0, 0], [0, 1, 0], [0, 0, 9], [0, 5, 0], [2, 0, 0]])
LABELS = torch.tensor([0, 2, 0, 1, 0])


def test_by_hand():
    said = Predictions.of(LOGITS, LABELS)
    assert said.predicted.tolist() == [0, 1, 2, 1, 0]
    assert said.correct.tolist() == [True, False, False, True, True]
    assert said.confidence[1].item() == pytest.approx(2.718282 / (2.718282 + 2))
    assert said.of_label[1].item() == pytest.approx(1 / (2.718282 + 2))
    assert torch.equal(said.of_label[said.correct], said.confidence[said.correct])
    assert said.surest_mistakes(5) == [2, 1], "right answers are none, the surest comes first"
    assert said.surest_mistakes(1) == [2]
    assert said.confusion(3).tolist() == [[2, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_a_file_gives_back_every_bit(tmp_path):
    said, file = Predictions.of(LOGITS, LABELS), tmp_path / "predictions.safetensors"
    said.write(file)
    found = Predictions.read(file)
    for name in ("labels", "predicted", "confidence", "of_label"):
        assert torch.equal(getattr(found, name), getattr(said, name)), name
    assert found.labels.dtype == torch.int64
    assert Predictions.read(tmp_path / "none") is None


def test_a_damaged_file_is_named(tmp_path):
    from cbam.checkpoints import tensors_file

    file = tmp_path / "predictions.safetensors"
    file.write_bytes(b"12345678{ no such thing")
    with pytest.raises(CBAMError, match=r"predictions\.safetensors is damaged"):
        Predictions.read(file)
    tensors_file.write(file, {"labels": torch.zeros(2).int()})
    with pytest.raises(CBAMError, match="it needs labels, predicted, confidence, of_label"):
        Predictions.read(file)
    Predictions.of(LOGITS, LABELS).write(file)
    tensors_file.write(file, {**tensors_file.read(file), "labels": torch.zeros(2).int()})
    with pytest.raises(CBAMError, match="of the same shape"):
        Predictions.read(file)
