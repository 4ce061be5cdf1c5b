"""`cbam demo` in a real browser: what it shows is what the library computes, and nothing comes from outside."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import struct
import threading
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.attach.networks import randomised_gates

import cbam
from cbam.errors import CBAMError
from cbam.explain.overlay import enlarged, overlay, painted
from cbam.models import build_model

pytest.importorskip("gradio")
client = pytest.importorskip("gradio_client")

from cbam.demo.networks import prepare  # noqa: E402
from cbam.demo.serve import serving  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ["cat <b>&", "dog", "cow"]
USERS = 10


def photograph(seed=0, size=(50, 40)):
    values = np.random.default_rng(seed).integers(0, 255, (5, 4, 3), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    attended = build_model("resnet20_cbam", 3).eval()
    randomised_gates(attended)
    plain = build_model("resnet20", 3).eval()
    form = {"image_size": 32, "mean": (0.5,), "std": (0.2,)}
    return [prepare("with CBAM", attended, NAMES, **form), prepare("plain", plain, NAMES, **form)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A picture for each user, a text file and a decompression bomb, both called a picture."""
    folder = tmp_path_factory.mktemp("files")
    for user in range(USERS):
        photograph(user).save(folder / f"{user}.png")
    (folder / "text.png").write_text("no picture")

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    (folder / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    return folder


@pytest.fixture(scope="module")
def address(networks, files):
    with serving(networks, examples=[files / "1.png", files / "2.png"]) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, opened; everything that it asks for is in `page.asked`, what went wrong in `page.wrong`."""
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda line: page.wrong.append(line.text) if line.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("#results .message")
    yield page
    page.close()


def give(page, file):
    with page.expect_file_chooser() as chooser:
        page.click("#upload button")
    chooser.value.set_files(str(file))


def shown(page, which):
    """The pixels of a picture on the page."""
    return pixels(page.get_attribute(f"#results img.{which}", "src"))


def pixels(uri):
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def expected(networks, user, title="with CBAM", **options):
    """What `cbam.explain` says of a user's picture, computed apart."""
    (network,) = [each for each in networks if each.title == title]
    form = {"image_size": 32, "mean": [0.5], "std": [0.2]}
    found = cbam.explain(network.model, photograph(user), class_names=NAMES, **form, **options)
    ((view,),) = found.views.values()
    return found, view


def choose(page, element, text):
    """Choose from a drop-down list with the keyboard."""
    field = page.locator(f"#{element} input")
    field.click()
    field.fill(text)
    field.press("Enter")


class TestInTheBrowser:
    def test_a_visit(self, page, networks, files, address):
        """Load, upload, switch attention off and on, choose site, class and network."""
        give(page, files / "0.png")
        page.wait_for_selector("#results img.cam")
        found, view = expected(networks, 0)
        assert np.array_equal(shown(page, "cam"), np.asarray(overlay(found.crops[0], view.heat)))
        assert np.array_equal(shown(page, "input"), np.asarray(enlarged(found.crops[0])))
        assert found.class_names[found.labels[0]] in page.inner_text("#results .says")
        shares = [f"{100 * share:.1f} %" for share in sorted(view.probabilities, reverse=True)]
        assert [
            text.replace("\xa0", " ") for text in page.locator("#results .share").all_inner_texts()
        ] == shares
        assert page.locator("#results b b").count() == 0  # names are text

        last = list(view.gates)[-1]
        assert page.input_value("#site input") == last
        assert np.array_equal(shown(page, "mask"), mask(view, last))
        page.click("#back")
        before = list(view.gates)[-2]
        page.wait_for_selector(f"#results img.mask[alt$='{before}']")
        assert page.input_value("#site input") == before
        assert np.array_equal(shown(page, "mask"), mask(view, before))
        assert f"{view.gates[before].spatial.max():.3f}" in page.inner_text("#results .pictures")

        page.click("#attention input")
        page.wait_for_selector("#results img.mask", state="detached")
        with cbam.disabled(networks[0].model):
            found, off = expected(networks, 0)
        assert "with its attention off" in page.inner_text("#results .says")
        assert np.array_equal(shown(page, "cam"), np.asarray(overlay(found.crops[0], off.heat)))
        assert not np.array_equal(off.heat, view.heat)
        page.click("#attention input")
        page.wait_for_selector("#results img.mask")
        assert np.array_equal(shown(page, "cam"), np.asarray(overlay(found.crops[0], view.heat)))

        other = (found.labels[0] + 1) % 3
        choose(page, "label", NAMES[other])
        page.wait_for_function(
            "name => document.querySelector('#results img.cam').alt.endsWith(name)", arg=NAMES[other]
        )
        found, view = expected(networks, 0, label=other)
        assert np.array_equal(shown(page, "cam"), np.asarray(overlay(found.crops[0], view.heat)))

        choose(page, "network", "plain")
        page.wait_for_function("document.querySelector('#results .says').innerText.includes('plain')")
        found, view = expected(networks, 0, "plain")
        assert np.array_equal(shown(page, "cam"), np.asarray(overlay(found.crops[0], view.heat)))
        assert page.is_disabled("#attention input")
        assert not page.is_checked("#attention input")
        assert page.wrong == []
        assert outside(page.asked, address) == []

    def test_examples_and_files_that_are_no_pictures(self, page, networks, files, address):
        give(page, files / "text.png")
        page.wait_for_selector("#results [role=alert]")
        assert "text.png: not a readable image" in page.inner_text("#results")
        page.click("#examples button >> nth=1")
        page.wait_for_selector("#results img.cam")
        found, view = expected(networks, 2)
        assert np.array_equal(shown(page, "cam"), np.asarray(overlay(found.crops[0], view.heat)))
        page.click("#upload button[aria-label='Remove Image']")
        page.wait_for_selector("#results .message")
        give(page, files / "bomb.png")
        page.wait_for_selector("#results [role=alert]")
        assert "bomb.png: too many pixels" in page.inner_text("#results")
        assert outside(page.asked, address) == []

    def test_on_a_telephone(self, page, files):
        page.set_viewport_size({"width": 390, "height": 800})
        give(page, files / "0.png")
        page.wait_for_selector("#results img.cam")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#results img.cam").bounding_box()["width"] > 150


def mask(view, site):
    """The mask of a site, on the scale of all masks of its size."""
    same = [
        gates.spatial
        for gates in view.gates.values()
        if gates.spatial.shape == view.gates[site].spatial.shape
    ]
    low, high = min(each.min() for each in same), max(each.max() for each in same)
    return np.asarray(painted((view.gates[site].spatial - low) / (high - low), (160, 160)))


def outside(asked, address):
    return [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def connect(address):
    return client.Client(address, verbose=False)


def ask(user, file, title="with CBAM", attention=True, label=-1):
    """What the page's function answers: the HTML of the results."""
    return user.predict(client.handle_file(str(file)), title, attention, label, None, fn_index=0)[0]


def posted(address, file):
    """What the server says to a picture that names a file instead of being uploaded."""
    data = [{**file, "meta": {"_type": "gradio.FileData"}}, "plain", True, -1, None]
    body = json.dumps({"data": data, "fn_index": 0, "session_hash": "posted"}).encode()
    join = urllib.request.Request(
        f"{address}gradio_api/queue/join", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(join) as answer:
        answer.read()
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=posted") as answer:
        return next(line.decode() for line in answer if b"process_completed" in line)


class TestServer:
    def test_ten_users_at_once_do_not_mix(self, address, networks, files):
        users = [connect(address) for _ in range(USERS)]
        together = threading.Barrier(USERS)

        def visit(number):
            together.wait()
            return [ask(users[number], files / f"{number}.png", attention=on) for on in (True, False, True)]

        with ThreadPoolExecutor(USERS) as pool:
            answers = list(pool.map(visit, range(USERS)))
        for number, answered in enumerate(answers):
            found, view = expected(networks, number)
            with cbam.disabled(networks[0].model):
                _, off = expected(networks, number)
            for html, heat, masks in zip(answered, (view.heat, off.heat, view.heat), (1, 0, 1), strict=True):
                cam = re.search(r'class="cam" src="([^"]+)"', html)[1]
                assert np.array_equal(pixels(cam), np.asarray(overlay(found.crops[0], heat)))
                assert html.count('class="mask"') == masks
        assert all(module.enabled for module in networks[0].model.modules() if isinstance(module, cbam.CBAM))

    def test_no_file_of_the_machine_can_be_read(self, address, files):
        secret = files / "3.png"
        for path in (
            secret,
            "/etc/passwd",
            Path(os.environ["GRADIO_TEMP_DIR"]) / ".." / ".." / "etc" / "passwd",
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}gradio_api/file={path}")
            assert refused.value.code in (403, 404)
        # Not by gradio's client: it uploads local files itself.
        for path in (str(secret), "/etc/passwd", "http://192.0.2.1/a.png"):
            assert '"success":false' in posted(address, {"path": path})
        assert "Drop a picture" in posted(address, {"path": None, "url": "http://192.0.2.1/a.png"})

    @pytest.mark.parametrize(("size", "status"), [(19_900_000, 200), (20_100_000, 413)])
    def test_uploads_above_the_limit_are_refused(self, address, size, status):
        head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        form = {"content-type": "multipart/form-data; boundary=x"}
        upload = urllib.request.Request(
            f"{address}gradio_api/upload", head + bytes(size) + b"\r\n--x--\r\n", form
        )
        with contextlib.suppress(urllib.error.HTTPError):
            assert urllib.request.urlopen(upload).status == status == 200
            return
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(upload)
        assert refused.value.code == status

    def test_it_listens_to_this_machine_only_and_sends_a_policy(self, address):
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            assert "default-src 'self'" in answer.headers["content-security-policy"]

    def test_a_port_that_is_taken(self, address, networks):
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(CBAMError, match=f"port {port}.*--port NUMBER"), serving(networks, port=port):
            pass
