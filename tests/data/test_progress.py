from __future__ import annotations

import io

import pytest

from cbam.data import progress as module
from cbam.data.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(module, "_EVERY_S", 0)
    monkeypatch.delenv("RANK", raising=False)


def test_a_line_that_is_cleared_at_the_end():
    terminal = Terminal()
    with progress("checking images", terminal) as tell:
        tell(1000, 20000)
        assert terminal.getvalue() == "\rchecking images: 1,000 of 20,000 "
    assert terminal.getvalue().endswith("\r\033[K")


def test_nothing_where_no_one_looks(monkeypatch):
    for stream in (io.StringIO(), terminal := Terminal()):
        monkeypatch.setenv("RANK", "3")
        with progress("job", stream) as tell:
            tell(1, 2)
        assert stream.getvalue() == ""
    monkeypatch.setattr(module, "_EVERY_S", 60)
    monkeypatch.setenv("RANK", "0")
    with progress("job", terminal) as tell:
        tell(1, 2)  # a short job is not worth a line
    assert terminal.getvalue() == ""
