from __future__ import annotations

import csv
import sys
import types

import pytest

from cbam.errors import MissingExtra
from cbam.runs.folder import RunFolder
from cbam.train.trackers import Metrics, Tracking, check_trackers, open_trackers


def row(epoch, loss):
    return {"epoch": epoch, "train_loss": loss}


def test_rows_as_lines_and_as_a_spreadsheet(tmp_path):
    metrics = Metrics(RunFolder(tmp_path))
    for epoch in (1, 2, 3):
        metrics.add(row(epoch, 1 / epoch))
    metrics.go_on_after(1)  # epochs 2 and 3 were not saved: they come again
    metrics.add(row(2, 0.25))
    assert metrics.folder.metrics.read() == [row(1, 1.0), row(2, 0.25)]
    with (tmp_path / "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"epoch": "1", "train_loss": "1.0"},
            {"epoch": "2", "train_loss": "0.25"},
        ]


def test_tensorboard_hides_what_comes_again(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first in (0, 2):  # stopped after step 3, of which 2 and 3 were not saved
        (tracker,) = open_trackers(["tensorboard"], tmp_path, {}, first)
        for step in range(first, 4):
            tracker.log({"loss": float(10 * first + step)}, step)
        tracker.finish()
    events = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (0, 0.0), (1, 1.0), (2, 22.0), (3, 23.0),
    ]  # fmt: skip


def test_a_run_at_weights_and_biases_is_continued_under_its_name(tmp_path, monkeypatch):
    """wandb is not installed for the tests, so a stand-in notes what its `init` is given."""
    wandb = types.SimpleNamespace(given=[], logged=[])

    def init(**options):
        wandb.given.append(options)
        return types.SimpleNamespace(
            log=lambda numbers, step: wandb.logged.append((numbers, step)),
            finish=lambda: wandb.logged.append("end"),
        )

    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (1, 2):
        (tracker,) = open_trackers(["wandb"], tmp_path / "my run", {"lr": None}, step)
        tracker.log({"loss": 0.5}, step)
        tracker.finish()
    assert wandb.logged == [({"loss": 0.5}, 1), "end", ({"loss": 0.5}, 2), "end"]
    first, second = wandb.given
    assert first == second == {
        "project": "cbam", "id": "my run", "name": "my run", "resume": "allow", "dir": str(tmp_path / "my run"),
        "config": {"lr": None},
    }  # fmt: skip


def test_the_cells_of_a_run_are_a_group(tmp_path, monkeypatch):
    given = []

    def init(**options):
        given.append(options)
        return types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    tracking = Tracking(["wandb"], tmp_path / "run" / "cells" / "cbam-seed0", {}, 4, tmp_path / "run")
    for step in range(4):
        tracking.step(0, step, 4, 0.5)
    tracking.epoch({"epoch": 1, "train_loss": 0.5})
    tracking.finish()
    (options,) = given
    assert (options["group"], options["id"]) == ("run", "run-cbam-seed0")


def test_what_is_not_installed_is_refused_with_the_line_to_type():
    with pytest.raises(MissingExtra, match=r"'torch-cbam\[track\]'"):
        check_trackers(["no_such_tracker"])
