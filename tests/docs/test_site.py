"""What the manual's site makes of its pages and of docstrings."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.docs.pages import ROOT


def module(name):
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / f"docs/site/{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def conf():
    pytest.importorskip("docutils")
    before = list(sys.path)
    yield module("conf")
    sys.path[:] = before


def test_a_line_that_begins_with_a_percent_sign_is_no_comment(tmp_path):
    text = "The quartiles lie 68\n% of the median apart.\n\n```\n% of a program\n```\n"
    shown = module("stage").translated(text, "docs/data.md", "data.md", tmp_path, {}, [])
    assert shown == text.replace("\n% of the", "\n\\% of the")


def test_a_sentence_with_a_colon_is_no_type(conf):
    napoleon = pytest.importorskip("sphinx.ext.napoleon")
    sentence = "Whether it takes two calls: the operator computes the first gate."
    lines = napoleon.GoogleDocstring([sentence], what="property", name="two_calls").lines()
    assert lines[0] != sentence, "what is put right here"
    conf.whole_sentence(None, "property", "cbam.CBAM.two_calls", None, None, lines)
    assert "\n".join(lines).strip() == sentence


def test_a_letter_with_a_stop_is_no_list(conf):
    lines = ["in_channels: C."]
    conf.escape(None, "class", "cbam.CBAM", None, None, lines)
    assert lines == ["in_channels: \\C."]


@pytest.mark.parametrize(
    "text", ["2026-11-22", "6.29e-02", "+20.9 ± 15.7", "-0.11", "x 1.29", "13.8 ms", "98 %"]
)
def test_numbers_and_dates_in_tables_do_not_break(conf, text):
    assert conf.NUMBER.fullmatch(text)


@pytest.mark.parametrize(
    "text", ["GPU, batch 1", "plain, branches / 4", "", "not measured", "1.03 to 1.60 / 1.38"]
)
def test_words_in_tables_do(conf, text):
    assert not conf.NUMBER.fullmatch(text)
