from __future__ import annotations

import io

import pytest
from rich.console import Console

from cbam.compare.grid import Cell, cells
from cbam.compare.progress import LiveProgress, PlainProgress, make_progress
from cbam.formatting import duration

ROW = {"epoch": 1, "train_loss": 0.5, "val_accuracy": 0.8, "lr": 0.1}
ROW |= {"images_per_s": 100.0, "data_wait_s": 0.5, "seconds": 5.0}
RESULT = {"val_accuracy": 0.8, "parameters": 1234, "seconds": 61}


def play(progress):
    grid = cells(("none", "[b]odd[/b]"), 1)
    with progress:
        progress.start(grid, grid[:0], 2)
        progress.start_cell(grid[0], 1)
        for epoch in range(2):
            for step in range(4):
                progress.step(epoch, step, 4, 0.25)
            progress.epoch({**ROW, "epoch": epoch + 1})
        progress.end_cell(RESULT)
        progress.start_cell(grid[1], 2)
        progress.resume_cell(1)
        progress.step(1, 0, 4, 0.125)
        progress.notice("something")
        progress.phase("measuring")


def test_plain_lines_hold_all_and_no_control_characters():
    text = io.StringIO()
    play(PlainProgress(Console(file=text)))
    lines = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert lines[0] == "2 models to train for 2 epochs each"
    assert lines[1].startswith("[1/2] none seed 0  epoch 1/2  loss 0.500  val 80.00 %")
    assert lines[1].endswith("left")
    assert "[2/2] [b]odd[/b] seed 0  goes on after epoch 1" in lines
    assert lines[-2:] == ["note: something", "measuring"]


def test_one_is_not_many():
    text = io.StringIO()
    with PlainProgress(Console(file=text)) as progress:
        progress.start(cells(("none",), 1), [], 1)
    assert text.getvalue() == "1 model to train for 1 epoch each\n"


def test_live_display_leaves_one_line_a_model():
    text = io.StringIO()
    play(LiveProgress(Console(file=text, force_terminal=True, width=100)))
    assert "[1/2] none seed 0  val 80.00 %  1,234 parameters  1 min 1 s" in text.getvalue()
    assert "[b]odd[/b]" in text.getvalue(), "names are not markup"


def test_the_console_decides():
    assert type(make_progress(Console(file=io.StringIO()))) is PlainProgress
    assert type(make_progress(Console(file=io.StringIO(), force_terminal=True))) is LiveProgress


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_progress(Console(file=io.StringIO(), force_terminal=True))) is PlainProgress


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = io.StringIO()
    play(LiveProgress(Console(file=text, force_terminal=True, width=100)))
    assert "\x1b[3" not in text.getvalue(), "no colour codes"


def test_eta_counts_only_what_is_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cbam.compare.progress.time.monotonic", lambda: clock[0])
    progress = PlainProgress(Console(file=io.StringIO()))
    grid = cells(("none", "se", "cbam"), 1)
    progress.start(grid, grid[:1], 10)  # 20 epochs ahead
    progress.start_cell(Cell("se", 0), 2)
    progress.resume_cell(5)  # 15 ahead
    assert progress.eta() == ""
    clock[0] = 10.0
    for step in range(4):
        progress.step(5, step, 4, 0.1)
    progress.epoch({**ROW, "epoch": 6})
    assert progress.eta() == "2 min 20 s left"  # 14 epochs of 10 s


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (90061, "25 h 1 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
