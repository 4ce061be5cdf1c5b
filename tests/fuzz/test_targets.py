"""Every target of `make fuzz` with its good files, with what once broke it, and with a few mutated files."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = {name: list(target.seeds()) for name, target in targets.TARGETS.items()}
CACHE = {}


def reader(name, tmp_path_factory):
    if name not in CACHE:
        CACHE[name] = targets.reader_of(name, tmp_path_factory.mktemp(name))
    return CACHE[name]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_good_files_are_read(name, tmp_path):
    """With nothing caught: at least one of the readers behind a target takes each of its seeds."""
    read = targets.TARGETS[name].make(tmp_path)
    for content in SEEDS[name]:
        try:
            read(content)
        except targets.CBAMError:  # it is of another form than the last reader's
            assert name in ("configs", "shards")


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_was_found_stays_fixed(name, tmp_path_factory):
    for file in targets.found(name):
        reader(name, tmp_path_factory)(file.read_bytes())


@pytest.mark.parametrize("name", targets.TARGETS)
@given(data=st.data())
@FUZZ
def test_mutated_files(name, data, tmp_path_factory):
    content = bytearray(data.draw(st.sampled_from(SEEDS[name])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        piece = data.draw(
            st.binary(max_size=4)
            | st.sampled_from(
                [b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b"9" * 20, b"\xff", b"&a ", b"\0"]
            )
        )
        content[at : at + data.draw(st.integers(0, 6))] = piece
    reader(name, tmp_path_factory)(bytes(content))


def test_a_surprise_gets_out(tmp_path, monkeypatch):
    broken = targets.Target(list, lambda folder: lambda content: int(content))
    monkeypatch.setitem(targets.TARGETS, "broken", broken)
    with pytest.raises(ValueError, match="invalid literal"):
        targets.reader_of("broken", tmp_path)(b"x")
