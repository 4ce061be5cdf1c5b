from __future__ import annotations

import functools
import hashlib
import http.server
import socket
import threading

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST

from cbam.data.fashion_mnist import (
    DEBIAN_FOLDER,
    ENVIRONMENT_VARIABLE,
    MEAN,
    STD,
    default_cache,
    find_fashion_mnist,
    read_fashion_mnist,
)
from cbam.errors import CBAMError
from tests.data.idx_files import idx_bytes, tiny_fashion_mnist

needs_debian = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A real server on this machine in the place of the one that torchvision asks; counts what it was asked for."""
    folder, asked = tiny_fashion_mnist(tmp_path / "mirror"), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sums = [
        (name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name, _ in FashionMNIST.resources
    ]
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    yield folder, asked
    server.shutdown()
    server.server_close()


def places(tmp_path, **kwargs):
    return {
        "system_folder": tmp_path / "system",
        "cache_folder": tmp_path / "cache",
        "download": False,
        **kwargs,
    }


def test_the_order_of_the_places(tmp_path, monkeypatch):
    given, system, cache = (tiny_fashion_mnist(tmp_path / name) for name in ("given", "system", "cache"))
    named = tiny_fashion_mnist(tmp_path / "named")
    assert find_fashion_mnist(**places(tmp_path)).folder == system
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(named))
    assert find_fashion_mnist(**places(tmp_path)).folder == named
    assert find_fashion_mnist(given, **places(tmp_path)).folder == given
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    found = find_fashion_mnist(**places(tmp_path, system_folder=tmp_path / "none"))
    assert (found.folder, found.how, found.notices) == (cache, "the copy downloaded earlier", ())


def test_a_folder_that_torchvision_filled_is_taken(tmp_path):
    raw = tiny_fashion_mnist(tmp_path / "root" / "FashionMNIST" / "raw", zipped=False)
    assert find_fashion_mnist(tmp_path / "root", **places(tmp_path)).folder == raw


@pytest.mark.parametrize("by_variable", [False, True])
def test_an_explicit_folder_is_never_replaced_by_another(tmp_path, monkeypatch, by_variable):
    tiny_fashion_mnist(tmp_path / "system")
    asked = tiny_fashion_mnist(tmp_path / "asked")
    (asked / "t10k-labels-idx1-ubyte.gz").unlink()
    if by_variable:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(asked))
    with pytest.raises(CBAMError, match="lacks t10k-labels-idx1-ubyte") as caught:
        find_fashion_mnist(None if by_variable else asked, **places(tmp_path))
    assert (ENVIRONMENT_VARIABLE in str(caught.value)) == by_variable
    with pytest.raises(CBAMError, match="does not exist"):
        find_fashion_mnist(tmp_path / "none", **places(tmp_path))


def test_half_a_package_is_passed_over_with_a_notice(tmp_path):
    tiny_fashion_mnist(tmp_path / "cache")
    tiny_fashion_mnist(tmp_path / "system")
    (tmp_path / "system" / "train-images-idx3-ubyte.gz").unlink()
    found = find_fashion_mnist(**places(tmp_path))
    assert found.folder == tmp_path / "cache"
    assert "lacks train-images-idx3-ubyte" in found.notices[0]


def test_a_download_happens_once_and_appears_whole(tmp_path, mirror):
    folder, asked = mirror
    first = find_fashion_mnist(**places(tmp_path, download=True))
    assert first.folder == tmp_path / "cache"
    assert "was downloaded into" in first.notices[0]
    assert len(asked) >= 4
    asked.clear()
    second = find_fashion_mnist(**places(tmp_path, download=True))
    assert (second.folder, second.notices, asked) == (first.folder, (), [])
    assert sorted(path.name for path in first.folder.iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".cache")] == []
    assert socket.getdefaulttimeout() is None


def test_a_cache_that_lacks_a_file_is_completed(tmp_path, mirror):
    tiny_fashion_mnist(tmp_path / "cache")
    (tmp_path / "cache" / "train-images-idx3-ubyte.gz").unlink()
    found = find_fashion_mnist(**places(tmp_path, download=True))
    assert found.folder == tmp_path / "cache"
    assert len(read_fashion_mnist(found.folder)["train"][0]) == 20


@pytest.mark.parametrize("failure", ["missing file", "wrong content", "no server"])
def test_a_failed_download_leaves_nothing_and_says_why(tmp_path, mirror, monkeypatch, failure):
    folder, _ = mirror
    if failure == "missing file":
        (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    elif failure == "wrong content":
        (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"a portal's login page")
    else:
        monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    found = find_fashion_mnist(**places(tmp_path, download=True))
    assert found.folder is None
    assert "its download failed" in found.notices[0]
    assert not (tmp_path / "cache").exists()
    assert socket.getdefaulttimeout() is None


def test_switched_off_means_no_download(tmp_path, mirror):
    _, asked = mirror
    found = find_fashion_mnist(**places(tmp_path))
    assert (found.folder, asked) == (None, [])
    assert "switched off" in found.notices[0]


def test_the_cache_follows_the_users_setting(tmp_path, monkeypatch):
    assert default_cache() == tmp_path / "cache-home" / "torch-cbam" / "fashion-mnist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "torch-cbam" / "fashion-mnist"


@pytest.mark.parametrize("zipped", [True, False])
def test_tiny_files_are_read(tmp_path, zipped):
    parts = read_fashion_mnist(tiny_fashion_mnist(tmp_path, zipped=zipped))
    images, labels = parts["train"]
    assert images.shape == (20, 1, 6, 5)
    assert images[:, 0, 0, 0].tolist() == list(range(20))
    assert labels.tolist() == [*range(10), *range(10)]
    assert len(parts["t10k"][0]) == 10


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(19, np.uint8), "20 train images but 19 labels"),
        ("t10k-labels-idx1-ubyte", np.full(10, 10, np.uint8), "t10k label 10; Fashion-MNIST has 0 to 9"),
        ("t10k-images-idx3-ubyte", np.zeros((10, 5, 6), np.uint8), "different sizes: 6x5 and 5x6"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, name, array, message):
    folder = tiny_fashion_mnist(tmp_path, zipped=False)
    (folder / name).write_bytes(idx_bytes(array))
    with pytest.raises(CBAMError, match=message):
        read_fashion_mnist(folder)


@needs_debian
def test_the_real_set_is_what_its_authors_describe():
    parts = read_fashion_mnist(find_fashion_mnist(download=False).folder)
    (train, labels), (test, test_labels) = parts["train"], parts["t10k"]
    assert (train.shape, test.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert torch.bincount(labels).tolist() == [6000] * 10
    assert torch.bincount(test_labels).tolist() == [1000] * 10
    scaled = train.double() / 255
    assert scaled.mean().item() == pytest.approx(MEAN[0], abs=5e-5)
    assert scaled.std().item() == pytest.approx(STD[0], abs=5e-5)
