"""The tables of docs/scale.md are what docs/scale.py prints, and its constants are those of the code."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from cbam.data.shards.index import _COLUMNS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "scale.py"
DOCUMENT = (ROOT / "docs" / "scale.md").read_text()
COMMANDS = re.findall(r"^python docs/scale\.py (.*)$", DOCUMENT.replace("\\\n", ""), re.MULTILINE)


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_table_in_the_document_is_what_the_command_prints(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *shlex.split(arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.strip() in DOCUMENT


def test_there_are_two_examples_and_the_bytes_are_the_codes():
    assert len(COMMANDS) == 2
    names = runpy.run_path(str(SCRIPT))
    assert names["INDEX_BYTES"] == sum(kind().itemsize for _, kind in _COLUMNS)
    figures = {what: value for what, _, value in names["figures"](names["Plan"](workers=100))}
    assert figures["images a second"] == "20,000"
    assert figures["time of a step"] == "13 ms"  # 256 / 20,000
    assert figures["requests to the store"] == "115,305,030"  # 1,281,167 x 90


def test_too_few_workers_slow_the_devices_down():
    names = runpy.run_path(str(SCRIPT))
    figures = {what: value for what, _, value in names["figures"](names["Plan"](workers=8, decode=150))}
    assert figures["share of the speed that the workers allow"] == "0.48"
    assert figures["time of a step"] == "27 ms"
