from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from cbam.errors import CBAMError
from cbam.train.checkpoints import Checkpoints
from cbam.train.state import Position, as_files, restore


def a_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2))


def trained(optimizer_class=torch.optim.AdamW):
    model = a_model()
    model(torch.rand(2, 3, 5, 5))
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    model(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


def fresh(optimizer_class=torch.optim.AdamW):
    model = a_model()
    model(torch.zeros(2, 3, 5, 5))
    return model, optimizer_class(model.parameters(), lr=0.3)


def written(path, *state, step=1):
    return Checkpoints(path).write(step, as_files(*state))


def test_round_trip(tmp_path):
    model, optimizer = trained()
    position = Position(epoch=2, step=5, loss_sum=1 / 3, correct=4, seen=9, best_epoch=1, best_accuracy=0.5)
    folder = written(tmp_path, position, model, optimizer, None, None)
    other, its = fresh()
    assert restore(folder, other, its, None, None) == position
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    ours, theirs = optimizer.state_dict(), its.state_dict()
    assert theirs["param_groups"] == ours["param_groups"]
    for index, moments in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][index][name]) for name, value in moments.items())


def test_a_checkpoint_that_says_hits(tmp_path):
    """As those of the first alpha do."""
    model, optimizer = trained()
    files = as_files(Position(epoch=2, step=5, correct=4, seen=9), model, optimizer, None, None)
    state = torch.load(io.BytesIO(files["training.pt"]), weights_only=True)
    state["position"]["hits"] = state["position"].pop("correct")
    torch.save(state, buffer := io.BytesIO())
    folder = Checkpoints(tmp_path).write(1, {**files, "training.pt": buffer.getvalue()})
    assert restore(folder, *fresh(), None, None) == Position(epoch=2, step=5, correct=4, seen=9)


def test_a_module_that_is_used_twice(tmp_path):
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder = written(tmp_path, Position(), model, optimizer, None, None)
    layer.weight.data.zero_()
    restore(folder, model, optimizer, None, None)
    assert layer.weight.abs().sum() > 0


class Bomb:
    """Unpickled without care, it makes a file where the test looks for one."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


def test_nothing_is_executed(tmp_path):
    model, optimizer = trained()
    folder = written(tmp_path, Position(), model, optimizer, None, None)
    torch.save({"format": 2, "position": Bomb(tmp_path / "exploded")}, folder / "training.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        restore(folder, *fresh(), None, None)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: (nn.Linear(3, 2), torch.optim.AdamW(nn.Linear(3, 2).parameters())), "other names or shapes"),
        (lambda: (fresh()[0], torch.optim.AdamW(nn.Linear(3, 2).parameters())), "does not fit"),
    ],
    ids=["model", "optimizer"],
)
def test_another_training_is_refused(tmp_path, other, message):
    folder = written(tmp_path, Position(), *trained(), None, None)
    with pytest.raises(CBAMError, match=message):
        restore(folder, *other(), None, None)


def test_an_average_that_is_missing(tmp_path):
    folder = written(tmp_path, Position(), *trained(), None, None)
    model, optimizer = fresh()
    with pytest.raises(CBAMError, match=r"no ema\.safetensors"):
        restore(folder, model, optimizer, fresh()[0], None)
