"""Real image files for the tests: cuts of scikit-image's photographs, saved as JPEG and PNG."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

PHOTOS = {"cat": data.chelsea, "cup": data.coffee, "rocket": data.rocket}


@cache
def photo(kind: str) -> np.ndarray:
    return PHOTOS[kind]()


def save_cuts(
    folder: Path, kind: str, count: int, *, size: tuple[int, int] = (60, 48), suffix: str = ".jpg"
) -> None:
    """Save `count` different cuts of one photograph into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(kind))
    height, width = photo(kind).shape[:2]
    for number in range(count):
        x, y = int(rng.integers(width - size[0])), int(rng.integers(height - size[1]))
        cut = photo(kind)[y : y + size[1], x : x + size[0]]
        Image.fromarray(cut).save(folder / f"{number:03d}{suffix}")


def photo_folder(root: Path, count: int = 10, kinds: tuple[str, ...] = ("cat", "cup", "rocket")) -> Path:
    """Make one folder with a folder of `count` JPEG files for each class."""
    for kind in kinds:
        save_cuts(root / kind, kind, count)
    return root


def two_sided_folder(root: Path, val_name: str = "val") -> Path:
    """Make train/ with 6 and a validation side with 3 JPEG files for each class."""
    photo_folder(root / "train", 6)
    photo_folder(root / val_name, 3)
    return root


def truncate(path: Path, share: float = 0.8) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
