"""The README's links and dates hold, and the Chinese one says the same; tests/docs runs its code and commands."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import BLOCK

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
SECTION = re.compile(r"^(#+) ", re.M)
LINK = re.compile(r"\]\(([^)]+)\)")
NUMBER = re.compile(r"(?<![\w.])\d[\d,.]*\d|(?<![\w.])\d")
DATE = re.compile(r"\[(\d{4}-\d\d-\d\d)\]\(([^)]+)\)")


def outline(text):
    """Level of every heading; in each section the blocks, rows of tables, items, code words, links and numbers."""
    blocks = [
        (language, re.sub(r" *#.*", "", code)) for language, code in BLOCK.findall(text)
    ]  # comments differ
    parts = SECTION.split(BLOCK.sub("", text))
    sections = [
        {
            "rows": len(re.findall(r"^\|", part, re.M)),
            "items": len(re.findall(r"^- ", part, re.M)),
            "code": sorted(re.findall(r"`[^`]+`", part)),
            "links": [link for link in LINK.findall(part) if not link.startswith("README")],
            "numbers": sorted(NUMBER.findall(LINK.sub("]", re.sub(r"`[^`]+`", "", part)))),
        }
        for part in parts[::2]
    ]
    return parts[1::2], sections, blocks


def test_the_chinese_readme_says_the_same():
    levels, sections, blocks = outline(ENGLISH)
    assert len(levels) > 5
    assert sum(len(section["numbers"]) for section in sections) > 30
    assert outline(CHINESE) == (levels, sections, blocks)


@pytest.mark.parametrize(
    ("old", "new"),
    [("1.03", "1.04"), ("docs/zoo.md", "docs/yolo.md"), ("## ", "### "), ("cbam.cost(model)", "cbam.cost(net)"),
     ("\n- ", "\n"), ("`cbam ablate`", "`cbam cost`")],
)  # fmt: skip
def test_a_difference_is_found(old, new):
    assert outline(CHINESE.replace(old, new, 1)) != outline(ENGLISH)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_links_lead_somewhere(text):
    targets = [target for target in LINK.findall(text) if not target.startswith("http")]
    assert len(targets) > 20
    assert [t for t in targets if not (ROOT / t.partition("#")[0]).exists()] == []
    for page, anchor in (t.split("#") for t in targets if "#" in t):
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.M)
        assert anchor in [heading.lower().replace(" ", "-").replace(",", "") for heading in headings], page


def test_every_row_says_which_tests_hold_it():
    rows = re.findall(r"^\| (?!what|---).*$", ENGLISH, re.M)
    assert len(rows) > 10
    assert all(DATE.search(row) for row in rows)
    assert all((ROOT / tests).exists() and tests.startswith("tests/") for _, tests in DATE.findall(ENGLISH))


def test_the_readme_stays_short():
    assert len(ENGLISH.splitlines()) < 110
