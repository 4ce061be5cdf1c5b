"""docs/your-own-attention.md runs from top to bottom, and what it writes goes through every part of the library."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from cbam.cli.main import main
from cbam.nn import registry
from cbam.pretrained import from_pretrained, read_config
from cbam.pretrained.card import write_card

PAGE = Path(__file__).parents[1] / "docs" / "your-own-attention.md"
BLOCK = re.compile(r"^```(python|console)(?: file=(\S+))?\n(.*?)^```", re.M | re.S)
MODULE = "my_package.my_gate"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget()


def forget():
    """Make the gate unknown again, as it is to a new process."""
    registry._KINDS.pop("contrast_gate", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def commands(text):
    return [shlex.split(line)[1:] for line in text.replace("\\\n", " ").splitlines()]


def test_the_page_and_what_comes_of_it(folder, capsys):
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [kind for kind, _, _ in blocks].count("console") == 1
    names = {}
    for kind, file, text in blocks:
        if file:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        elif kind == "python":
            exec(compile(text, str(PAGE), "exec"), names)
        else:
            for typed in commands(text):
                forget()
                assert main(typed) == 0, typed
    shown = capsys.readouterr().out
    assert "contrast_gate in CifarResNet: 9 sites, init identity" in shown
    assert "timm:gc (rd_ratio=0.25) in CifarResNet: 9 sites, init as built" in shown
    assert "timm:gc cannot start as the identity: the model's output changes (at 9 of 9 sites)" in shown
    assert re.search(r"Contrast +\d", shown), "the table of the comparison has its label"
    assert "Contrast" in (folder / "compared" / "report.html").read_text(encoding="utf-8")
    for saved in ("saved", "trained/final"):
        config = read_config(folder / saved)
        assert (config.attention[0].kind, len(config.attention[0].sites)) == ("contrast_gate", 9)
        card = write_card(config, "somebody/network", from_pretrained(folder / saved))
        assert "with Contrast at 9 sites" in card
        assert "@misc{me, title = {Contrast gates}}" in card
        assert "- contrast\n" in card
    forget()
    assert main(["evaluate", "trained", "--data", "digits"]) == 2
    assert "import the module that registers it first" in capsys.readouterr().err


def test_a_run_with_other_imports_goes_on(folder, capsys):
    """What is imported changes no result, and the run's own file of options names it."""
    (folder / "mine.py").write_text("import cbam.nn.eca\n")
    train = ["train", "--data", "digits", "--model", "resnet20", "--attention", "eca", "--epochs", "1"]
    train += ["--limit-train", "128", "--limit-val", "20", "--output", "run"]
    assert main([*train, "--import", "mine", "json,math"]) == 0
    assert "imports:" in (folder / "run" / "config.yaml").read_text()
    assert main(train) == 0
    assert json.loads((folder / "run" / "final" / "config.json").read_text())["attention"][0]["kind"] == "eca"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module", "no module 'no_such_module' is installed or in"),
        ("broken", "--import broken failed (ZeroDivisionError: division by zero)"),
        ("needy", "--import needy needs the package 'a_package_that_is_not_there'"),
        ("taken", "attention 'cbam' is registered already"),
    ],
)
def test_imports_that_fail(name, message, folder, capsys):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "needy.py").write_text("import a_package_that_is_not_there\n")
    (folder / "taken.py").write_text("import cbam\ncbam.register_attention('cbam', lambda channels: None)\n")
    for command in (["plan", "--model", "resnet20"], ["evaluate", "x", "--data", "digits"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--import", name])
        assert stop.value.code == 2
        assert message in " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().err).split())
