"""The words of code and pages: retired names do not come back, and lines of Markdown stay short.

CONTRIBUTING has the glossary. Each failure lists file, line and word.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "csrc", "docs", "benchmarks", "recipes")
PAGES = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
KINDS = {".py", ".md", ".h", ".cpp", ".yaml", ".html", ".css", ".js", ".toml", ""}

# What must not be written -> what to write.
RETIRED = {
    r"perceptrons?": "MLP",
    r"sweeps?": "pass (of a kernel); grid (of options)",
    r"fuse_tail": "fuse_epilogue",
    r"(attend_|with_)tail|WithTail|BlockTail": "epilogue",
    r"blocks?['’]s? end|end of the block": "epilogue",
    r"rivals?": "baseline",
    r"contests?": "comparison",
    r"dialects?": "preset (of CBAM); format (of checkpoints)",
    r"obstacles?": "unavailable_reason()",
    r"AddressedDataset": "EpochIndexDataset",
    r"(?<!_)(untouched|telling|words|checked|own)\.py": "the new file names",
    r"says? no": "refuse",
    r"the words behind|by (its|their) words|is told|are told|takes in the": "plain English",
}
# File, word, why it may stay there.
ALLOWED = (
    ("src/cbam/pretrained/*.py", "fuse_tail", "read from config.json files written before the rename"),
    *(
        ("CHANGELOG.md", word, "the table of what was renamed")
        for word in ("fuse_tail", "WithTail", "dialect", "DIALECTS", "AddressedDataset")
    ),
)
STORED = ("cbam.dialect",)  # keys of files that exist
WIDTH = 120
# Pages whose table rows may be wider, as Markdown cannot break a row: results with spread and interval in every column,
# written by a script; and one option, format or source with its explanation in a row.
WIDE_TABLES = (
    "README.md", "README.zh-CN.md", "docs/quick-start.md", "docs/presets.md", "docs/paper.md", "docs/releasing.md",
    "docs/results/ablations.md", "docs/results/bench.md", "docs/results/depth.md", "docs/results/fine-tuning.md",
    "docs/results/gpu/README.md", "docs/results/gpu/instructions.md", "docs/results/gpu/instructions-before.md",
    "docs/checkpoints.md", "docs/data.md", "docs/sites.md", "benchmarks/README.md",
    "docs/results/where-it-looks.md", "docs/results/insertion.md",
    "docs/results/export-int8.md",
)  # fmt: skip


def texts(root=ROOT):
    files = [root / page for page in PAGES]
    files += [file for folder in FOLDERS for file in sorted((root / folder).rglob("*"))]
    return [
        file
        for file in files
        if file.is_file() and file.suffix in KINDS and not re.search(r"__pycache__|\.egg-info", str(file))
    ]


def pages(root=ROOT):
    return [file for file in texts(root) if file.suffix == ".md"]


def offenders(files, root=ROOT, retired=RETIRED, allowed=ALLOWED):
    """Yield "file:line: word (write: ...)" for each retired word."""
    pattern = re.compile(
        "|".join(rf"(?P<w{n}>(?<![a-zA-Z]){word}(?![a-zA-Z]))" for n, word in enumerate(retired)),
        re.IGNORECASE,
    )
    instead = list(retired.values())
    for file in files:
        name = file.relative_to(root).as_posix()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for key in STORED:
                line = line.replace(key, "")
            for found in pattern.finditer(line):
                if not any(fnmatchcase(name, where) and found[0] == word for where, word, _ in allowed):
                    yield f"{name}:{number}: {found[0]} (write: {instead[int(found.lastgroup[1:])]})"


def wide_lines(file, name):
    """Yield "file:line: length" for lines that are too long; rows of WIDE_TABLES may be."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if len(line) > WIDTH and not (name in WIDE_TABLES and line.startswith("|")):
            yield f"{name}:{number}: {len(line)}"


def test_no_retired_word_is_left():
    found = list(offenders(texts()))
    assert not found, "\n".join(["", *found])


def test_lines_of_markdown_are_short():
    found = [line for file in pages() for line in wide_lines(file, file.relative_to(ROOT).as_posix())]
    assert not found, "\n".join(["", *found])


def test_there_is_something_to_read():
    names = {file.relative_to(ROOT).as_posix() for file in texts()}
    assert {"README.md", "csrc/forward.cpp", "src/cbam/__init__.py", "docs/training.md"} <= names
    assert set(WIDE_TABLES) <= names


@pytest.mark.parametrize(
    "line", ["the Dialect of", "rival_rows = 1", "A sweep", "with_tail(x)", "a block's end", "Contest()"]
)
def test_a_retired_word_is_found(tmp_path, line):
    (tmp_path / "page.md").write_text(f"first\n{line}\n")
    (found,) = offenders([tmp_path / "page.md"], tmp_path)
    assert found.startswith("page.md:2: ")


def test_other_words_and_allowed_ones_are_not_found(tmp_path):
    (tmp_path / "page.py").write_text("arrival, dialectic, contested: fuse_tail\n")
    assert not list(offenders([tmp_path / "page.py"], tmp_path, allowed=(("*.py", "fuse_tail", "old"),)))


def test_a_wide_line_is_found_unless_it_is_a_row_of_a_wide_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{'x' * 121}\n| {'x' * 121} |\n{'x' * 120}\n")
    assert list(wide_lines(page, "docs/page.md")) == ["docs/page.md:1: 121", "docs/page.md:2: 125"]
    assert list(wide_lines(page, WIDE_TABLES[0])) == [f"{WIDE_TABLES[0]}:1: 121"]
