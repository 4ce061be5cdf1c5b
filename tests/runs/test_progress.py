"""The one display: lines without control characters, or bars at the foot of a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cbam.formatting import duration
from cbam.runs.progress import Progress, counting


def plain():
    return Progress(Console(file=io.StringIO(), width=200))


def live():
    return Progress(Console(file=io.StringIO(), force_terminal=True, width=100))


def text(progress):
    return progress.console.file.getvalue()


def play(progress):
    with progress:
        progress.start("model", 2, work=2.0, each="to train for 2 epochs each")
        progress.begin("none-seed0")
        for epoch in range(2):
            for step in range(4):
                progress.at(epoch + (step + 1) / 4, f"step {step + 1}/4")
            progress.report(f"epoch {epoch + 1}/2  val 80.00 %", "val 80.00 %")
        progress.end("val 80.00 %  1,234 parameters")
        progress.begin("[b]odd[/b]")
        progress.resume(1.0, "resumes after epoch 1")
        progress.at(1.25)
        progress.note("something")
        progress.note("something")
        progress.phase("measuring")


def test_plain_lines_hold_everything_and_no_control_characters():
    progress = plain()
    play(progress)
    assert "\x1b" not in text(progress)
    lines = text(progress).splitlines()
    assert lines[0] == "2 models to train for 2 epochs each"
    assert lines[1].startswith("[1/2] none-seed0  epoch 1/2  val 80.00 %  ")
    assert lines[1].endswith(" left")
    assert lines[3] == "[1/2] none-seed0  val 80.00 %  1,234 parameters"
    assert lines[4:] == ["[2/2] [b]odd[/b]  resumes after epoch 1", "note: something", "measuring"]


def test_a_terminal_keeps_one_line_a_cell():
    progress = live()
    play(progress)
    assert "[1/2] none-seed0  val 80.00 %  1,234 parameters" in text(progress)
    assert "epoch 1/2" not in text(progress)
    assert "[b]odd[/b]" in text(progress), "names are not markup"


@pytest.mark.parametrize("make", [plain, live])
def test_the_reports_of_a_single_cell_stay(make):
    progress = make()
    with progress:
        progress.start("model", 1)
        progress.begin("cbam")
        progress.at(0.5, "step 1/2")
        progress.report("epoch 1/1  val 80.00 %")
        progress.end("not said twice")
    assert "epoch 1/1  val 80.00 %" in text(progress)
    assert "[1/1]" not in text(progress)
    assert "not said twice" not in text(progress)


def test_one_is_not_many_and_the_done_are_named():
    progress = plain()
    progress.start("model", 1)
    progress.start("model", 1, 1)
    progress.start("measurement", 4, 3)
    assert text(progress) == "1 model\n1 model, done before\n4 measurements, 3 of them done before\n"


def test_a_dumb_terminal_and_other_processes(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    progress = live()
    play(progress)
    assert "\x1b" not in text(progress)
    assert not Progress().console.quiet
    monkeypatch.setenv("RANK", "1")
    assert Progress().console.quiet, "only the first process writes"


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    progress = live()
    play(progress)
    assert "\x1b[3" not in text(progress), "no colour codes"


def test_the_time_that_remains_counts_only_what_is_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("cbam.runs.progress.time.monotonic", lambda: clock[0])
    progress = plain()
    progress.start("model", 3, 1, work=10.0)  # 20 epochs ahead
    progress.begin("se-seed0")
    progress.resume(5.0)  # 15 ahead
    assert progress.eta() == ""
    clock[0] = 10.0
    progress.at(6.0)
    assert progress.eta() == "2 min 20 s left"  # 14 epochs of 10 s
    clock[0] = 50.0
    progress.at(10.0)
    progress.end()
    assert progress.eta() == "1 min 40 s left"
    progress.begin("cbam-seed0")
    assert progress.eta() == "1 min 40 s left"


def test_counting_shows_a_bar_on_a_terminal_and_clears_it(monkeypatch):
    progress = live()
    with progress, counting("checking images") as count:
        count(1200, 5000)
        progress._bars.refresh()
    assert "checking images" in text(progress)
    assert "1,200 of 5,000" in text(progress)
    assert not progress._bars.tasks[2:]


def test_counting_is_silent_where_nobody_looks(capsys):
    progress = plain()
    with progress, counting("checking images") as count:
        count(1200, 5000)
    with counting("checking images") as count:  # no display is on: standard error, which is no terminal here
        count(1200, 5000)
    assert text(progress) == ""
    assert capsys.readouterr().err == ""


def test_the_next_display_finds_the_terminal_free():
    with pytest.raises(KeyboardInterrupt), live():
        raise KeyboardInterrupt
    progress = live()
    with counting("checking"), progress:
        pass


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (90061, "25 h 1 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
