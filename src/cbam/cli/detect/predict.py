"""`cbam detect predict`: find objects in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cbam.cli.parsing import read_options
from cbam.formatting import counted
from cbam.runs.imports import import_modules
from cbam.runs.options import check_ranges

DESCRIPTION = """Find objects in pictures with a trained detector. Writes each picture with what was found, and
detections.json in the form of COCO's results.

Example: cbam detect predict runs/detect-coco-fasterrcnn_resnet50_fpn-cbam photo.jpg folder --output found"""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Which detector, and which pictures."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run of `cbam detect train` (its best weights), or a folder with detector.json, such as RUN/final."""
    pictures: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PICTURES")]
    """Image files, and folders with images at any depth."""
    output: Path = Path("found")
    """A folder that is empty or not there yet."""
    least_score: float = 0.5
    """What scores lower is neither drawn nor written, 0 to 1."""
    batch_size: int = 1
    """Pictures at a time."""
    skip_bad: bool = False
    """Leave out files that cannot be read, instead of stopping."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the detector."""

    def __post_init__(self) -> None:
        import_modules(self.imports)
        check_ranges(
            ("least-score", self.least_score, 0 <= self.least_score <= 1, "from 0 to 1"),
            ("batch-size", self.batch_size, self.batch_size >= 1, "at least 1"),
        )


def main(arguments: Sequence[str]) -> int:
    """Run the command with its `arguments`; return the exit code."""
    config = read_options(PredictConfig, "cbam detect predict", DESCRIPTION, arguments)
    from cbam.detect.predict import FILE, predict
    from cbam.detect.recipe import DetectTrainConfig
    from cbam.detect.saved import open_detector
    from cbam.runs.progress import Progress
    from cbam.train.device import make_accelerator

    device = make_accelerator(DetectTrainConfig(device=config.device)).device
    model, about = open_detector(config.source)
    with Progress() as progress, progress.counting("looking at pictures") as count:
        found = predict(
            model.to(device),
            config.pictures,
            about.classes,
            config.output,
            category_ids=about.category_ids,
            least_score=config.least_score,
            batch_size=config.batch_size,
            skip_bad=config.skip_bad,
            on_image=count,
        )
    for path, why in found.skipped.items():
        print(f"note: {path} was left out: {why}")
    print(
        f"{counted(len(found.detections), 'object')} in {counted(len(found.pictures), 'picture')}: drawings and {FILE} "
        f"in {config.output}"
    )
    return 0
