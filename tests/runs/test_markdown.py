"""Generated Markdown: prose is wrapped, and what a line break would damage is left alone."""

from cbam.runs.markdown import wrap


def test_a_paragraph_is_filled_and_a_second_pass_changes_nothing():
    once = wrap("one two\nthree four five\n\nsix", 13)
    assert once == "one two three\nfour five\n\nsix"
    assert wrap(once, 13) == once


def test_list_items_hang_and_stay_apart():
    assert wrap("- one two three\n- four\n  five", 9) == "- one two\n  three\n- four\n  five"
    assert wrap("1. one two\n2. three", 8) == "1. one\n   two\n2. three"


def test_code_tables_headings_and_pictures_are_left_alone():
    text = "```\n$ a b c d e\n```\n# a b c d e\n| a | b | c |\n![a b](c d)"
    assert wrap(text, 5) == text


def test_a_code_span_is_not_split():
    assert wrap("see `a b c` now", 9) == "see\n`a b c`\nnow"


def test_no_line_begins_like_a_list():
    assert wrap("aaaaaaaaaaaaaaaaa bbbbbbbbb - ccc", 28) == "aaaaaaaaaaaaaaaaa\nbbbbbbbbb - ccc"
