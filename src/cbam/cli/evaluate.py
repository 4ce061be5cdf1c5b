"""`cbam evaluate`: score a trained network on validation images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from cbam.cli.parsing import read_options
from cbam.documents import read_yaml
from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.runs.imports import import_modules

if TYPE_CHECKING:
    from cbam.data import ImageData
    from cbam.pretrained import Config
    from cbam.train.evaluation import Evaluation

DESCRIPTION = """Score a network on validation images: top-1 and top-5 accuracy, cross-entropy. Every image counts once,
on any number of processes (torchrun -m cbam evaluate ...).

Example: cbam evaluate runs/train-digits-resnet20-cbam --data digits"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate, and on which images."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run of `cbam train` (its best weights), its best/, final/ or checkpoints/step-N/, a run of `cbam compare` with
    --variant, one of its cells, a folder of cbam.save_pretrained, a file of weights with --model, or user/name on the
    hub."""
    data: str
    """fashion-mnist, digits, a folder, ... as for `cbam train`; its validation images count."""
    variant: str | None = None
    """Of a run of `cbam compare`: the network to score, such as cbam (its first seed) or cbam-seed2."""
    model: str | None = None
    """The network, where the source does not say it: resnet20_cbam, timm/resnet50, my_package.my_net:build, ..."""
    image_size: int | None = None
    """Height and width of the images. None: those that the network was saved with."""
    batch_size: int = 128
    """Images at a time, over all processes together."""
    limit_val: int | None = None
    """Use only this many validation images, equally many of each class."""
    val_fraction: float | None = None
    """Share of each class that validates where there is no validation folder. None: as the run split them, or 0.2."""
    bad_images: Literal["fail", "skip"] = "fail"
    """What to do with files that cannot be read."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    workers: int = 0
    """Processes that load images."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the network."""
    output: Path | None = None
    """A JSON file for the scores, those of each class among them."""

    def __post_init__(self) -> None:
        import_modules(self.imports)


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = read_options(EvaluateConfig, "cbam evaluate", DESCRIPTION, arguments)
    split = split_of(config)
    data, scores, main_process = run(config, split)
    if main_process:
        console = Console(highlight=False)
        for notice in (*split.notices, *data.notices):
            console.print(f"note: {notice}", soft_wrap=True)
        # Of five classes or fewer the right one is always among the first five.
        top5 = f"top-5 {scores.top5_accuracy:.2%}, " if len(data.classes) > 5 else ""
        console.print(
            f"top-1 {scores.accuracy:.2%}, {top5}cross-entropy {scores.loss:.4f} "
            f"on {scores.images:,} images: {data.source}",
            soft_wrap=True,
        )
        if config.output:
            write_atomically(config.output, json.dumps(as_json(config, data, scores), indent=1) + "\n")
    return 0


@dataclass(frozen=True)
class Split:
    """Which images validate.

    Attributes:
        val_fraction: See `EvaluateConfig`.
        notices: What the user should know about it.
    """

    val_fraction: float
    notices: tuple[str, ...] = ()


def split_of(config: EvaluateConfig) -> Split:
    """Return the split of the run that is evaluated: with another one, images that it was trained on would count.

    Raises:
        CBAMError: The source is a run of `cbam compare`, which keeps bare weights.
    """
    from cbam.runs.options import absolute_data

    source = Path(config.source)
    if (source / "cells").is_dir():
        raise CBAMError(
            f"{source} is a run of cbam compare or cbam ablate, whose report has the scores. "
            "cbam evaluate takes a run of cbam train, or a folder of cbam.save_pretrained"
        )
    settings = _settings_of(source) or _settings_of(source.parent)  # a run, or its best/ or final/
    if settings.get("data") != absolute_data(config.data):
        return Split(0.2 if config.val_fraction is None else config.val_fraction)
    there = float(settings["val_fraction"])
    now = there if config.val_fraction is None else config.val_fraction
    notices = []
    if now != there:
        notices.append(
            f"the run was trained with --val-fraction {there}. Where there is no validation folder, some of these "
            "images are those that it was trained on"
        )
    if settings.get("limit_val") != config.limit_val:
        was = settings.get("limit_val")
        notices.append(
            f"the run validated on {f'{was} of these images' if was else 'all of them'} (--limit-val)"
        )
    return Split(now, tuple(notices))


def _settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a run of `cbam train`; none where there is none, or a file that cannot be read."""
    try:
        settings = read_yaml(folder / "config.yaml")
    except CBAMError:
        return {}
    whole = isinstance(settings, dict) and isinstance(settings.get("val_fraction"), float)
    return settings if whole else {}


def run(config: EvaluateConfig, split: Split) -> tuple[ImageData, Evaluation, bool]:
    """Return the images, the scores, and whether this is the main process.

    Raises:
        CBAMError: The network or the images do not exist, or do not match.
    """
    from cbam.data import load_data, make_loader
    from cbam.pretrained import open_network
    from cbam.train.config import TrainConfig
    from cbam.train.device import make_accelerator
    from cbam.train.evaluation import evaluate

    accelerator = make_accelerator(
        TrainConfig(batch_size=config.batch_size, precision=config.precision, device=config.device)
    )
    opened = open_network(config.source, config.model, variant=config.variant)
    model, saved = opened.model, opened.config
    size = saved.input_size
    data = load_data(
        config.data,
        image_size=config.image_size or (size[-1] if size else None),
        mean=saved.mean,
        std=saved.std,
        limit_val=config.limit_val,
        val_fraction=split.val_fraction,
        bad_images=config.bad_images,
    )
    check_classes(saved, data)
    loader = make_loader(
        data.val,
        batch_size=config.batch_size,
        seed=0,
        shuffle=False,
        workers=config.workers,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    return data, evaluate(model.to(accelerator.device), loader, accelerator), accelerator.is_main_process


def check_classes(saved: Config, data: ImageData) -> None:
    """Refuse images of other classes than the network's.

    Raises:
        CBAMError: The classes differ in number or name.
    """
    names = saved.class_names
    if names is None:
        outputs = saved.backbone.num_classes if saved.backbone else len(data.classes)
        if outputs != len(data.classes):
            raise CBAMError(
                f"the network has {outputs} outputs, the images have {len(data.classes)} classes."
            )
    elif tuple(names) != tuple(data.classes):
        first = next((a, b) for a, b in zip((*names, None), (*data.classes, None), strict=False) if a != b)
        raise CBAMError(
            f"the network's {len(names)} classes are not the images' {len(data.classes)}: the first that differ are "
            f"{first[0]!r} there and {first[1]!r} here."
        )


def as_json(config: EvaluateConfig, data: ImageData, scores: Evaluation) -> dict[str, Any]:
    """Return the content of the output file."""
    return {
        "source": config.source,
        "data": data.identity,
        "images": scores.images,
        "top1": scores.accuracy,
        "top5": scores.top5_accuracy,
        "cross_entropy": scores.loss,
        "per_class": dict(zip(data.classes, scores.per_class_accuracy, strict=True)),
    }
