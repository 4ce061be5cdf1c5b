"""The help of options: one paragraph each, however the source breaks its lines."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

import pytest

from cbam.cli.main import main
from cbam.cli.parsing import read_options
from cbam.runs.config import option


@dataclass(frozen=True)
class Inner:
    speed: int = option(3, affects_result=False)
    """How fast,
    in a text that goes on (in
    brackets) for three lines."""


@dataclass(frozen=True)
class Outer:
    name: str = "none"
    """A name, on
    two lines."""
    inner: Inner = field(default_factory=Inner)
    """Not shown."""


@dataclass(frozen=True)
class Changed(Outer):
    name: str = "other"


def shown(capsys, call):
    with pytest.raises(SystemExit) as stop:
        call()
    assert stop.value.code == 0
    return re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().out)


@pytest.mark.parametrize("form", [Outer, Changed])
def test_every_text_is_one_paragraph(form, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    text = shown(capsys, lambda: read_options(form, "cbam test", "A test.", ["--help"]))
    assert "A name, on two lines." in text
    assert "How fast, in a text that goes on (in brackets) for three lines." in text
    assert "--speed" in text, "no prefix"


def test_descriptions_are_wrapped_and_examples_keep_their_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = "Some words " * 12 + "\nand more.\n\nExamples: cbam a\n          cbam b"
    lines = shown(capsys, lambda: read_options(Outer, "cbam test", text, ["--help"])).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("Some words Some words")
    assert lines[3].startswith("  ")
    assert lines[3].endswith("and more.")
    assert lines[4:8] == ["", "Examples: cbam a", "          cbam b", ""]


def test_values_and_defaults():
    assert read_options(Outer, "cbam test", "", ["--speed", "4"]) == Outer(inner=Inner(4))
    assert read_options(Outer, "cbam test", "", [], default=Outer("mine")).name == "mine"


@pytest.mark.parametrize("command", ["plan", "cost", "bench", "evaluate", "convert"])
def test_no_help_of_a_command_is_ragged(command, capsys, monkeypatch):
    """On a very wide terminal an option has its name and its text on one line, or on two."""
    monkeypatch.setenv("COLUMNS", "900")
    text = shown(capsys, lambda: main([command, "--help"]))
    lines = [line.strip() for line in text[text.index("--help") :].splitlines()]
    lines = [line for line in lines if line]
    assert len(lines) > 5
    ragged = [pair for pair in itertools.pairwise(lines) if not any(line.startswith("-") for line in pair)]
    assert ragged == []
