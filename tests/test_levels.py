"""The table of test levels says what it means, and each of its rows still matches tests."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import UNMATCHED
from tests.levels import LEVELS, Level, mark

ROOT = Path(__file__).parents[1]


class Item:
    """What `mark` needs of a collected test."""

    def __init__(self, nodeid, **params):
        self.nodeid, self.marks = nodeid, []
        self.callspec = SimpleNamespace(params=params)

    def add_marker(self, marker):
        self.marks.append(marker.name)


def grid(*sizes):
    if not sizes:
        return [{}]
    return [{**row, f"p{len(sizes)}": i} for row in grid(*sizes[1:]) for i in range(sizes[0])]


def items(rows):
    return [Item(f"tests/test_a.py::test_b[{number}]", **row) for number, row in enumerate(rows)]


def test_every_row_matches(request):
    assert request.config.stash[UNMATCHED] == []


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.tests)
def test_files_and_marks_exist(level):
    assert list(ROOT.glob(level.file))
    assert level.mark in ("slow", "exhaustive")
    assert level.why


def test_a_row_that_matches_nothing_is_found():
    gone = Level("slow", "tests/test_a.py::test_gone", "")
    elsewhere = Level("slow", "tests/test_c.py::test_gone", "")
    assert mark(items(grid(2)), [gone, elsewhere]) == [gone]


def test_named_rows_are_kept():
    rows = items(grid(4))
    assert mark(rows, [Level("exhaustive", "tests/test_a.py::test_b", "", keep=("0", "3*"))]) == []
    assert [row.marks for row in rows] == [[], ["exhaustive"], ["exhaustive"], []]


@pytest.mark.parametrize(("keep", "count"), [("values", 4), ("pairs", 12)])
def test_every_value_or_every_pair_is_kept(keep, count):
    rows = items(grid(4, 3, 2))
    mark(rows, [Level("exhaustive", "tests/test_a.py::test_b", "", keep=keep)])
    kept = [row.callspec.params for row in rows if not row.marks]
    assert len(kept) == count
    for name, size in (("p3", 4), ("p2", 3), ("p1", 2)):
        assert {row[name] for row in kept} == set(range(size))
    if keep == "pairs":
        assert len({(row["p3"], row["p2"]) for row in kept}) == 12
        assert len({(row["p3"], row["p1"]) for row in kept}) == 8
