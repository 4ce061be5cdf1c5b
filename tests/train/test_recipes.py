"""Recipes beside the plain one: early stopping, unequal classes, a frozen backbone, several labels; all resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from cbam.data import load_data
from cbam.nn import CBAM
from cbam.train.classification import Classification
from cbam.train.config import TrainConfig
from cbam.train.seeding import forked_rng
from cbam.train.task import Batch
from tests.data.pictures_on_disk import photo_folder
from tests.train.test_loop import Killed, _new_process, data, same, train

__all__ = ["_new_process", "data"]  # fixtures


def tiny():
    with forked_rng(0):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            CBAM(8, 2),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(8 * 36, 10),
        )


RECIPES = {
    "patience": ({"epochs": 9, "lr": 1e-9}, {"patience": 2}),
    "balanced": ({"sampler": "balanced", "epochs": 2}, {}),
    "weights": ({"class_weights": "balanced", "epochs": 2}, {}),
    "frozen": ({"freeze_backbone": 2, "epochs": 3, "optimizer": "adamw"}, {}),
}


@pytest.mark.parametrize(
    ("name", "kill_at"),
    [("patience", (2, 0)), ("balanced", (1, 1)), ("weights", (1, 1)), ("frozen", (1, 1)), ("frozen", (2, 1))],
)
def test_goes_on_bit_for_bit_with_every_recipe(data, tmp_path, name, kill_at):
    recipe, how = RECIPES[name]
    config = TrainConfig(**recipe, batch_size=50, device="cpu")
    straight_rows, rows = [], []
    straight = train(data, tmp_path / "straight", config, model=tiny(), rows=straight_rows, **how)
    with pytest.raises(Killed):
        train(
            data, tmp_path / "killed", config, model=tiny(), kill_at=kill_at, save_every=1, rows=rows, **how
        )
    torch.rand(17)
    resumed = train(data, tmp_path / "killed", config, model=tiny(), rows=rows, **how)
    assert same(straight.model, resumed.model)
    assert resumed.epochs == straight.epochs
    for column in ("epoch", "train_loss", "val_loss"):
        assert [row[column] for row in rows] == [row[column] for row in straight_rows]


def test_it_stops_after_so_many_epochs_without_a_better_score(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Classification, "score", _scores([0.5, 0.6, 0.6, 0.55, 0.7]))
    rows = []
    config = TrainConfig(epochs=9, batch_size=200, device="cpu", lr=1e-9)
    assert train(data, tmp_path, config, model=tiny(), rows=rows, patience=2).epochs == 4
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    again = train(data, tmp_path, config, model=tiny(), rows=rows, patience=2)
    assert (again.epochs, len(rows)) == (4, 4), "killed before its result was written, it is still over"


def _scores(values):
    """Scores by epoch, however often one is asked for."""
    seen = []

    def score(self, evaluation):
        if not seen or seen[-1] is not evaluation:
            seen.append(evaluation)
        return values[len(seen) - 1]

    return score


def test_weights_count_images_of_small_classes_more(tmp_path):
    uneven = load_data("digits", limit_train=200, limit_val=20)
    kept = [index for index, label in enumerate(uneven.train.labels) if label != 3 or index % 5 == 0]
    uneven = replace(uneven, train=uneven.train.subset(kept))
    task = Classification(TrainConfig(class_weights="balanced", device="cpu"), uneven)
    counts = torch.tensor(uneven.train.labels).bincount()
    images, labels = torch.zeros(len(kept), 1), torch.tensor(uneven.train.labels)
    net = nn.Linear(1, 10)
    per_image = nn.functional.cross_entropy(net(images), labels, reduction="none")
    weights = len(kept) / (10 * counts[labels])
    loss, _ = task.loss(net, Batch(images, labels, labels))
    torch.testing.assert_close(loss, (weights * per_image).mean())
    parts = [(images[at], labels[at]) for at in (slice(0, 90), slice(90, None))]
    halves = [task.loss(net, Batch(part, of, of))[0] for part, of in parts]
    torch.testing.assert_close(loss, (90 * halves[0] + (len(kept) - 90) * halves[1]) / len(kept))


def test_a_frozen_backbone_keeps_its_weights_and_statistics(data, tmp_path):
    def after(epochs, frozen):
        model = tiny()
        config = TrainConfig(epochs=epochs, batch_size=50, device="cpu", freeze_backbone=frozen)
        train(data, tmp_path / f"{epochs}-{frozen}", config, model=model)
        assert all(weight.requires_grad for weight in model.parameters())
        return model.state_dict()

    start, frozen, free = tiny().state_dict(), after(2, 2), after(2, 1)
    backbone = [name for name in start if name.startswith(("0.", "1."))]
    assert all(torch.equal(frozen[name], start[name]) for name in backbone)
    moved = [name for name in start if name not in backbone and start[name].is_floating_point()]
    assert not any(torch.equal(frozen[name], start[name]) for name in moved if start[name].ndim > 1)
    assert not any(torch.equal(free[name], start[name]) for name in ("0.weight", "1.running_mean"))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Photographs with labels that colours and brightness tell."""
    root = photo_folder(tmp_path_factory.mktemp("photos"), 12)
    lines = [
        f"{path.relative_to(root)},{path.parent.name}{';round' if path.parent.name != 'rocket' else ''}"
        for path in sorted(root.glob("*/*.jpg"))
    ]
    (root / "labels.csv").write_text("\n".join(["file,labels", *lines]))
    return load_data(root, labels=root / "labels.csv", image_size=8)


def small(outputs):
    with forked_rng(0):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, outputs)
        )


def test_several_labels_are_learned_and_go_on_bit_for_bit(several, tmp_path):
    config = TrainConfig(
        epochs=4, batch_size=8, device="cpu", lr=0.05, ema=0.9, class_weights="balanced", accumulate=2
    )
    straight_rows, rows = [], []
    straight = train(several, tmp_path / "a", config, model=small(4), rows=straight_rows)
    assert straight.evaluation.scores.mean_ap > 0.75
    assert straight_rows[-1]["train_loss"] < straight_rows[0]["train_loss"]
    with pytest.raises(Killed):
        train(several, tmp_path / "b", config, model=small(4), kill_at=(2, 1), save_every=1, rows=rows)
    resumed = train(several, tmp_path / "b", config, model=small(4), rows=rows)
    assert same(straight.model, resumed.model)
    for name in ("train_loss", "train_exact", "val_loss", "val_map", "val_map_ema"):
        assert [row[name] for row in rows] == [row[name] for row in straight_rows]
