"""Lay out the manual for Sphinx: the pages as they are in the repository, their links turned to where they go.

    python docs/site/stage.py build/docs-source

A page of docs/ that is in no section below goes under "More". Links that lead nowhere are named; the exit code
is then 1.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "Start": ["quick-start", "tutorial", "comparing", "reading-the-report"],
    "Your network": [
        "sites",
        "adding-attention",
        "yolo",
        "unet",
        "your-own-attention",
        "presets",
        "checkpoints",
    ],
    "Train": ["training", "data", "augmentation", "metrics", "detection", "paper", "scale"],
    "Use": ["predict", "explain", "export", "troubleshooting"],
    "Cost": ["speed", "operator", "benchmarks"],
    "Reference": ["api/index", "glossary", "zoo", "results/index", "decisions/index"],
    "Project": ["contributing", "releasing", "changelog", "简体中文 <zh>"],
}
# Pages that lie outside docs/, or are made here: path in the repository -> page.
OUTSIDE = {
    "README.md": "index.md",
    "README.zh-CN.md": "zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\]|`[^`]*`)*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
# Parts of the package that have no reference of their own.
INNER = ("cbam.cli", "cbam.__main__", "cbam.ops.triton", "cbam.demo")
MEMBERS = {"class": "   :members:\n", "exception": "", "function": ""}
TITLES = {"cbam": "cbam: the names to use"}


def pages() -> dict[str, str]:
    """Return {path in the repository: page} of every page."""
    own = (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))
    return OUTSIDE | {path: path.removeprefix("docs/") for path in own if not path.startswith("docs/site/")}


def linked(target: str, here: str, page: str, folder: Path, staged: dict[str, str]) -> str | None:
    """Return what a link of a page becomes: a page, a copied file, or None for a folder of the repository.

    Raises:
        FileNotFoundError: it leads nowhere.
    """
    path, _, anchor = target.partition("#")
    found = os.path.normpath(Path(here).parent / path)
    indexes = {"docs/decisions": "decisions/index.md", "docs/results": "results/index.md"}
    for name in (found, f"{found}/README.md"):
        to = staged.get(name) or indexes.get(name)
        if to:
            way = os.path.relpath(to, Path(page).parent)
            return f"{way}#{anchor}" if anchor else way
    if not (ROOT / found).exists():
        raise FileNotFoundError(f"{here} links to {target}, which is not there")
    if (ROOT / found).is_dir():
        return None
    copy = folder / "files" / found
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / found, copy)
    return os.path.relpath(copy, (folder / page).parent)


def translated(text: str, here: str, page: str, folder: Path, staged: dict[str, str], lost: list[str]) -> str:
    """Return a page's text with its links turned; blocks of code stay, and links to nothing are added to `lost`."""

    def turn(link: re.Match[str]) -> str:
        image, title, target = link.groups()
        if re.match(r"(https?:|mailto:|#)", target):
            return link[0]
        try:
            to = linked(target, here, page, folder, staged)
        except FileNotFoundError as error:
            lost.append(str(error))
            to = None
        return title if to is None else f"{image}[{title}]({to})"

    def prose(part: str) -> str:
        return re.sub(r"^%", r"\%", LINK.sub(turn, part), flags=re.M)  # to MyST, % begins a comment

    return "".join(part if part.startswith("```") else prose(part) for part in FENCE.split(text))


def toctree(entries: list[str], caption: str = "", options: str = "") -> str:
    """Return a table of contents for Sphinx."""
    head = f":caption: {caption}\n" if caption else ""
    return "\n```{toctree}\n" + head + options + "\n" + "\n".join(entries) + "\n```\n"


def contents(staged: dict[str, str]) -> str:
    """Return the site's tables of contents, of the pages that are there."""
    there = {page.removesuffix(".md") for page in staged.values()} | {
        "api/index", "glossary", "results/index", "decisions/index"
    }  # fmt: skip
    listed = {_page(entry) for section in SECTIONS.values() for entry in section}
    more = sorted(page for page in there - listed - {"index"} if "/" not in page)
    sections = {**SECTIONS, **({"More": more} if more else {})}
    return "".join(
        toctree([page for page in found if _page(page) in there], caption, ":hidden:\n")
        for caption, found in sections.items()
    )


def _page(entry: str) -> str:
    return entry.partition("<")[2].rstrip(">") or entry


