"""Matplotlib figures as inline SVG whose colours follow the page, light or dark."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 400.0
"""Width of a figure in its own units; one unit is about one pixel on a phone."""

# Variant -> (colour on a light page, colour on a dark page, marker, line style). Networks without attention have no
# hue. The four of every comparison differ for colour-blind readers too, SE and control even in print, and every colour
# has a contrast of at least 4.5 on its page (tests compute it).
LOOKS: dict[str, tuple[str, str, str, Any]] = {
    "none": ("#6c7380", "#8f98a5", "o", "-"),
    "se": ("#b84a00", "#ff9a5c", "^", "-"),
    "cbam": ("#0a67b3", "#62b4f6", "D", "-"),
    "control": ("#23262b", "#f4f5f7", "s", (0, (4, 1.6))),
    "cbam:official": ("#7639c0", "#bb98f5", "v", "-"),
    "cbam:timm": ("#007a82", "#48c6ce", "P", "-"),
    "channel": ("#1b7a48", "#62d092", "<", "-"),
    "spatial": ("#b12c73", "#f487ba", ">", "-"),
    "cbam:fresh": ("#0d7d6c", "#4fd0b8", "p", (0, (3, 1.2, 1, 1.2))),
}
OTHER_LOOK = ("#444444", "#c8c8c8", "X", ":")
_BORROWED = [name for name in LOOKS if name not in ("none", "control")]
_MARKERS = "XhdH*8"
_VARIANT = re.compile(r"[a-z][a-z0-9_]*(:.*)?")  # the form of a variant's name

# Colours that no figure uses otherwise; they become CSS variables in the page.
INK, MUTED, GRID = "#0a0b01", "#0a0b02", "#0a0b03"
_ROLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}


@dataclass(frozen=True)
class Look:
    """How a variant is drawn; `colour` is a placeholder that `inline_svg` turns into a CSS variable."""

    colour: str
    marker: str
    line: Any


def css_name(variant: str) -> str:
    """Return the CSS variable of a variant's colour.

    >>> css_name("cbam:official"), css_name("not a variant")
    ('--v-cbam-official', '--v-other')
    """
    return f"--v-{_stand_in(variant).replace(':', '-')}"


def _stand_in(variant: str) -> str:
    """Return the variant whose colour is used: itself, or one of LOOKS if it has no colour of its own."""
    if variant in LOOKS or variant == "other":
        return variant
    # By name, not by position in a run, so that a network has one colour on every page. By the name's form, not by the
    # registry, because a report may be rewritten without the modules that were imported for the run.
    return (
        _BORROWED[zlib.crc32(variant.encode()) % len(_BORROWED)] if _VARIANT.fullmatch(variant) else "other"
    )


def look(variant: str) -> Look:
    """Return the marker, line and placeholder colour of a variant."""
    stand_in = _stand_in(variant)
    _, _, marker, line = LOOKS.get(stand_in, OTHER_LOOK)
    if stand_in not in (variant, "other"):
        marker, line = _MARKERS[zlib.crc32(variant.encode()) // 64 % len(_MARKERS)], ":"
    position = list(LOOKS).index(stand_in) if stand_in in LOOKS else len(LOOKS)
    return Look(f"#0a0c{position:02x}", marker, line)


@contextmanager
def canvas(height: float, left: float, right: float, bottom: float = 34, top: float = 8) -> Iterator[Axes]:
    """Give empty axes on a transparent figure of `WIDTH` x `height`, with margins in the same units."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "cbam",
        "text.parse_math": False,
        "font.size": 11.5,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.unicode_minus": True,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        box = (
            left / WIDTH,
            bottom / height,
            (WIDTH - left - right) / WIDTH,
            (height - bottom - top) / height,
        )
        axes = figure.add_axes(box)
        axes.patch.set_visible(False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelsize=11)
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        yield axes


def inline_svg(axes: Axes, name: str, description: str) -> Markup:
    """Return the figure as SVG to be put into a page.

    Args:
        axes: made by `canvas`, drawn, and still inside its `with` block.
        name: short and unique in the page; it keeps the ids of several figures apart.
        description: the text alternative, for readers who cannot see the figure.
    """
    stream = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text: the browser has the glyphs of any language, whatever matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        axes.get_figure().savefig(stream, format="svg", transparent=True, metadata={"Date": None})  # type: ignore[union-attr]
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    label = escape(description, quote=True)
    opening = f'<svg {view.group() if view else ""} role="img" aria-label="{label}">'
    text = opening + text[text.index(">") + 1 :]
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for placeholder, variable in _ROLES.items():
        text = text.replace(placeholder, variable)
    for variant in (*LOOKS, "other"):
        text = text.replace(look(variant).colour, f"var({css_name(variant)})")
    return Markup(text)


def spread_labels(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours are at least `gap` from each other, keeping their order and the centre.

    >>> [round(y, 2) for y in spread_labels([0.5, 0.5, 0.1], 0.1, 0.0, 1.0)]
    [0.45, 0.55, 0.1]
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    groups: list[tuple[float, list[int]]] = []
    for index in order:
        groups.append((positions[index], [index]))
        while len(groups) > 1:
            (below, lower), (above, upper) = groups[-2:]
            if above - below >= gap * (len(lower) + len(upper)) / 2 - 1e-12:
                break
            members = lower + upper
            groups[-2:] = [((below * len(lower) + above * len(upper)) / len(members), members)]
    moved = [0.0] * len(positions)
    for centre, members in groups:
        half = gap * (len(members) - 1) / 2
        centre = min(max(centre, low + half), high - half)
        for rank, index in enumerate(members):
            moved[index] = centre - half + rank * gap
    return moved


def shortened(text: str, longest: int = 20) -> str:
    """Cut a long name for a figure; the tables show it in full.

    >>> shortened("a very long class name indeed")
    'a very long class n…'
    """
    flat = "".join(letter if letter.isprintable() else " " for letter in text)
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"
