"""The task of several labels an image: its loss, and how a network is judged."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cbam.data import load_data, make_loader
from cbam.train.config import TrainConfig
from cbam.train.multilabel import MultiLabel, evaluate_labels
from cbam.train.task import Batch
from tests.data.pictures_on_disk import photo_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine photographs, in the table in another order than in the folder; all have the label `photo`."""
    root = photo_folder(tmp_path_factory.mktemp("photos"), 3)
    paths = sorted(root.glob("*/*.jpg"), reverse=True)
    lines = [f"{path.relative_to(root)},{path.parent.name};photo" for path in paths]
    (root / "tags.csv").write_text("\n".join(["file,tags", *lines]))
    return load_data(root, labels=root / "tags.csv", image_size=8, val_fraction=0.34)


def network(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, outputs))


def task(data, **recipe):
    return MultiLabel(TrainConfig(device="cpu", **recipe), data)


def batch(data):
    items = [data.train[0, index] for index in range(len(data.train))]
    images, targets = (torch.stack(column) for column in zip(*items, strict=True))
    return Batch(images, targets, targets)


def judged(model, data, batch_size=2):
    loader = make_loader(data.val, batch_size=batch_size, seed=0, shuffle=False)
    return evaluate_labels(model, loader, Accelerator(cpu=True))


def test_weights_make_both_sides_of_a_label_equal(data):
    """A label that every image has keeps the weight 1: with 0 it would never be learned."""
    part, net = batch(data), nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    having = part.targets.sum(0)
    assert having.tolist() == [2, 2, 6, 2]
    logits = net(part.images)
    balanced, _ = task(data, class_weights="balanced").loss(net, part)
    weights = torch.tensor([2.0, 2.0, 1.0, 2.0])
    yes, no = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
    torch.testing.assert_close(balanced, -(weights * part.targets * yes + (1 - part.targets) * no).mean())
    plain, _ = task(data).loss(net, part)
    torch.testing.assert_close(plain, -(part.targets * yes + (1 - part.targets) * no).mean())


def test_an_image_is_right_if_all_its_labels_are(data):
    part = batch(data)

    class Says(nn.Module):
        def forward(self, images):
            logits = 2 * part.targets - 1
            logits[0, 0] *= -1  # one label of one image
            return logits

    assert int(task(data).loss(Says(), part)[1]) == len(part) - 1


def test_parts_of_a_batch_hold_their_own_labels(data):
    whole = batch(data)
    parts = task(data, batch_size=6, accumulate=3).parts(whole, seed=0)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


@pytest.mark.parametrize("training", [True, False])
def test_every_image_is_judged_once_in_the_order_of_the_set(data, training):
    model = network().train(training)
    found = judged(model, data)
    assert model.training is training
    items = [data.val[0, index] for index in range(len(data.val))]
    images, truth = (torch.stack(column) for column in zip(*items, strict=True))
    with torch.no_grad():
        logits = model.eval()(images)
    assert torch.equal(found.truth, truth.double())
    torch.testing.assert_close(found.probabilities.float(), logits.sigmoid())
    assert found.loss == pytest.approx(float(nn.functional.binary_cross_entropy_with_logits(logits, truth)))
    assert found.scores.images == (1, 1, 3, 1)


def test_what_is_not_a_number_is_named_and_counts_as_not_found(data):
    model = network()
    with torch.no_grad():
        model[3].bias[0] = math.nan
    found = judged(model, data)
    assert "validation loss is nan" in task(data).problem(found)
    assert found.probabilities[:, 0].tolist() == [0, 0, 0]
    assert found.scores.predicted[0] == 0
    assert task(data).problem(judged(network(), data)) == ""


def test_the_row_of_an_epoch(data):
    one, averaged = judged(network(), data), judged(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), data)
    row = task(data).row(one, averaged)
    assert row == {
        "val_loss": one.loss, "val_map": one.scores.mean_ap, "val_f1": one.scores.macro_f1,
        "val_exact": one.scores.exact, "val_map_ema": averaged.scores.mean_ap,
    }  # fmt: skip
    assert "val_map_ema" not in task(data).row(one, None)
    assert task(data).score(one) == one.scores.mean_ap
    assert task(data).training_row(3, 6) == {"train_exact": 0.5}
    assert one.figures(averaged)["val_map_ema"] == averaged.scores.mean_ap
