"""The pages of the manual, and what is in their fenced blocks: Python, its printed output, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (*ROOT.glob("README*.md"), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks/README.md")
    if "decisions" not in path.parts
]  # fmt: skip
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
SHELL = ("", "bash", "console")
INLINE = re.compile(r"`((?:cbam|torchrun|python|make|pip) [^`]*)`")


@dataclass(frozen=True)
class Snippet:
    """A block of Python, and what it prints where the next block says so."""

    code: str
    printed: str | None


def name(page: Path) -> str:
    """Return a page's path from the root."""
    return page.relative_to(ROOT).as_posix()


def snippets(text: str) -> list[Snippet]:
    """Return the Python blocks of a page; a block without a language right behind one is its output."""
    found = list(BLOCK.finditer(text))
    after = {block.start(): block for block in found}
    result = []
    for block in found:
        if block[1].split() == ["python"]:
            rest = len(text[block.end() :]) - len(text[block.end() :].lstrip("\n"))
            output = after.get(block.end() + rest)
            result.append(Snippet(block[2], output[2] if output and output[1] == "" else None))
    return result


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command in the blocks of a page."""
    for block in BLOCK.finditer(text):
        if block[1] in SHELL:
            lines = re.sub(r"\\\n\s*", " ", block[2])
            for variable, value in re.findall(r"^(\w+)=[\"']?(.*?)[\"']?$", lines, re.M):
                lines = lines.replace(f"${variable}", value)
            yield from filter(None, map(_words, lines.splitlines()))


def mentions(text: str) -> Iterator[list[str]]:
    """Yield the words of every command that the text names, whole or in part."""
    yield from filter(None, map(_words, INLINE.findall(" ".join(BLOCK.sub("", text).split()))))


def _words(line: str) -> list[str]:
    """Return the words from our command on; none if there is none."""
    line = re.sub(r"^\s*(\$ |exec |until )", "", line)
    line = re.sub(r"^(\w+=\S+ )+", "", line)
    line = re.sub(r"^(srun .*)?torchrun .*-m cbam ", "cbam ", line)
    if not re.match(r"(cbam|python|make|pip) ", line) or re.match(r"cbam \(", line):
        return []
    line = line.removesuffix("'") if line.count("'") % 2 else line  # the last line of `bash -c '...'`
    words = []
    for word in shlex.split(line, comments=True):
        if word.removesuffix(";") in (">", "|", "&&", "..."):
            break
        words.append(word.removesuffix(";"))
        if word.endswith(";"):
            break
    return words
