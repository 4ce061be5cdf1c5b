from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from cbam.train.checkpoint import load_state, save_state


@pytest.fixture
def model():
    return nn.Linear(3, 2)


def test_round_trip_without_pickle(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"epochs_done": 2, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": None}
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt", model.state_dict())
    assert loaded is not None
    assert loaded["epochs_done"] == 2
    assert torch.equal(loaded["model"]["weight"], model.weight)
    momentum = loaded["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"])


def test_no_file_is_no_state_and_no_warning(tmp_path, model, caplog):
    assert load_state(tmp_path / "state.pt", model.state_dict()) is None
    assert not caplog.records


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-200])


def _empty(file):
    file.write_bytes(b"")


def _text(file):
    file.write_text("not a checkpoint")


class _Bomb:
    """Unpickled without care, it makes a file where the test looks for one."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


def _pickle_bomb(file):
    state = torch.load(file, weights_only=True)
    torch.save({**state, "bomb": _Bomb(file.parent / "exploded")}, file)


def _other_format(file):
    torch.save({**torch.load(file, weights_only=True), "format": 99}, file)


def _not_a_dict(file):
    torch.save([1, 2], file)


def _other_model(file):
    save_state(file, {"model": nn.Linear(4, 2).state_dict()})


@pytest.mark.parametrize(
    "damage", [_truncate, _empty, _text, _pickle_bomb, _other_format, _not_a_dict, _other_model]
)
def test_a_file_that_does_not_fit_is_told_and_not_used(tmp_path, model, caplog, damage):
    file = tmp_path / "state.pt"
    save_state(file, {"model": model.state_dict()})
    damage(file)
    with caplog.at_level(logging.WARNING, "cbam"):
        assert load_state(file, model.state_dict()) is None
    assert "starts again from its first epoch" in caplog.text
    assert "state.pt" in caplog.text
    assert not (tmp_path / "exploded").exists()
