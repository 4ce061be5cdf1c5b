"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747): find and read its four files."""

from __future__ import annotations

import http.client
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cbam.data.idx import read_idx
from cbam.errors import CBAMError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MEAN, STD = (0.2860,), (0.3530,)  # of the 60,000 training images
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
ENVIRONMENT_VARIABLE = "CBAM_FASHION_MNIST"
_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_DOWNLOAD_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Found:
    """The folder with the four files, None if not found; how it was found, and notices for the user."""

    folder: Path | None
    how: str
    notices: tuple[str, ...] = ()


def default_cache() -> Path:
    """Return the folder in which a downloaded copy is kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch-cbam" / "fashion-mnist"


def find_fashion_mnist(
    folder: Path | None = None,
    *,
    download: bool = True,
    system_folder: Path | None = None,
    cache_folder: Path | None = None,
) -> Found:
    """Find the four files; the first location that has them is used, and nothing is downloaded twice.

    The order is: `folder`, the folder in the environment variable CBAM_FASHION_MNIST, Debian's package
    dataset-fashion-mnist, the user's cache, a download into that cache. The first two are what the user asked for:
    if files are missing there it is an error, not a reason to look elsewhere.

    Args:
        folder: an explicit folder, also one that torchvision filled (its files lie in FashionMNIST/raw).
        download: whether a download may be tried.
        system_folder: where Debian's package puts the files; `DEBIAN_FOLDER` by default.
        cache_folder: where a downloaded copy is kept; `default_cache()` by default.

    Raises:
        CBAMError: an explicit folder lacks files, which the message names.
    """
    asked, by = folder, "given"
    if asked is None and os.environ.get(ENVIRONMENT_VARIABLE):
        asked, by = Path(os.environ[ENVIRONMENT_VARIABLE]), f"from {ENVIRONMENT_VARIABLE}"
    if asked is not None:
        return Found(_require(asked.expanduser(), by), f"the folder {by}")
    system = system_folder or DEBIAN_FOLDER
    if not _missing(system):
        return Found(system, "Debian's package dataset-fashion-mnist")
    notices = []
    if system.is_dir():
        notices.append(f"{system} lacks {', '.join(_missing(system))}, so it was not used.")
    cache = cache_folder or default_cache()
    if not _missing(cache):
        return Found(cache, "the copy downloaded earlier", tuple(notices))
    if not download:
        return Found(
            None, "", (*notices, "Fashion-MNIST is not on this machine and downloading is switched off.")
        )
    try:
        _download(cache)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        return Found(
            None, "", (*notices, f"Fashion-MNIST is not on this machine and its download failed: {error}")
        )
    return Found(
        cache, "a download by torchvision", (*notices, f"Fashion-MNIST was downloaded into {cache}.")
    )


def read_fashion_mnist(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Read and check the files in `folder`: "train" and "t10k" give images (N, 1, H, W) and labels (N,), both uint8.

    Raises:
        CBAMError: a file is missing, truncated or damaged, or images and labels do not belong together.
    """
    folder = _require(folder, "given")
    read = {}
    for part in ("train", "t10k"):
        images = read_idx(_path(folder, f"{part}-images-idx3-ubyte"), 3).unsqueeze(1)
        labels = read_idx(_path(folder, f"{part}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels):
            raise CBAMError(f"{folder} holds {len(images):,} {part} images but {len(labels):,} labels.")
        if int(labels.max()) >= len(CLASSES):
            raise CBAMError(f"{folder} holds the {part} label {int(labels.max())}; Fashion-MNIST has 0 to 9.")
        read[part] = (images, labels)
    if read["train"][0].shape[1:] != read["t10k"][0].shape[1:]:
        sizes = " and ".join("x".join(map(str, read[part][0].shape[2:])) for part in read)
        raise CBAMError(f"{folder} holds training and test images of different sizes: {sizes}.")
    return read


def _path(folder: Path, name: str) -> Path:
    zipped = folder / f"{name}.gz"
    return zipped if zipped.is_file() else folder / name


def _missing(folder: Path) -> list[str]:
    return [name for name in _FILES if not _path(folder, name).is_file()]


def _require(folder: Path, by: str) -> Path:
    torchvision_folder = folder / "FashionMNIST" / "raw"
    if _missing(folder) and not _missing(torchvision_folder):
        return torchvision_folder
    if missing := _missing(folder):
        what = f"lacks {', '.join(missing)} (plain or .gz)" if folder.is_dir() else "does not exist"
        raise CBAMError(
            f"the Fashion-MNIST folder {by}, {folder}, {what}. "
            "Give the folder that holds the four files, or say just: --data fashion-mnist"
        )
    return folder


def _download(cache: Path) -> None:
    """Download the four archives with torchvision, which checks their MD5, then move them into `cache`."""
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    cache.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=cache.parent, prefix=f".{cache.name}.") as temporary,
        _socket_timeout(_DOWNLOAD_TIMEOUT_S),
    ):
        for name, md5 in FashionMNIST.resources:
            download_url(FashionMNIST.mirrors[0] + name, temporary, name, md5)
        cache.mkdir(exist_ok=True)
        # Whole files one by one: correct also if another process does the same, or if some are there already.
        for name, _ in FashionMNIST.resources:
            (Path(temporary) / name).replace(cache / name)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torchvision sets no timeout, and a machine behind a silent firewall would wait for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
