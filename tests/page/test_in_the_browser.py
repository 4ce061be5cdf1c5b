"""The page of every command in a real browser: on a desktop and a phone, light and dark, by keyboard, and on paper."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH"),
]
DESKTOP, PHONE = 1280, 390
PAPER = 688  # CSS pixels between the margins of A4

# What a look at a page finds; boxes that hide nothing have no `hidden`.
LOOK = """() => {
  const root = document.documentElement, main = document.querySelector("main");
  const padding = parseFloat(getComputedStyle(main).paddingRight);
  const edge = main.getBoundingClientRect().right - padding;
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number); return (r + g + b) / 765; };
  const shown = element => element.checkVisibility() && element.getBoundingClientRect().width > 0;
  const tables = [...document.querySelectorAll("table.sortable")].filter(shown);
  const style = element => getComputedStyle(element);
  return {
    wide: root.scrollWidth,
    paper: light(style(document.body).backgroundColor),
    ink: light(style(document.body).color),
    pictures: [...document.images].filter(shown).map(image => image.naturalWidth),
    figures: [...document.querySelectorAll("svg")].map(svg => svg.getBBox().width),
    edges: tables.map(table => Math.round(table.getBoundingClientRect().right - edge)),
    cut: [...document.querySelectorAll("th, td")].filter(shown)
      .filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent),
    closed: document.querySelectorAll("details:not([open])").length,
    whole: [...document.querySelectorAll("figure, tr, .scroll")].map(part => style(part).breakInside),
    boxes: [...document.querySelectorAll(".scroll")].filter(shown).map(box => ({
      hides: box.scrollWidth - box.clientWidth, fades: style(box).maskImage.includes("gradient"),
    })),
  };
}"""
# Scroll every box to its end: is the first column still there, with a rule above it like the cells beside it?
AT_THE_END = """async () => {
  const found = [];
  for (const box of document.querySelectorAll(".scroll")) {
    if (!box.checkVisibility() || box.scrollWidth <= box.clientWidth) continue;
    box.scrollLeft = box.scrollWidth;
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    const [first, second] = box.querySelector("tbody tr + tr").cells;
    const rule = cell => getComputedStyle(cell).borderTopWidth + getComputedStyle(cell).borderTopStyle;
    found.push({
      fades: getComputedStyle(box).maskImage.includes("gradient"),
      moved: Math.round(first.getBoundingClientRect().left - box.getBoundingClientRect().left),
      rules: [rule(first), rule(second), getComputedStyle(box.querySelector("table")).borderCollapse],
    });
  }
  return found;
}"""
ROWS = "table => [...table.tBodies[0].rows].map(row => row.cells[1].dataset.sort ?? row.cells[1].textContent.trim())"
STATES = "table => [...table.tHead.rows[0].cells].map(cell => cell.getAttribute('aria-sort'))"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, width=DESKTOP, scheme="light", media="screen"):
    """A page in the browser; what it asks for is in `page.asked`, what the console says in `page.said`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.emulate_media(media=media, color_scheme=scheme)
    page.asked, page.said = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda line: page.said.append(line.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(address)
    yield page
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_fits_is_silent_and_follows_the_colour_scheme(browser, file, width, scheme):
    with opened(browser, file.as_uri(), width, scheme) as page:
        found = page.evaluate(LOOK)
        assert [address for address in page.asked if not address.startswith("data:")] == [file.as_uri()]
        assert page.said == []
    assert found["wide"] <= width
    assert min(found["pictures"]) > 0
    assert min(found["figures"]) > 0
    assert (found["paper"] > 0.9, found["ink"] < 0.2) == ((scheme == "light"),) * 2
    if width == DESKTOP:
        assert set(found["edges"]) == {0}, "tables end where the page ends"
        assert not any(box["fades"] for box in found["boxes"])
    else:
        assert all((box["hides"] > 0) == box["fades"] for box in found["boxes"])
        assert any(box["fades"] for box in found["boxes"])


def test_a_table_scrolls_below_its_first_column_and_its_fade_ends(browser, file):
    with opened(browser, file.as_uri(), PHONE) as page:
        for box in page.evaluate(AT_THE_END):
            assert box == {"fades": False, "moved": 0, "rules": ["1pxsolid", "1pxsolid", "separate"]}


def test_the_answer_is_in_sight_on_a_phone(browser, file):
    """The difference to the plain network, for which one opens a report, needs no scrolling."""
    with opened(browser, file.as_uri(), PHONE) as page:
        ends = page.evaluate(
            """() => [...document.querySelectorAll("#accuracy ~ .scroll thead th")]
              .filter(cell => cell.textContent.trim().startsWith("minus")).slice(0, 1)
              .map(cell => cell.getBoundingClientRect().right)"""
        )
    reports = file.name == "report.html"
    assert len(ends) == reports
    assert all(end <= PHONE - 16 for end in ends)


def number(text):
    return float(text) if text not in ("", "–") else float("-inf")


def test_every_table_sorts_by_keyboard(browser, file):
    with opened(browser, file.as_uri()) as page:
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        tables = page.query_selector_all("table.sortable")
        assert tables
        for table in tables:
            buttons = table.query_selector_all("thead button")
            assert len(buttons) == len(table.query_selector_all("thead th"))
            first = sorted(table.evaluate(ROWS))
            buttons[0].focus()
            page.keyboard.press("Tab")
            for key, state, sign in (("Enter", "descending", -1), ("Space", "ascending", 1)):
                page.keyboard.press(key)
                assert table.evaluate(STATES) == [None, state, *[None] * (len(buttons) - 2)]
                shown = table.evaluate(ROWS)
                assert sorted(shown) == first
                if all(text[:1].isdigit() for text in shown):
                    assert shown == sorted(shown, key=lambda text: sign * number(text))


def test_on_paper_it_is_light_and_whole(browser, file):
    with opened(browser, file.as_uri(), PAPER, "dark", "print") as page:
        closed = page.evaluate(LOOK)["closed"]
        assert closed > 0 or "<details" not in file.read_text(encoding="utf-8")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        found = page.evaluate(LOOK)
        assert (found["paper"] > 0.9, found["ink"] < 0.2) == (True, True)
        assert found["closed"] == 0
        assert found["wide"] <= PAPER
        assert set(found["edges"]) == {0}
        assert found["cut"] == []
        assert set(found["whole"]) == {"avoid"}
        assert not any(box["fades"] for box in found["boxes"])
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(LOOK)["closed"] == closed
        page.emulate_media(media=None)
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_look_sees_what_is_wrong(browser, tmp_path):
    file = tmp_path / "page.html"
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    rows = "<tr><td>a</td><td>1</td></tr>" * 2
    file.write_text(
        f"<!doctype html>{policy}<main><div class=scroll style='overflow:auto;width:100px'><table class=sortable "
        f"style='width:900px'><thead><tr><th>a<th>b</thead><tbody>{rows}</tbody></table></div>"
        "<div style='width:900px'>wide</div><img src='https://example.org/a.png'></main>"
    )
    with opened(browser, file.as_uri(), PHONE) as page:
        found = page.evaluate(LOOK)
        assert found["wide"] > PHONE
        assert found["pictures"] in ([0], [])
        assert found["edges"] != [0]
        assert found["boxes"] == [{"hides": 800, "fades": False}]
        assert page.evaluate(AT_THE_END)[0]["moved"] < 0
        assert any("Content Security Policy" in line for line in page.said)
