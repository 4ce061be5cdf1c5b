"""The README's Python runs and prints what the README says; its links lead to files; its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cbam.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_prints_what_it_says():
    code, printed = re.search(r"```python\n(.*?)```\n+```\n(.*?)```", README, re.S).groups()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == printed


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 3
    assert [t for t in targets if not t.startswith("http") and not (ROOT / t).exists()] == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, re.M)
    assert "demo" in targets
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.M)] == []


COMMANDS = re.findall(r"^(?:torchrun .* -m )?cbam (\w+) (.*--.*)$", README, re.M)


@pytest.mark.parametrize(("verb", "line"), COMMANDS)
def test_options_of_the_commands_exist(verb, line, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out
    options = re.findall(r"--[\w-]+", line)
    assert options
    assert [option for option in options if option not in shown] == []


def test_there_are_commands():
    assert {verb for verb, _ in COMMANDS} >= {"compare", "train", "convert"}


def test_anchors_exist():
    for page, anchor in re.findall(r"\]\(([^)#]+\.md)#([^)]+)\)", README):
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.M)
        assert anchor in [heading.lower().replace(" ", "-").replace(",", "") for heading in headings], page
