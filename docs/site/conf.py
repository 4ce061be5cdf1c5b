"""Sphinx's settings for the pages that `stage.py` lays out."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]
_formulas = importlib.util.spec_from_file_location("formulas", HERE / "formulas.py")
formulas = importlib.util.module_from_spec(_formulas)
_formulas.loader.exec_module(formulas)

project = "torch-cbam"
author = "The torch-cbam authors"
project_copyright = "the torch-cbam authors, MIT licence"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["files"]
html_theme = "furo"
html_title = "torch-cbam"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#9a3412", "color-brand-content": "#9a3412"},
    "dark_css_variables": {"color-brand-primary": "#fdba74", "color-brand-content": "#fdba74"},
}
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "friendly", "github-dark"
highlight_language = "none"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
# A page of results may go from # to ###; short names of types, such as Plan, mean several things.
suppress_warnings = ["myst.header", "ref.python"]
default_role = "py:obj"  # `CBAM` in a docstring is a link where there is such a thing, otherwise code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_custom_sections = ["Shape"]
napoleon_use_ivar = True
toc_object_entries = False
SHORT = 18  # characters of code that fit a line of a phone
NUMBER = re.compile(r"[-+\d.e%×± x]*\d[-+\d.e% ]*( [A-Za-z]{1,3})?")


def put_formula(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Put the formula of a class or function behind its first sentence."""
    formula = formulas.FORMULAS.get(name)
    if formula and lines:
        end = lines.index("") if "" in lines else len(lines)
        lines[end:end] = ["", ".. math::", "", *(f"   {line}" for line in formula.strip().splitlines()), ""]


def escape(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: take the other marks of reStructuredText as letters."""
    example = False
    for number, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if not example:
            lines[number] = "".join(map(_escaped, re.split(r"(`[^`]+`)", line)))
            lines[number] = re.sub(r": (\w\.)$", r": \\\1", lines[number])  # "C." is no list from C on
            after = lines[number + 1 : number + 3]
            if line.endswith(":") and len(after) == 2 and not after[0] and _indent(after[1]) > _indent(line):
                lines[number] += ":"  # code follows


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escaped(part: str) -> str:
    if re.fullmatch(r"`[\w.]+`", part):
        return f"{part}\\ "  # a letter may follow
    if part.startswith("`") and part.endswith("`") and len(part) > 2:
        return f"`{part}`\\ "
    return re.sub(r"(?<!:)([*|`]|_\b)", r"\\\1", part)


def whole_sentence(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Put back what napoleon took for a property's type: its sentence up to a colon; the type is in the signature."""
    taken = [number for number, line in enumerate(lines) if line.startswith(":type: ")]
    if what == "property" and taken:
        lines[0] = f"{lines.pop(taken[0]).removeprefix(':type: ')}: {lines[0]}"


def keep_whole(app: Any, tree: nodes.document, page: str) -> None:
    """Mark what must not break at its hyphens: short code, and numbers and dates in tables."""
    short = [node for node in tree.findall(nodes.literal) if len(node.astext()) <= SHORT]
    numbers = [node for node in tree.findall(nodes.entry) if NUMBER.fullmatch(node.astext())]
    for node in (*short, *numbers):
        node["classes"].append("whole")


def visit_math(self: Any, node: nodes.math) -> None:
    """Write the formula as MathML, which browsers draw themselves: no script, no network."""
    block = isinstance(node, nodes.math_block)
    tree = latex2mathml.tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="math">{tree}</div>' if block else str(tree))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Connect what is above."""
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", put_formula)
    app.connect("autodoc-process-docstring", whole_sentence, priority=600)  # behind napoleon
    app.connect("doctree-resolved", keep_whole)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
