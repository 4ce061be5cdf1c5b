"""What holds for the page of every command, by its text alone; tests/page/test_in_the_browser.py looks at it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re

import numpy as np
import pytest

from cbam.page.drawing import LOOKS, OTHER_LOOK
from tests.page.kinds import EVIL
from tests.page.parsed import Page

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"


@pytest.fixture(scope="module")
def page(file):
    return Page(file.read_text(encoding="utf-8"))


def test_is_well_formed(page):
    assert page.unbalanced == []
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page.source))
    assert used <= set(ids)


def test_needs_no_network(page):
    """No element may load anything: every address is a data URI or a place in the page; the one script is ours."""
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "video", "audio")
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                assert (value or "").startswith(("data:image/", "#")), f"{tag} {name}={value[:60]}"
    assert not re.search(r"@import|https?:|//[a-z]+\.", re.sub(r"base64,[^\"]*", "", page.source))
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
    assert page.all("script") == [{}]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    policies = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policies == [POLICY.format(digest)]


def test_names_are_escaped(page):
    assert EVIL in page.text
    assert EVIL not in page.source
    assert not page.all("b")


def test_everything_has_a_text_alternative(page):
    assert page.all("img")
    assert page.all("svg")
    assert all(image["alt"].strip() for image in page.all("img"))
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in page.all("svg"))
    assert all(bar["aria-label"] for bar in page.all("span") if bar.get("role") == "img")
    assert dict(page.elements)["html"]["lang"] == "en"
    assert re.search(r"<title>[^<]{10,}</title>", page.source)


def test_every_table_has_headings_sorts_and_can_be_scrolled_by_keyboard(page):
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    tables = [table for table in page.all("table") if table != {"class": "top"}]  # the five likeliest classes
    assert tables
    assert all(table == {"class": "sortable"} for table in tables)
    boxes = page.all("div", "scroll")
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)
    assert len(boxes) == len(tables)


def test_figures_follow_the_colour_scheme(page):
    figures = "".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    assert "var(--ink)" in figures
    assert "var(--v-cbam)" in figures
    assert not re.findall(r"#[0-9a-f]{6}\b", figures)


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_formula():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


# What colours become for eyes without one kind of cone (Machado et al. 2009, severity 1), and in print without colour.
SEEN = {
    "protanopia": ((0.1523, 1.0526, -0.2049), (0.1145, 0.7863, 0.0992), (-0.0039, -0.0481, 1.0520)),
    "deuteranopia": ((0.3673, 0.8606, -0.2280), (0.2801, 0.6725, 0.0474), (-0.0118, 0.0429, 0.9689)),
    "tritanopia": ((1.2555, -0.0767, -0.1788), (-0.0784, 0.9308, 0.1476), (0.0047, 0.6914, 0.3039)),
    "grey": ((0.2126, 0.7152, 0.0722),) * 3,
}


def distance(one, other, seen):
    """The distance in CIELAB, of which about 2 is just noticed side by side."""
    from skimage.color import rgb2lab

    points = []
    for colour in (one, other):
        linear = np.array([luminance(f"#{colour[place : place + 2] * 3}") for place in (1, 3, 5)])
        changed = np.clip(np.array(SEEN[seen]) @ linear, 0, 1)
        encoded = np.where(changed <= 0.0031308, 12.92 * changed, 1.055 * changed ** (1 / 2.4) - 0.055)
        points.append(rgb2lab(encoded))
    return float(np.linalg.norm(points[0] - points[1]))


@pytest.mark.parametrize("position", [0, 1], ids=["light", "dark"])
def test_the_four_of_every_comparison_differ_for_every_eye(position):
    assert distance("#b84a00", "#826600", "protanopia") < 6, "SE and control once looked the same"
    for one, other in itertools.combinations(("none", "se", "cbam", "control"), 2):
        for seen in ("protanopia", "deuteranopia", "tritanopia"):
            assert distance(LOOKS[one][position], LOOKS[other][position], seen) > 20, (one, other, seen)
    assert distance(LOOKS["se"][position], LOOKS["control"][position], "grey") > 20, "in print"


@pytest.mark.parametrize(("scheme", "position"), [("light", 0), ("dark", 1)])
def test_text_and_labels_have_contrast(page, scheme, position):
    block = re.findall(r":root \{(.*?)\}", page.source, flags=re.DOTALL)[position]
    colours = dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6})", block))
    assert len(colours) == 7 + len(LOOKS) + 1
    assert colours["--v-cbam"] == LOOKS["cbam"][position]
    assert colours["--v-other"] == OTHER_LOOK[position]
    for name, colour in colours.items():
        if name not in ("--page", "--box", "--grid"):
            assert contrast(colour, colours["--page"]) >= 4.5, (scheme, name)
    assert contrast(colours["--muted"], colours["--box"]) >= 4.5
    assert contrast(colours["--ink"], colours["--box"]) >= 7
