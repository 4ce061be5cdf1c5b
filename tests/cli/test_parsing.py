"""The help of options: one paragraph each, however the source breaks its lines."""

from __future__ import annotations

import importlib
import itertools
import re
from dataclasses import dataclass, field

import pytest

from cbam.cli import compare, train
from cbam.cli.detect import compare as detect_compare
from cbam.cli.detect import train as detect_train
from cbam.cli.main import COMMANDS, main
from cbam.cli.parsing import _wrapped, read_options
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


COMMAND_MODULES = [f"cbam.cli.{name}" for name in COMMANDS if name != "detect"] + [
    f"cbam.cli.detect.{name}" for name in ("compare", "evaluate", "generate", "predict", "train")
]


@pytest.mark.parametrize("module", COMMAND_MODULES)
def test_examples_fit_the_terminal_and_can_be_copied(module, monkeypatch):
    """A line that breaks inside a command would run as two."""
    monkeypatch.setenv("COLUMNS", "80")
    description = getattr(importlib.import_module(module), "DESCRIPTION", "")
    paragraphs = zip(description.split("\n\n"), _wrapped(description).split("\n\n"), strict=True)
    found = [(before, after) for before, after in paragraphs if before.startswith("Example")]
    for before, after in found:
        assert max(map(len, after.splitlines())) <= 80
        commands = after.replace(" \\\n", " ").splitlines()
        assert " ".join(commands).split() == before.split()
        assert all("cbam " in command for command in commands), commands


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


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("compare", "--data DATA"),
        ("train", "--data DATA"),
        ("detect train", "--data DATA"),
        ("detect compare", "--data DATA"),
        ("plan", "--model MODEL"),
    ],
)
def test_what_has_to_be_typed_stands_first_in_the_usage(command, first, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    text = shown(capsys, lambda: main([*command.split(), "--help"]))
    assert f"usage: cbam {command} {first} [-h]" in text


@pytest.mark.parametrize("parse", [train.parse, compare.parse, detect_train.parse, detect_compare.parse])
def test_the_images_may_be_the_first_word(parse):
    assert parse(["coco:photos", "--epochs", "2"]).data == "coco:photos"
    assert parse(["--epochs", "2", "--data", "coco:photos"]).train.epochs == 2


def test_the_network_may_be_the_first_word(capsys):
    for words in (["plan", "resnet20"], ["plan", "--model", "resnet20"], ["cost", "resnet20"]):
        assert main(words) == 0
        assert capsys.readouterr().out


# Every kind of mistake that the parser, the configs and `prepare` refuse.
MISTAKES = [
    "compare",
    "compare --data",
    "compare --dat digits",
    "compare digits --epochs x",
    "compare digits --epochs 0",
    "compare digits --seeds 0",
    "compare digits --device gpu",
    "compare digits --device tpu --config nowhere.yaml",
    "compare digits --attention cbam",
    "compare digits --attention nonne,cbam",
    "compare digits --train.epochs 3",
    "compare digits --mixup -1",
    "compare digits --track tensorbord",
    "compare nowhere",
    "compare digits --model resnet99",
    "compare digits --shard",
    "train",
    "train digits --attention cbam:k4",
    "train digits --attention cbam:official --preset timm",
    "train digits --lr nan",
    "train digits --sites layer9",
    "train digits --preset pape",
    "ablate --data digits",
    "ablate --data digits --table 9",
    "evaluate",
    "evaluate nowhere --data digits",
    "explain",
    "explain nowhere.png --run nowhere",
    "plan",
    "plan resnet20 --input-size 3 32",
    "plan resnet20 --preset pape",
    "cost",
    "cost resnet20 --table 3",
    "detect train",
    "detect train --data photos",
    "detect train --data coco:nowhere --drops x",
    "detect compare --data coco:nowhere",
    "bench --parts nothing",
    "convert",
    "shards",
    "demo --run nowhere",
]


@pytest.mark.parametrize("line", MISTAKES)
def test_no_message_names_a_class_of_ours(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(line.split())
    except SystemExit as stop:
        code = stop.code
    said = "".join(capsys.readouterr())
    assert code == 2, said
    assert said.strip()
    assert re.findall(r"\b[A-Z]?\w+(?:Config|Job|Error)\b|Traceback", said) == [], said
