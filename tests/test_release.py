"""What is released: bounds of dependencies, their table, and known vulnerabilities."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import advisories  # noqa: E402
import walk  # noqa: E402

tomllib = pytest.importorskip("tomllib")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: needs for name, needs in PROJECT["optional-dependencies"].items() if name != "dev"}
NEEDS = [
    *PROJECT["dependencies"],
    *(n for needs in EXTRAS.values() for n in needs if not n.startswith("torch-cbam[")),
]


def test_every_dependency_has_a_lower_bound():
    assert [need for need in NEEDS if not re.fullmatch(r"[\w-]+(\[[\w,]+\])?>=[\d.]+(,<\d+)?", need)] == []


def test_the_page_has_every_dependency_with_its_bounds():
    page = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    table = page.partition("| package | extra |")[2].partition("\n\n")[0]
    first = [row.split("|")[1] for row in table.splitlines()[2:]]
    said = {
        found.replace(" ", "")
        for cell in first
        for found in re.findall(r"[\w-]+ >= [\d.]+(?:, < \d+)?", cell)
    }
    assert said == {re.sub(r"\[.*\]", "", need) for need in NEEDS}


def advisory(events=(), versions=()):
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}]
    return {"affected": [{"package": {"name": "Tea_Pot"}, "ranges": ranges, "versions": list(versions)}]}


@pytest.mark.parametrize(
    ("found", "version", "concerned"),
    [
        (advisory(versions=["1.0", "1.1"]), "1.1", True),
        (advisory(versions=["1.0", "1.1"]), "1.2", False),
        (advisory([{"introduced": "0"}, {"fixed": "2.10"}]), "2.9", True),
        (advisory([{"introduced": "0"}, {"fixed": "2.10"}]), "2.10", False),
        (advisory([{"introduced": "2"}, {"last_affected": "3"}]), "3", True),
        (advisory([{"introduced": "2"}, {"last_affected": "3"}]), "3.1", False),
        (advisory([{"introduced": "0"}, {"fixed": "1"}, {"introduced": "4"}]), "5", True),
    ],
)
def test_an_advisory_is_about_versions(found, version, concerned):
    assert advisories.concerns(found, "tea-pot", version) is concerned
    assert not advisories.concerns(found, "kettle", version)


def test_the_bounds_are_asked_for_too():
    asked = set(advisories.bounds())
    assert {("torch", "2.11"), ("gradio", "6.20"), ("sphinx-copybutton", "0.5.2")} <= asked
    assert len(asked) >= len(NEEDS)


def test_the_walk_follows_the_pages():
    assert walk.not_on_their_pages() == []
