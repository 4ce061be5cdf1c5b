"""The page docs/checkpoints.md: its Python prints what it says, its commands run, its formats are those there are."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cbam.checkpoints import FORMATS
from cbam.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_and_the_commands(tmp_path, monkeypatch):
    code, printed = re.search(r"```python\n(.*?)```\n+```\n(.*?)```", PAGE, re.S).groups()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == printed
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^cbam (convert .*)$", PAGE, re.M)
    assert len(commands) == 3
    for command in commands:
        arguments = shlex.split(command, comments=True)
        assert main(arguments) == 0
        assert Path(arguments[2]).is_file()


def test_the_table_names_every_format():
    assert re.findall(r"^\| `(\w+)`", PAGE, re.M) == list(FORMATS)
