"""The page in a real browser: nothing asked from the network, nothing on the console, nothing too wide."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cbam.compare.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH"),
]

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *(
        "--enable-logging=stderr",
        "--v=0",
        "--window-size=1400,1000",
        "--virtual-time-budget=4000",
        "--dump-dom",
    ),
]

# Headless windows have a least width, frames have none. `srcdoc` keeps the page as it is and lets the script look in.
WRAPPER = """<!doctype html><body style="margin:0">
<iframe id="desktop" style="width:1280px;height:900px;border:0" srcdoc="{page}"></iframe>
<iframe id="phone" style="width:390px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const found = {{}};
  for (const frame of document.querySelectorAll("iframe")) {{
    const root = frame.contentDocument.documentElement;
    const boxes = [...frame.contentDocument.querySelectorAll(".scroll")];
    found[frame.id] = {{
      shown: root.clientWidth,
      wide: root.scrollWidth,
      inside: Math.max(0, ...boxes.map(box => box.scrollWidth - box.clientWidth)),
      images: [...frame.contentDocument.images].filter(image => image.naturalWidth > 0).length,
      figures: [...frame.contentDocument.querySelectorAll("svg")].filter(one => one.getBBox().width > 0).length,
    }};
  }}
  document.documentElement.dataset.found = JSON.stringify(found);
}});
</script>"""


def look(page: str, folder: Path) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Open a page at both widths; return what was measured and what the console said."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(WRAPPER.format(page=html.escape(page)), encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, f"the browser gave no result: {done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found.group(1))), console


def test_the_page_fits_and_is_silent(make_run, tmp_path):
    names = ("T-shirt/top", "averyveryverylongclassnamewithoutanyspaceinit" * 2, "<script>", "d")
    accuracies = {
        "none": (0.9, 0.91),
        "se": (0.9, 0.92),
        "cbam:official": (0.91, 0.92),
        "control": (0.9, 0.9),
    }
    folder = make_run(accuracies, seeds=3, classes=names)
    for name, key in (
        ("data.json", "source"),
        ("data.json", "name"),
        ("env.json", "git"),
        ("env.json", "command"),
    ):
        content = json.loads((folder / name).read_text())
        content[key] = ["a" * 300] if key == "command" else "a" * 300
        (folder / name).write_text(json.dumps(content))
    page = write_report(folder).read_text(encoding="utf-8")
    found, console = look(page, tmp_path)
    assert console == []
    assert {name: seen["shown"] for name, seen in found.items()} == {"desktop": 1280, "phone": 390}
    for name, seen in found.items():
        assert seen["wide"] <= seen["shown"], f"{name}: the page is {seen['wide']} pixels wide"
        assert seen["images"] == 4 + 16
        assert seen["figures"] == 7
    # The phone's tables are wider than the phone, so the boxes around them do their work.
    assert found["phone"]["inside"] > 0


def test_the_look_sees_what_is_too_wide_or_asks_for_something(tmp_path):
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    page = f"<!doctype html>{policy}<div style='width:900px'>wide</div><img src='https://example.org/a.png'>"
    found, console = look(page, tmp_path)
    assert found["phone"]["wide"] > found["phone"]["shown"]
    assert found["desktop"]["wide"] <= found["desktop"]["shown"]
    assert any("Content Security Policy" in line for line in console)
