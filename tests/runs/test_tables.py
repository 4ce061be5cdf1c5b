"""Tables on a terminal and in Markdown."""

from __future__ import annotations

import io

from rich.console import Console

from cbam.runs.tables import SEPARATOR, Section, show

ROWS = [["group"], ["a[b]", "7"], SEPARATOR, ["c|d", "12"]]
TABLE = Section("Sizes [m]", ["map", "side,\nmetres"], ROWS, ["A note."])


def test_on_a_terminal():
    stream = io.StringIO()
    show([TABLE, Section("Empty", ["x"], [])], Console(file=stream, width=60, color_system=None))
    lines = [line.strip() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[:2] == ["Sizes [m]", "A note."]
    assert [line.split() for line in lines[2:4]] == [["side,"], ["map", "metres"]]
    assert ["a[b]", "7"] in [line.split() for line in lines], "no markup"
    assert lines[-1] == "Empty"


def test_in_markdown():
    assert TABLE.markdown().splitlines() == [
        "## Sizes [m]", "", "A note.", "", "| map | side, metres |", "|---|---|", "| group |  |", "| a[b] | 7 |",
        "| c\\|d | 12 |",
    ]  # fmt: skip
    assert Section("Empty", ["x"], []).markdown() == "## Empty"
