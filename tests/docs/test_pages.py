"""Every Python snippet of the manual runs and prints what its page says; every command and option exists."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest
import tyro

from cbam.cli.main import COMMANDS, main
from tests.docs.pages import PAGES, ROOT, Snippet, commands, mentions, name, snippets

# Pages whose Python needs more than a folder: the test that runs it.
ELSEWHERE = {
    "docs/your-own-attention.md": "tests/test_your_own_attention.py",
    "docs/yolo.md": "tests/docs/test_yolo.py",
    "docs/checkpoints.md": "tests/checkpoints/test_docs.py",
    "docs/tutorial.md": "tests/docs/test_tutorial.py",
}
SAME = ("README.zh-CN.md",)  # its blocks are those of README.md: tests/test_readme.py
ROWS = ("operator", "eager")  # `cbam operator` is a row of a benchmark's table
# What a page takes for granted.
NETWORK = """
import cbam
from PIL import Image
from cbam.cli.main import main
from cbam.models import build_model
folder = "runs/train-photos-resnet18-cbam"
cbam.save_pretrained(
    build_model("resnet20_cbam", 3), folder, "resnet20", class_names=["cat", "dog", "fox"], input_size=(3, 32, 32)
)
for picture in ("cat.jpg", "picture.png"):
    Image.effect_noise((64, 48), 90).convert("RGB").save(picture)
"""
BEFORE = {
    "docs/predict.md": NETWORK,
    "docs/export.md": NETWORK + 'assert main(["export", folder, "--output", "net.onnx"]) == 0',
    "docs/explain.md": """
import cbam, torch
from PIL import Image
from torchvision.models import resnet
class ResNet(resnet.ResNet):
    def __init__(self):
        super().__init__(resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
        self.head = torch.nn.ModuleDict({"cls": torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 3, 3, padding=1)})})
    def forward(self, x):
        return super().forward(self.head.cls.conv(self.head.cls.conv(x)))
model, images = ResNet().eval(), torch.rand(2, 3, 64, 64)
cbam.attach(model, sites=["residual", "head.cls.conv"])
for picture in ("cat.png", "dog.png"):
    Image.effect_noise((64, 64), 90).convert("RGB").save(picture)
class MyGate(torch.nn.Module):
    def __init__(self, in_channels): ...
    def gate(self, x): ...
""",
}
TEXTS = {name(page): page.read_text(encoding="utf-8") for page in PAGES}
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = re.findall(
    r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]")[2], re.M
)


class Parsed(BaseException):
    """The options were read: what the command would do with them is another test."""


def run(snippet: Snippet, names: dict) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet.code, "<page>", "exec"), names)
    return printed.getvalue()


@pytest.mark.parametrize("page", [p for p in TEXTS if p not in (*ELSEWHERE, *SAME) and snippets(TEXTS[p])])
def test_the_python_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch):
    from cbam.nn import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    names: dict = {}
    exec(BEFORE.get(page, ""), names)
    for snippet in snippets(TEXTS[page]):
        printed = run(snippet, names)
        assert snippet.printed is None or printed == snippet.printed


def test_what_runs_elsewhere_runs_there():
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text()
        assert snippets(TEXTS[page]) or "```python" in TEXTS[page]


def fault(words: list[str], capsys) -> str | None:
    """Return what is wrong with a command; None if it could be typed."""
    program, *rest = words
    if program == "make":
        return None if re.search(rf"^{re.escape(rest[0])}:", MAKEFILE, re.M) else f"no make target {rest[0]}"
    if program == "pip":
        missing = [e for wish in rest for e in extras(wish) if e not in EXTRAS]
        return f"no extra {missing}" if missing else None
    if program == "python":
        return python_fault(rest)
    return cbam_fault(rest, capsys)


def extras(wish: str) -> list[str]:
    found = re.search(r"\[(.*)\]", wish)
    return found[1].split(",") if found else []


def python_fault(words: list[str]) -> str | None:
    """Scripts and modules exist, and their options stand in their text."""
    if words[0] in ("-c", "setup.py") or words == ["-m", "build"]:
        return None
    if words[0] == "-m":
        found = importlib.util.find_spec(words[1])
        if found is None:
            return f"no module {words[1]}"
        folder = Path(found.origin)
        text = "".join(file.read_text() for file in ([*folder.parent.glob("*.py")]))
    elif not (ROOT / words[0]).is_file():
        return f"no file {words[0]}"
    else:
        text = "".join(file.read_text() for file in (ROOT / words[0]).parent.rglob("*.py"))
    options = [word for word in words if word.startswith("--")]
    unknown = [o for o in options if o not in text and o[2:].replace("-", "_") not in text]
    return f"{words[0]} has no {unknown}" if unknown else None


def cbam_fault(words: list[str], capsys) -> str | None:
    """The real parser takes the options; what follows the reading is not run."""
    if words[0] not in COMMANDS:
        return f"no command {words[0]}"
    if words == ["doctor"]:
        return None
    try:
        code: object = main(words)
    except Parsed:
        return None
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    return None if code == 0 else f"exit code {code}: {shown.out}{shown.err}"


def mention_fault(words: list[str], capsys) -> str | None:
    """A command that the text names exists, and so do the options that stand behind it."""
    program, *rest = words
    if program != "cbam":
        return fault(words, capsys)
    if rest[0] in ROWS:
        return None
    if rest[0] not in COMMANDS:
        return f"no command {rest[0]}"
    options = [word for word in rest if word.startswith("--")]
    if not options:
        return None
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main([*rest[: 2 if rest[0] == "detect" else 1], "--help"])
    shown = capsys.readouterr().out
    unknown = [option for option in options if not re.search(rf"{option}\b", shown)]
    return f"no option {unknown}" if unknown else None


@pytest.fixture
def only_parse(monkeypatch):
    real = tyro.cli

    def parse(*given, **options):
        real(*given, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("page", TEXTS)
def test_the_commands_can_be_typed(page, only_parse, capsys):
    whole = [] if page == "docs/your-own-attention.md" else commands(TEXTS[page])  # its test runs them
    faults = {" ".join(words): fault(words, capsys) for words in whole}
    faults |= {" ".join(words): mention_fault(words, capsys) for words in mentions(TEXTS[page])}
    assert "\n".join(f"{command}: {what}" for command, what in faults.items() if what) == ""


def test_the_checks_can_fail(only_parse, capsys):
    text = (
        "`cbam trian`, `cbam train --epoch 3`, `make tea`\n"
        "```\npip install '.[tea]'\ncbam tea\npython tea.py\ncbam train --data x --epoch 3\n```\n"
    )
    found = [fault(words, capsys) for words in commands(text)]
    found += [mention_fault(words, capsys) for words in mentions(text)]
    told = [
        "no extra",
        "no command tea",
        "no file",
        "exit code 2",
        "no command trian",
        "no option",
        "no make target",
    ]
    assert [words in (what or "") for words, what in zip(told, found, strict=True)] == [True] * 7
    (snippet,) = snippets("```python\nprint(1)\n```\n\n```\n2\n```\n")
    assert (run(snippet, {}), snippet.printed) == ("1\n", "2\n")


def test_every_page_has_something_to_check():
    assert sum(len([*commands(text), *mentions(text)]) for text in TEXTS.values()) > 150
    assert sum(len(snippets(text)) for text in TEXTS.values()) > 10
