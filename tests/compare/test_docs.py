"""The page docs/adding-attention.md: its options exist, its links lead somewhere."""

import re
from pathlib import Path

import pytest

from cbam.attach.variants import parse_variant
from cbam.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "adding-attention.md").read_text(encoding="utf-8")


def test_the_options_exist(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    shown = capsys.readouterr().out
    options = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert len(options) > 6
    assert {option for option in options if option not in shown} == set()


def test_the_variants_exist_and_the_links_lead_somewhere():
    names = set(re.findall(r"`((?:cbam|channel|se):[\w:]+)`", PAGE))
    assert len(names) > 3
    assert all(parse_variant(name).attention for name in names)
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(links) > 1
    assert [link for link in links if not (DOCS / link).exists()] == []