def index_of(folder: str, title: str, staged: dict[str, str]) -> str:
    """Return the page that lists a folder's pages."""
    inside = sorted(
        os.path.relpath(page.removesuffix(".md"), folder)
        for page in staged.values()
        if page.startswith(f"{folder}/")
    )
    return f"# {title}\n" + toctree(inside, options=":maxdepth: 1\n")


def glossary() -> str:
    """Return the glossary, which stands in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Glossary\n")[2]
    return "# Glossary\n" + re.split(r"^## ", text, maxsplit=1, flags=re.M)[0]


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield name and syntax tree of the modules that have a reference."""
    for path in sorted((ROOT / "src/cbam").rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not name.startswith(INNER) and not any(part.startswith("_") for part in name.split(".")):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def public(tree: ast.Module) -> list[str]:
    """Return a module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def defines_something(tree: ast.Module) -> bool:
    """Whether a module has public classes or functions of its own."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in tree.body)


def write_reference(folder: Path) -> None:
    """Write a page for the package's own names, and one for each of its parts."""
    found = dict(modules())
    parts = sorted({".".join(name.split(".")[:2]) for name in found} - {"cbam"})
    kept = []
    for part in ["cbam", *parts]:
        title = TITLES.get(part, part)
        text = f"{title}\n{'=' * len(title)}\n\n"
        if part == "cbam":
            names = [n for n in public(found["cbam"]) if n not in ("functional", "__version__")]
            text += "".join(f".. auto{kind(name)}:: cbam.{name}\n{MEMBERS[kind(name)]}\n" for name in names)
        else:
            inside = [name for name in found if name == part or name.startswith(f"{part}.")]
            inside = [name for name in inside if name == part or defines_something(found[name])]
            if not any(defines_something(found[name]) for name in inside):
                continue
            text += "".join(
                described(name, found[name], name == part, public(found["cbam"])) for name in inside
            )
        kept.append(part)
        (folder / f"{part}.rst").write_text(text, encoding="utf-8")
    head = "API reference\n=============\n\n.. toctree::\n   :maxdepth: 1\n\n"
    (folder / "index.rst").write_text(head + "".join(f"   {part}\n" for part in kept), encoding="utf-8")


def described(name: str, tree: ast.Module, whole: bool, elsewhere: list[str]) -> str:
    """Return a module's part of a page: what is defined in it, but for what the package's own page has."""
    title = "" if whole else f"{name}\n{'-' * len(name)}\n\n"
    # `cbam.attach` is the function, which the package's own page has, and the module behind it.
    index = "   :no-index:\n" if name.removeprefix("cbam.") in elsewhere else ""
    if not defines_something(tree):
        return f"{title}.. automodule:: {name}\n{index}\n"
    own = {getattr(node, "name", "") for node in tree.body}
    there = ", ".join(sorted(own & set(elsewhere)))
    return f"{title}.. automodule:: {name}\n   :members:\n   :exclude-members: {there}\n{index}\n"


def kind(name: str) -> str:
    """Return what a name of the package is, by how it is written.

    >>> kind("CBAM"), kind("CBAMError"), kind("attach")
    ('class', 'exception', 'function')
    """
    return "exception" if name.endswith("Error") else "class" if name[0].isupper() else "function"


def stage(folder: Path) -> list[str]:
    """Write everything that Sphinx reads into a folder, which is emptied first; return the links that lead nowhere."""
    shutil.rmtree(folder, ignore_errors=True)
    staged, lost = pages(), list[str]()
    for here, page in staged.items():
        text = translated((ROOT / here).read_text(encoding="utf-8"), here, page, folder, staged, lost)
        to = folder / page
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text + contents(staged) if page == "index.md" else text, encoding="utf-8")
    (folder / "glossary.md").write_text(glossary(), encoding="utf-8")
    (folder / "results/index.md").write_text(index_of("results", "Results", staged), encoding="utf-8")
    (folder / "decisions/index.md").write_text(index_of("decisions", "Decisions", staged), encoding="utf-8")
    (folder / "api").mkdir()
    write_reference(folder / "api")
    shutil.copytree(ROOT / "docs/site/static", folder / "static")
    return lost


if __name__ == "__main__":
    sys.exit("\n".join(stage(Path(sys.argv[1]))) or None)
