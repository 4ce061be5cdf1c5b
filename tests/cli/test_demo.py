"""`cbam demo` as a real process: stopped, it ends at once, says so and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
import time

import pytest

from cbam import save_pretrained
from cbam.models import build_model

pytest.importorskip("gradio")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_cleanly(server, tmp_path, number, code):
    network = save_pretrained(
        build_model("resnet20_cbam", 3), tmp_path / "net", "resnet20", input_size=(3, 32, 32)
    )
    (tmp_path / "tmp").mkdir()
    own = {"TMPDIR": str(tmp_path / "tmp")}
    process = server.start(
        "demo", "--run", network, first="import tempfile; tempfile.tempdir = None", environment=own
    )
    until = time.monotonic() + 120
    out = process._folder / "out"
    while not out.exists() or "Ctrl-C stops it" not in (said := out.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", said)[1])
    assert list((tmp_path / "tmp").glob("cbam-demo-*"))
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert time.monotonic() - began < 30
    assert errors.strip().splitlines()[-1:] == ["cbam: stopped"]
    assert "Traceback" not in errors
    assert not list((tmp_path / "tmp").glob("cbam-demo-*"))
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", port)) != 0, "nobody listens any more"
