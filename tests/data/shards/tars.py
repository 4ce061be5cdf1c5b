"""Hand-written shards of real pictures, and a real web server with range requests."""

from __future__ import annotations

import functools
import http.server
import io
import re
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.data.pictures_on_disk import photo


def jpeg(number: int, size: int = 24) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo("cat")[number : number + size, 2 * number : 2 * number + size]).save(stream, "JPEG")
    return stream.getvalue()


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def samples(numbers, classes: int = 2) -> list[tuple[tarfile.TarInfo, bytes]]:
    pairs = (
        (member(f"{n:04d}.jpg", jpeg(n)), member(f"{n:04d}.cls", str(n % classes).encode())) for n in numbers
    )
    return [one for pair in pairs for one in pair]


def shard_folder(folder: Path, train: int = 3, val: int = 1, each: int = 4) -> Path:
    """Write `train` and `val` shards of `each` samples; sample n has label n % 2, and n runs through all shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(train + val):
        name = f"train-{number:03d}.tar" if number < train else f"val-{number - train:03d}.tar"
        (folder / name).write_bytes(tar_bytes(*samples(range(number * each, (number + 1) * each))))
    return folder


@contextmanager
def serving(
    folder: Path,
    *,
    ranges: bool = True,
    failures: int = 0,
    heads: bool = False,
    cut: int = 0,
    silent: bool = False,
):
    """Serve `folder` on this machine; gives its URL and the list of (path, range) of all GET requests.

    The first `failures` range requests are answered with 503, with `heads` also questions for what is there; of the
    first `cut` only half of the announced body comes. A `silent` server accepts connections and sends nothing.
    """
    asked: list[tuple[str, str | None]] = []
    left, short, end = [failures], [cut], threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            if silent:
                end.wait()
            elif heads and Path(self.translate_path(self.path)).is_file():
                self.send_error(503)
            else:
                super().do_HEAD()

        def do_GET(self):
            if silent:
                end.wait()
                return
            if heads and Path(self.translate_path(self.path)).is_file():
                self.send_error(503)
                return
            wanted = self.headers.get("Range")
            asked.append((self.path, wanted))
            path = Path(self.translate_path(self.path))
            if wanted is None or not ranges or not path.is_file():
                super().do_GET()
                return
            if left[0] > 0:
                left[0] -= 1
                self.send_error(503)
                return
            content = path.read_bytes()
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            part = content[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if short[0] > 0:
                short[0] -= 1
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return
            self.wfile.write(part)

        def end_headers(self):
            if ranges:
                self.send_header("Accept-Ranges", "bytes")
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        end.set()
        server.shutdown()
        server.server_close()
