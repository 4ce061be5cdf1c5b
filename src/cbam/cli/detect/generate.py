"""`cbam detect generate`: write a set with boxes and masks, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cbam.cli.parsing import read_options

DESCRIPTION = """Write a generated detection set: garments of Fashion-MNIST on photographs and textures, with exact
boxes and masks, as COCO, VOC and YOLO folders. The same options always give the same files.

Example: cbam detect generate garments --images 400 --size 96
         cbam detect train --data coco:garments/coco --config recipes/detect-small.yaml"""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to write."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A new folder; each format gets one inside."""
    formats: str = "coco,voc,yolo"
    """coco, voc and yolo, with commas."""
    images: int = 1000
    """Images to train on."""
    validation: int | None = None
    """Images that validate. None: a fifth of --images."""
    size: int = 128
    """Longer side of the images."""
    classes: str = ""
    """Names of Fashion-MNIST's classes with commas, fewer are easier. None: all ten."""
    most_objects: int = 4
    """Most objects on an image."""
    seed: int = 0
    """Another seed gives other images."""


def main(arguments: Sequence[str]) -> int:
    """Run the command with its `arguments`; return the exit code."""
    config = read_options(GenerateConfig, "cbam detect generate", DESCRIPTION, arguments)
    from cbam.data.detection import write_generated
    from cbam.data.fashion_mnist import CLASSES

    written = write_generated(
        config.folder,
        _words(config.formats),
        images=config.images,
        validation=config.validation,
        size=config.size,
        seed=config.seed,
        classes=_words(config.classes) or CLASSES,
        most_objects=config.most_objects,
    )
    for name in written.values():
        print(f"written: --data {name}")
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
