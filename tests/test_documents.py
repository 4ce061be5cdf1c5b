import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbam.documents import RefusedFile, inside, read_json, read_text, read_xml, read_yaml
from cbam.errors import CBAMError

BILLION = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
LAUGHS = f'<!DOCTYPE x [<!ENTITY a0 "ha">{BILLION}]><annotation>&a9;</annotation>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>'


@pytest.mark.parametrize("text", [LAUGHS, EXTERNAL, '<!DOCTYPE x SYSTEM "http://host/x.dtd"><x/>'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_entities_are_refused_before_they_grow(tmp_path, text, encoding):
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    tracemalloc.start()
    with pytest.raises(RefusedFile, match=r"a\.xml is refused: it declares a document type"):
        read_xml(tmp_path / "a.xml")
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"", b"<a>", b"<a></b>", b"\xff\xfe\x00", b"<a>&nbsp;</a>", b"text", b"\x00" * 9]
)
def test_what_is_no_xml_says_so(tmp_path, content):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(CBAMError, match="is no valid XML"):
        read_xml(tmp_path / "a.xml")


def test_deep_xml_is_read(tmp_path):
    (tmp_path / "a.xml").write_text("<a>" * 100_000 + "</a>" * 100_000)
    assert read_xml(tmp_path / "a.xml").tag == "a"


def test_a_file_of_absurd_length_is_not_read(tmp_path):
    (tmp_path / "a.xml").write_bytes(b"<a>" + b" " * 5_000_000 + b"</a>")
    with pytest.raises(CBAMError, match="larger than 4,194,304 bytes"):
        read_xml(tmp_path / "a.xml")
    with pytest.raises(CBAMError, match="larger than 10 bytes"):
        read_text(tmp_path / "a.xml", 10)


def test_yaml_bombs_are_refused(tmp_path):
    lines = ["a: &a [x, x]"] + [
        f"{k}: &{k} [*{p}, *{p}]" for p, k in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(CBAMError, match="repeats parts by"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    ["a: 2001-99-99", "a: !!int abc", "a: !!bool x", f"a: {'9' * 5000}", "[" * 20_000, "- " * 20_000, "a: [",
     "a: !!python/object:x.y {}", "\x00", "? {a: b}\n: c"],
)  # fmt: skip
def test_yaml_that_cannot_be_used_says_so(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(CBAMError, match=r"a\.yaml cannot be used"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"9" * 5000, b"\xff", b'{"a": }'])
def test_json_that_cannot_be_used_says_so(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CBAMError, match=r"a\.json is no valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "none.json", tmp_path / ("a" * 5000)):
        with pytest.raises(CBAMError, match=r"is no file|cannot be read"):
            read_json(path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CBAMError, match="not a text in UTF-8"):
        read_text(tmp_path / "a.txt")


@given(st.text(alphabet="ab./\\~:\0", max_size=12))
def test_no_name_leaves_the_folder(name):
    found = inside(Path("/set/images"), name)
    if found is not None:
        assert os.path.normpath(found).startswith("/set/images")


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "a/../../b", "/etc/passwd", "\\\\host\\a", "C:\\a", "..\\a", "a\0"]
)
def test_names_that_lead_out(tmp_path, name):
    assert inside(tmp_path, name) is None
