"""Rows survive a kill in the middle of a write."""

from __future__ import annotations

import pytest

from cbam.runs.rows import Rows


@pytest.fixture
def rows(tmp_path):
    return Rows(tmp_path / "new" / "metrics.jsonl")


def test_a_file_that_is_not_there_has_no_rows(rows):
    assert rows.read() == []
    rows.mend()
    assert not rows.path.exists()


@pytest.mark.parametrize("torn", ['{"cell": "cbam-se', '{"cell": "b"}\nnull', '\x00\x00\x00{"a"', "\xff"])
def test_torn_lines_are_dropped_and_new_ones_follow(rows, torn, caplog):
    rows.append({"cell": "a", "epoch": 1})
    with rows.path.open("ab") as stream:
        stream.write(torn.encode("latin-1"))
    kept = rows.read()
    rows.mend()
    rows.append({"cell": "a", "epoch": 2})
    assert rows.read() == [*kept, {"cell": "a", "epoch": 2}]
    assert kept[0] == {"cell": "a", "epoch": 1}
    assert "dropped 1 damaged" in caplog.text


def test_whole_rows_are_not_rewritten(rows):
    rows.append({"epoch": 1})
    before = rows.path.stat().st_ino
    rows.mend()
    assert rows.path.stat().st_ino == before


def test_what_is_no_json_leaves_the_file_whole(rows):
    rows.append({"epoch": 1})
    with pytest.raises(ValueError, match="JSON"):
        rows.append({"loss": float("nan")})
    assert rows.read() == [{"epoch": 1}]
