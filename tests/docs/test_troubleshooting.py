"""Every message that docs/troubleshooting.md quotes is one that the code can say; every option in the pages exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from cbam.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.*)$", PAGE, re.M)
PAGES = ("tutorial.md", "reading-the-report.md", "troubleshooting.md")


@cache
def messages():
    """All strings of the code; what an f-string puts in is a form feed."""
    found = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\f" for part in node.values]
                found.append("".join(map(str, parts)))
    return found


def said(quoted):
    pattern = re.compile(".*?".join(re.escape(part) for part in quoted.split("...")), re.S)
    return any(pattern.search(message) for message in messages())


QUOTED = [quoted for heading in HEADINGS for quoted in re.findall("`([^`]+)`", heading)]


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_code_says_it(quoted):
    assert said(quoted)


def test_the_check_can_fail():
    assert len(QUOTED) > 25
    assert not said("is no CNN at all, alas")
    assert not said("the loss is ... in a bad mood")


def test_every_section_says_what_to_type():
    sections = re.split(r"^##+ .*$", PAGE, flags=re.M)[2:]
    assert [text for text in sections if text.strip() and len(text.split()) < 8] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_and_commands_exist(page, capsys):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / "docs" / target).exists(), target
    for line in re.findall(r"^cbam (?!detect|predict)(.*--.*)$", text, re.M):
        verb = line.split()[0]
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        shown = capsys.readouterr().out
        assert [option for option in re.findall(r"--[\w-]+", line) if option not in shown] == [], line
