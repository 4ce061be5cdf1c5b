"""What `make fuzz` says of how a target ended; that nothing but libFuzzer's own last line counts as a good end."""

import signal
import sys

import pytest

from tests.fuzz import run
from tests.fuzz.run import Ending

STARTED = "INFO: Seed: 7\n#7\tINITED cov: 123 ft: 192 corp: 6/30Kb exec/s: 0 rss: 742Mb\n"
GREW = "#353\tNEW    cov: 131 ft: 244 corp: 15/59Kb lim: 10240 exec/s: 0 rss: 742Mb L: 152/10240 MS: 1 CopyPart-\n"
OVER = "#500\tDONE   cov: 131 ft: 244 corp: 15/59Kb lim: 10240 exec/s: 0 rss: 742Mb\nDone 500 runs in 0 second(s)\n"


def test_a_good_end():
    assert Ending.of(0, STARTED + GREW + OVER) == Ending(500, (123, 131), "")


@pytest.mark.parametrize(
    ("status", "output", "inputs", "why"),
    [
        (0, STARTED + GREW, 353, "status 0"),
        (0, "", 0, "status 0"),
        (70, STARTED + GREW + OVER, 500, "status 70"),
        (-signal.SIGKILL, STARTED, 7, "signal SIGKILL"),
        (0, "Done 0 runs in 0 second(s)", 0, "status 0"),
    ],
    ids=["without a last line", "without a word", "with an error", "killed", "without an input"],
)
def test_an_early_end(status, output, inputs, why):
    ending = Ending.of(status, output)
    assert ending.inputs == inputs
    assert ending.early.startswith(why)


@pytest.mark.parametrize(("program", "status"), [("true", 0), ("false", 1)])
def test_a_process_that_says_nothing_is_no_good_end(program, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", program)
    assert not run.run("shards", 5, 10, tmp_path / "findings", tmp_path / "corpus")
    shown = capsys.readouterr().out
    assert shown.startswith("shards: 0 inputs in ")
    assert f"findings: 0; ENDED EARLY, status {status}" in shown


def test_one_finding_is_kept_for_each_place(tmp_path):
    def fail(content):
        try:
            int(content)
        except ValueError as error:
            run._keep(tmp_path, content, "text", error)

    fail(b"x")
    fail(b"y")
    assert [file.read_bytes() for file in tmp_path.glob("*") if not file.suffix] == [b"x"]


def test_an_unknown_target_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "shard"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no target shard; there are checkpoints" in capsys.readouterr().err
