"""The state dict in a file: entries, prefixes, folders, and what else scripts save beside it."""

import argparse
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cbam import CBAMError, load_weights
from cbam.checkpoints import pickled
from tests.checkpoints import networks
from tests.checkpoints.networks import image
from tests.checkpoints.test_loading import untouched_by


def test_entries():
    source = networks.plain(7)
    content = {"state_dict": networks.plain(8).state_dict(), "state_dict_ema": source.state_dict()}
    model = networks.plain(2)
    assert "also holds 'state_dict_ema'" in str(load_weights(model, content))
    load_weights(model, content, entry="state_dict_ema")
    assert torch.equal(model(image()), source(image()))
    with pytest.raises(CBAMError, match=r"unknown entry 'ema'.*Valid: 'state_dict', 'state_dict_ema'"):
        load_weights(model, content, entry="ema")
    with pytest.raises(CBAMError, match=r"model expects a torch\.nn\.Module, got dict"):
        load_weights({}, content)


BESIDE = {
    "options": argparse.Namespace(lr=0.1, output=Path("runs"), words=["a"]),
    "best": np.float64(0.5),
    "epoch": np.int64(3),
    "rng": np.random.get_state(),
    "weights of classes": np.ones(3),
}


@pytest.mark.parametrize("old", [False, True])
def test_what_scripts_save_beside_the_weights(tmp_path, monkeypatch, old):
    """timm's and torchvision's scripts save their options, and most others a score or a state of NumPy."""
    source, model = networks.plain(7), networks.plain(2)
    content = {**BESIDE, "network": source.state_dict()}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    called = []
    monkeypatch.setattr(argparse, "Namespace", called.append)
    report = load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model(image()), source(image()))
    assert "taken from the entry 'network'" in str(report)
    assert not called
    allowed = torch.serialization.get_safe_globals()
    assert not [entry for entry in allowed if isinstance(entry, tuple) and entry[1] in pickled.BESIDE]
    with pytest.raises(
        pickle.UnpicklingError, match=r"argparse\.Namespace"
    ):  # others' files are as they were
        torch.load(tmp_path / "w.pth", weights_only=True)
    torch.save({"fc.weight": np.ones(3)}, tmp_path / "w.pth")
    untouched_by(
        model, lambda: load_weights(model, tmp_path / "w.pth"), "no state dict of dense tensors; it holds"
    )


def test_two_entries_of_other_names(tmp_path):
    content = {
        "student": networks.plain(7).state_dict(),
        "teacher": networks.plain(8).state_dict(),
        "epoch": 3,
    }
    model = networks.plain(2)
    advice = re.escape("'student', 'teacher'. Pass one as entry=... (--entry)")
    untouched_by(model, lambda: load_weights(model, content), advice)
    load_weights(model, content, entry="teacher")
    assert torch.equal(model(image()), networks.plain(8)(image()))


def test_an_average_of_torch():
    source, model = networks.plain(7), networks.plain(2)
    assert load_weights(model, AveragedModel(source).state_dict()).complete
    assert torch.equal(model(image()), source(image()))
    another = AveragedModel(model)
    assert load_weights(another, AveragedModel(networks.plain(8)).state_dict()).complete
    assert torch.equal(another(image()), networks.plain(8)(image()))


def test_folders(tmp_path):
    """Of a run its best weights; of others the error names what is there."""
    source, model = networks.plain(7), networks.plain(2)
    for name in ("best", "final", "cells/cbam-seed0"):
        (tmp_path / name).mkdir(parents=True)
        save_file(
            networks.plain(7 if name == "best" else 8).state_dict(), tmp_path / name / "model.safetensors"
        )
    load_weights(model, tmp_path)
    assert torch.equal(model(image()), source(image()))
    for name in ("best", "final"):
        (tmp_path / name / "model.safetensors").unlink()
    untouched_by(model, lambda: load_weights(model, tmp_path), r"cells/cbam-seed0/model\.safetensors'?\?")
    (tmp_path / "best" / "net.pth").touch()
    untouched_by(model, lambda: load_weights(model, tmp_path / "best"), r"best/net\.pth'?\?")


def test_a_prefix_is_dropped_only_where_that_helps():
    source = networks.plain(7)
    model = networks.plain(2)
    load_weights(model, {f"model.{k}": v for k, v in source.state_dict().items()})
    assert torch.equal(model(image()), source(image()))
    outer = nn.ModuleDict({"model": networks.plain(2)})
    load_weights(outer, {f"model.{k}": v for k, v in source.state_dict().items()})
    assert torch.equal(outer["model"](image()), source(image()))


def test_a_prefix_that_most_names_have():
    """A Lightning module has a loss beside the network, and the loss a weight."""
    source, model = networks.plain(7), networks.plain(2)
    state = {f"model.{k}": v for k, v in source.state_dict().items()} | {"loss.weight": torch.ones(5)}
    untouched_by(model, lambda: load_weights(model, state), r"1 unexpected \(loss\.weight\)")
    report = load_weights(model, state, partial=True)
    assert report.unexpected == ("loss.weight",)
    assert torch.equal(model(image()), source(image()))
    both = state | {k: v + 1 for k, v in source.state_dict().items()}
    load_weights(model, both, partial=True)
    assert torch.equal(model.fc.bias, source.fc.bias + 1), "names that are the model's already"
