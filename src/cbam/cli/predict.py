"""`cbam predict`: classes and probabilities for pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cbam.cli.parsing import read_options
from cbam.errors import CBAMError
from cbam.formatting import counted
from cbam.runs.imports import import_modules
from cbam.runs.options import check_ranges

DESCRIPTION = """Say which classes a trained network sees in pictures, with the classes and the preprocessing that were
saved with it. A picture that cannot be read is named, and the others go on; the exit code is then 1.

Examples: cbam predict runs/train-photos-resnet18-cbam cat.jpg holidays/;
  cbam predict runs/photos-resnet18 --variant cbam cat.jpg --output predictions.csv;
  cbam predict weights.pth --model resnet20_cbam cat.png; cbam predict torchvision/resnet50 cat.jpg"""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Which network, and which pictures."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|FOLDER|MODEL")]
    """A run of `cbam train` (its best weights), its best/, final/ or checkpoints/step-N/, a run of `cbam compare`
    with --variant, one of its cells, a folder of cbam.save_pretrained, a file of weights with --model, user/name on the
    hub, or a network of torchvision or timm with published weights."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="IMAGES", help_behavior_hint="(required)"),
    ]
    """Image files, and folders with images at any depth."""
    variant: str | None = None
    """Of a run of `cbam compare`: the network to use, such as cbam (its first seed) or cbam-seed2."""
    model: str | None = None
    """The network, where the source does not say it: resnet20_cbam, timm/resnet50, my_package.my_net:build, ..."""
    top_k: int = 5
    """How many classes to show for each picture."""
    output: Path | None = None
    """A .csv or .json file for all predictions, with the probability of every class."""
    pictures: Path | None = None
    """A folder for the pictures with their classes below them."""
    class_names: Path | None = None
    """A text file with a class name in each line, or JSON. None: those saved with the network, ImageNet's for 1000."""
    image_size: int | None = None
    """Height and width of the network's input. None: as saved with it."""
    batch_size: int = 32
    """Pictures at a time."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the network."""

    def __post_init__(self) -> None:
        import_modules(self.imports)
        check_ranges(
            ("top-k", self.top_k, self.top_k >= 1, "at least 1"),
            ("batch-size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("image-size", self.image_size, self.image_size is None or self.image_size >= 1, "at least 1"),
        )


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = read_options(PredictConfig, "cbam predict", DESCRIPTION, arguments)
    if not config.images:
        raise CBAMError(f"name pictures: cbam predict {config.source} IMAGE ...")
    from cbam.explain.inputs import read_class_names
    from cbam.predict.drawing import draw_predictions
    from cbam.predict.files import check_output, predict_files, table, write_predictions
    from cbam.predict.predictor import Predictor
    from cbam.pretrained import open_network
    from cbam.runs.progress import Progress
    from cbam.train.config import TrainConfig
    from cbam.train.device import make_accelerator

    if config.output is not None:
        check_output(config.output)
    names = None if config.class_names is None else read_class_names(config.class_names)
    network = open_network(
        config.source, config.model, variant=config.variant, class_names=names, image_size=config.image_size
    )
    device = make_accelerator(TrainConfig(device=config.device)).device
    predictor = Predictor(network, device=device, batch_size=config.batch_size)
    with Progress() as progress, progress.counting("looking at pictures") as count:
        predicted = predict_files(predictor, config.images, on_image=count)
    print("\n".join(table(predicted, config.top_k, written=config.output is not None)))
    if config.output is not None:
        write_predictions(config.output, predictor, predicted, config.top_k)
        print(f"all of it: {config.output}")
    if config.pictures is not None:
        drawn = draw_predictions(predicted, config.pictures, config.top_k)
        print(f"{counted(drawn, 'picture')} with their classes: {config.pictures}")
    for error in predicted.bad:
        print(f"cbam: {error}", file=sys.stderr)
    if predicted.bad:
        count_of = f"{len(predicted.bad):,} of {counted(len(predicted.files), 'picture')}"
        print(f"cbam: {count_of} cannot be read", file=sys.stderr)
    return 1 if predicted.bad else 0
