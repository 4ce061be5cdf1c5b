"""The search for a batch size; its steps on a GPU have not been run here."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cbam.cli.main import main
from cbam.cli.train import parse
from cbam.errors import CBAMError
from cbam.train.batch_size import AUTO, find_batch_size, found_before
from cbam.train.config import TrainConfig


class Roomy(nn.Module):
    """Takes so many images at a time, and says of more what torch says."""

    def __init__(self, room):
        super().__init__()
        self.room, self.fc = room, nn.Linear(1, 2)

    def forward(self, images):
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return self.fc(images.mean((1, 2, 3))[:, None])


def find(rooms, images=1000, **recipe):
    makes = [lambda room=room: Roomy(room) for room in rooms]
    return find_batch_size(
        makes, (1, 4, 4), images, TrainConfig(batch_size=AUTO, **recipe), Accelerator(cpu=True)
    )


def test_the_largest_power_of_two_that_fits_every_network():
    assert find([10**6]) == 512, "no more than there are images"
    assert find([10**6], images=10**6) == 1024
    assert find([5, 9], images=16) == 4
    assert find([5], images=16, accumulate=4) == 16
    with pytest.raises(CBAMError, match="not even one image fits"):
        find([0], images=2)


def test_other_errors_are_not_taken_for_too_little_memory():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find_batch_size(
            [lambda: nn.Linear(3, 2)], (1, 4, 4), 9, TrainConfig(batch_size=AUTO), Accelerator(cpu=True)
        )


def test_auto_is_read_and_a_run_goes_on_with_what_it_found():
    recipe = parse(["--data", "digits", "--batch-size", "auto"]).train
    assert recipe.batch_size == AUTO
    assert found_before(recipe, {"batch_size": 96}).batch_size == 96
    assert found_before(recipe, None).batch_size == AUTO
    assert found_before(TrainConfig(batch_size=32), {"batch_size": 96}).batch_size == 32
    with pytest.raises(CBAMError, match="--batch-size must be at least 1, given -1"):
        TrainConfig(batch_size=-1)


def test_a_training_uses_what_was_found_and_goes_on_with_it(tmp_path, capsys, monkeypatch):
    """From the command to the settings of the run, on a device that has room for 20 images at a time."""
    forward = nn.Conv2d.forward

    def limited(self, images):
        if self.training and len(images) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return forward(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", limited)
    monkeypatch.setattr("cbam.train.job.check_automatic", lambda accelerator: None)
    images = ["--data", "digits", "--limit-train", "70", "--limit-val", "20", "--device", "cpu"]
    options = [
        *images,
        "--batch-size",
        "auto",
        "--epochs",
        "1",
        "--attention",
        "none",
        "--output",
        str(tmp_path),
    ]
    assert main(["train", *options]) == 0
    assert "batch size 16: what fits into the GPU's memory" in capsys.readouterr().err
    assert "batch_size: 16\n" in (tmp_path / "config.yaml").read_text()
    result = (tmp_path / "result.json").read_bytes()
    assert main(["train", *options]) == 0
    assert "what fits" not in capsys.readouterr().err, "it is not looked for again"
    assert (tmp_path / "result.json").read_bytes() == result


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    options = ["--data", "digits", "--device", "cpu", "--batch-size", "auto", "--output", str(tmp_path / "x")]
    assert main(["train", *options]) == 2
    assert "this run computes on cpu. Type a number, e.g. --batch-size 128" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
