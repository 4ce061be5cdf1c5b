"""Do networks with attention look at the object? Class activation maps and gates against exact masks.

python benchmarks/where_it_looks.py            # everything: images, trainings, scores, the page; goes on where it was
python benchmarks/where_it_looks.py --page     # the page alone, from the scores in docs/results/where-it-looks
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from cbam.cli.compare import main as compare
from cbam.data.detection import load_detection
from cbam.data.detection.generate import write_generated

RECIPE = Path("recipes/where-it-looks.yaml")
FOLDER = Path("runs/where-it-looks")
CLASSES = ("Ankle boot", "Bag", "Pullover", "Trouser")


def write_images(folder: Path, train: int = 4000, validation: int = 500) -> None:
    """Write a generated detection set with one object at most, and the images with an object once more by class."""
    if (folder / "images").exists():
        return
    write_generated(
        folder, ("coco",), images=train, validation=validation, size=96, classes=CLASSES, most_objects=1
    )
    data = load_detection(f"coco:{folder / 'coco'}", check_images=False)
    for side, images in (("train", data.train), ("val", data.validation)):
        for record in images.records:
            for label in record.labels:
                target = folder / "images.part" / side / data.classes[label - 1] / record.path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(record.path, target)
    (folder / "images.part").rename(folder / "images")


def main() -> None:
    """Do what is not there yet."""
    write_images(FOLDER)
    compare(["--config", str(RECIPE)])


if __name__ == "__main__":
    main()
