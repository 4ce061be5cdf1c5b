from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cbam.data import load_data, make_loader
from cbam.models import build_model
from cbam.train.config import TrainConfig
from cbam.train.device import make_accelerator
from cbam.train.evaluation import Evaluation, evaluate


@pytest.mark.parametrize("batch_size", [7, 50, 500])
def test_counts_every_image_once_whatever_the_batch(batch_size):
    data = load_data("digits", limit_val=50)
    torch.manual_seed(0)
    model = build_model("resnet20", 10, in_channels=1).train()
    accelerator = make_accelerator(TrainConfig(device="cpu"))
    loader = accelerator.prepare(make_loader(data.val, batch_size=batch_size, seed=0, shuffle=False))
    scores = evaluate(model, loader, accelerator)
    assert model.training, "the mode is given back"
    images, labels = zip(*(data.val[0, index] for index in range(50)), strict=True)
    with torch.no_grad():
        logits = model.eval()(torch.stack(images))
    expected = torch.zeros(10, 10, dtype=torch.int64)
    for label, answer in zip(labels, logits.argmax(1).tolist(), strict=True):
        expected[label, answer] += 1
    assert torch.equal(scores.confusion, expected)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, torch.tensor(labels)).item(), rel=1e-5)
    assert scores.top5 == (logits.topk(5).indices == torch.tensor(labels)[:, None]).any(1).sum()
    said = scores.predictions
    assert said.labels.tolist() == list(labels)
    assert said.predicted.tolist() == logits.argmax(1).tolist()
    assert torch.allclose(said.confidence, logits.softmax(1).amax(1), atol=1e-5)
    assert torch.allclose(said.of_label, logits.softmax(1)[range(50), list(labels)], atol=1e-5)


def test_accuracies_by_hand():
    scores = Evaluation(0.0, torch.tensor([[1, 3], [0, 4]]), 8)
    assert scores.accuracy == 5 / 8
    assert scores.per_class_accuracy == [0.25, 1.0]
