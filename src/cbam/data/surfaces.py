"""Write a small image folder for trying everything: pieces of four photographs of surfaces, fur, grass, gravel, brick.

    python -m cbam.data.surfaces photos      # 48 pictures of each to train on, 12 to validate, 128 x 128

The photographs are those that come with scikit-image. The pieces that validate are cut from the right of each
photograph, the others from the left of it, so no pixel is in both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cbam.errors import CBAMError, MissingExtra

PHOTOGRAPHS = {"brick": "brick.png", "fur": "chelsea.png", "grass": "grass.png", "gravel": "gravel.png"}
SIDE = 128


def write_surfaces(folder: Path, train: int = 48, val: int = 12) -> None:
    """Write `folder`/{train,val}/CLASS/NUMBER.png; the same arguments always give the same files.

    Args:
        folder: A new folder, or an empty one.
        train: Pictures to train on, of each class.
        val: Pictures that validate, of each class.

    Raises:
        CBAMError: The folder holds something, or scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise MissingExtra("python -m cbam.data.surfaces", "demo", "scikit-image") from error
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CBAMError(f"{folder} is not empty. Give a new folder")
    draw = np.random.default_rng(0)
    for name, file in PHOTOGRAPHS.items():
        with Image.open(Path(skimage.data.__file__).parent / file) as opened:
            photograph = opened.convert("L").convert("RGB")  # without colour, which would tell fur at once
        border = photograph.width - SIDE - 24
        for part, count, (first, last) in (
            ("train", train, (0, border)),
            ("val", val, (border, photograph.width)),
        ):
            target = folder / part / name
            target.mkdir(parents=True)
            for number in range(count):
                left = int(draw.integers(first, last - SIDE + 1))
                top = int(draw.integers(0, photograph.height - SIDE + 1))
                piece = photograph.crop((left, top, left + SIDE, top + SIDE))
                piece.save(target / f"{number:02d}.png")


def main() -> None:
    """Write the folder that is named."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--train", type=int, default=48, help="pictures to train on, of each class")
    options.add_argument("--val", type=int, default=12, help="pictures that validate, of each class")
    given = options.parse_args()
    try:
        write_surfaces(given.folder, given.train, given.val)
    except CBAMError as error:
        sys.exit(str(error))
    sys.stdout.write(f"wrote {len(PHOTOGRAPHS)} classes into {given.folder}\n")


if __name__ == "__main__":
    main()
