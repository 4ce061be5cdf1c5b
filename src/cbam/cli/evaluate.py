"""`cbam evaluate`: score a trained network on images, as a whole, class by class and image by image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from cbam.cli.evaluate_shown import MOST_CLASSES, show
from cbam.cli.parsing import read_options
from cbam.documents import read_yaml
from cbam.errors import CBAMError, nearest
from cbam.files import write_atomically
from cbam.formatting import counted
from cbam.runs.imports import import_modules

if TYPE_CHECKING:
    from cbam.data import ImageData
    from cbam.evaluate.class_report import ClassReport
    from cbam.evaluate.label_report import LabelReport
    from cbam.pretrained import Config

DESCRIPTION = """Score a network on images: top-1 and top-5 accuracy, precision, recall and F1 of each class, what it
confuses most, and whether it is right as often as it says; of several labels an image, average precision. A folder
of class folders is scored whole, with as many of the network's classes as it has. Every image counts
once, on any number of processes (torchrun -m cbam evaluate ...).

Example: cbam evaluate runs/train-digits-resnet20-cbam --data digits --output scores"""
_KINDS = (".json", ".csv", ".html")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate, and on which images."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run of `cbam train` (its best weights), its best/, final/ or checkpoints/step-N/, a run of `cbam compare` with
    --variant, one of its cells, a folder of cbam.save_pretrained, a file of weights with --model, or user/name on the
    hub."""
    data: str
    """fashion-mnist, digits, a folder, ... as for `cbam train`."""
    labels: str | None = None
    """A table of the images below --data and their labels, as for `cbam train`. None: that of the run, for the images
    that it was trained on; else the folders are the classes."""
    split: Literal["all", "val"] | None = None
    """all: every image, unless there are validation images of their own (val/); val: the validation images, split off
    as for training if need be. None: val for the images that the run was trained on, else all."""
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
    """Share of each class that validates where there is no validation folder, for --split val. None: as the run split
    them, or 0.2."""
    bad_images: Literal["fail", "skip"] = "fail"
    """What to do with files that cannot be read."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    workers: int = 0
    """Processes that load images."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the network."""
    output: Path | None = None
    """A folder for all results: scores.json, classes.csv, images.csv and the page evaluation.html. Or one of them: a
    file that ends in .json, .csv (of the classes) or .html."""

    def __post_init__(self) -> None:
        import_modules(self.imports)
        if self.output and self.output.suffix not in ("", *_KINDS) and not self.output.is_dir():
            raise CBAMError(
                f"--output {self.output} is neither a folder nor a file that ends in {', '.join(_KINDS)}. Type for "
                f"example: --output {self.output.with_suffix('')}"
            )


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = read_options(EvaluateConfig, "cbam evaluate", DESCRIPTION, arguments)
    split = split_of(config)
    found = run(config, split)
    if found is not None:
        show(found.report, found.notices, Console(highlight=False))
        if config.output:
            for file in write(found, config.output, ["cbam", "evaluate", *arguments]):
                print(f"written: {file}")
    return 0


@dataclass(frozen=True)
class Split:
    """Which images are scored.

    Attributes:
        val_fraction: See `EvaluateConfig`.
        whole: Whether all images count, where there is no validation part.
        notices: What the user should know about it.
        labels: The table of the run, for the images that it was trained on.
    """

    val_fraction: float
    whole: bool
    notices: tuple[str, ...] = ()
    labels: str | None = None


def split_of(config: EvaluateConfig) -> Split:
    """Return which images are scored: of the run's own only those that it was not trained on, unless all are asked for.

    Raises:
        CBAMError: The source is no network; the message names the neighbour that is one.
    """
    from cbam.pretrained.places import find_network
    from cbam.runs.options import absolute_data

    place = find_network(config.source, config.variant)
    settings = {} if place is None or place.run is None else _settings_of(place.run)
    if settings.get("data") != absolute_data(config.data):
        whole = config.split == "all" or (config.split is None and config.val_fraction is None)
        return Split(0.2 if config.val_fraction is None else config.val_fraction, whole)
    there = float(settings["val_fraction"])
    now = there if config.val_fraction is None else config.val_fraction
    notices = []
    labels = settings.get("labels") if config.labels is None else None
    if labels:
        notices.append(f"the labels are those of the run: --labels {labels}")
    if config.split == "all":
        notices.append(
            "the network was trained on these images. Where there is no validation folder, most of those that are "
            "scored are training images, on which it does better than on new ones"
        )
    elif now != there:
        notices.append(
            f"the run was trained with --val-fraction {there}. Where there is no validation folder, some of these "
            "images are those that it was trained on"
        )
    if settings.get("limit_val") != config.limit_val and config.split != "all":
        was = settings.get("limit_val")
        notices.append(
            f"the run validated on {f'{was} of these images' if was else 'all of them'} (--limit-val)"
        )
    return Split(now, config.split == "all", tuple(notices), labels)


def _settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a run; none where there is none, or a file that cannot be read."""
    try:
        settings = read_yaml(folder / "config.yaml")
    except CBAMError:
        return {}
    whole = isinstance(settings, dict) and isinstance(settings.get("val_fraction"), float)
    return settings if whole else {}


@dataclass(frozen=True)
class Found:
    """What was scored, and the scores.

    Attributes:
        report: The scores.
        data: The images.
        variant: The network's attention.
        notices: For the user.
    """

    report: ClassReport | LabelReport
    data: ImageData
    variant: str
    notices: tuple[str, ...]


def run(config: EvaluateConfig, split: Split) -> Found | None:
    """Score the network; return what was found on the main process, None on the others.

    Raises:
        CBAMError: The network or the images do not exist, or do not match.
    """
    from cbam.data import make_loader
    from cbam.evaluate.class_report import ClassReport
    from cbam.evaluate.label_report import LabelReport
    from cbam.explain.inputs import input_form
    from cbam.pretrained import open_network
    from cbam.train.config import TrainConfig
    from cbam.train.device import make_accelerator
    from cbam.train.evaluation import evaluate
    from cbam.train.multilabel import LabelEvaluation, evaluate_labels

    accelerator = make_accelerator(
        TrainConfig(batch_size=config.batch_size, precision=config.precision, device=config.device)
    )
    opened = open_network(config.source, config.model, variant=config.variant)
    model, saved = opened.model, opened.config
    data = input_form(model, config.image_size)[0].load(
        config.data,
        limit_val=config.limit_val,
        val_fraction=split.val_fraction,
        bad_images=config.bad_images,
        labels=config.labels or split.labels,
        whole=split.whole,
    )
    classes, numbers = matched_classes(saved, data)
    loader = make_loader(
        data.val,
        batch_size=config.batch_size,
        seed=0,
        shuffle=False,
        workers=config.workers,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    model.to(accelerator.device)
    notices = [*split.notices, *data.notices]
    scores = (
        evaluate_labels(model, loader, accelerator, numbers, len(classes))
        if data.task == "multilabel"
        else evaluate(model, loader, accelerator, numbers)
    )
    if not accelerator.is_main_process:
        return None
    about: dict[str, Any] = {
        "network": ", ".join(filter(None, (config.source, config.variant))),
        "data": f"{counts_in_words(data)} Data: {data.source}",
        "classes": classes,
        "loss": scores.loss,
        "names": [data.val.identifier(index) for index in range(len(data.val))],
    }
    report: ClassReport | LabelReport
    if isinstance(scores, LabelEvaluation):
        report = LabelReport(**about, probabilities=scores.probabilities, truth=scores.truth)
    else:
        # Of five classes or fewer the right one is always among the first five.
        top5 = scores.top5_accuracy if len(classes) > 5 else None
        assert scores.predictions is not None
        report = ClassReport(**about, top5=top5, predictions=scores.predictions)
    variant = saved.attention[0].kind if saved.attention else "none"
    if len(data.classes) < len(classes):
        notices.append(
            f"of the network's {len(classes)} {'labels' if data.task == 'multilabel' else 'classes'} "
            f"{len(data.classes)} have images here; any of them may be predicted"
        )
    return Found(report, data, variant, tuple(notices))


def matched_classes(saved: Config, data: ImageData) -> tuple[tuple[str, ...], list[int] | None]:
    """Return the network's classes, and the number among them of each class of the images.

    Raises:
        CBAMError: The images have a class that the network does not have, or another number of them.
    """
    from cbam.data.scan import some

    names = saved.class_names
    if names is None:
        outputs = saved.backbone.num_classes if saved.backbone else len(data.classes)
        if outputs != len(data.classes):
            raise CBAMError(
                f"the network has {outputs} outputs without names, the images have {len(data.classes)} classes: "
                f"{some(data.classes)}."
            )
        return data.classes, None
    if saved.task != data.task:
        raise CBAMError(
            "the network was trained on several labels an image, and here each has one class. Type: --labels TABLE, or "
            "--labels 'TABLE?task=multilabel' where each image has one label"
            if saved.task == "multilabel"
            else "the network was trained on one class an image, and --labels gives several. Leave it out for a folder "
            "of class folders, or give a table with one class each"
        )
    number = {name: index for index, name in enumerate(names)}
    if unknown := [name for name in data.classes if name not in number]:
        close = nearest(unknown[0], names, count=1)
        hint = f" Did you mean {close[0]!r} by {unknown[0]!r}?" if close else ""
        raise CBAMError(
            f"the network was trained on {len(names)} classes: {some(names, MOST_CLASSES)}. {data.name} has "
            f"{len(data.classes)}: {some(data.classes, MOST_CLASSES)}. The network does not know: {some(unknown)}."
            f"{hint} Fewer classes are fine, others are not: rename or remove their folders"
        )
    return tuple(names), [number[name] for name in data.classes]


def counts_in_words(data: ImageData) -> str:
    """Say how many images of which classes or labels are scored."""
    labels: Any = data.val.labels
    several = data.task == "multilabel"
    counts = Counter(label for of in labels for label in of) if several else Counter(map(int, labels))
    images = counted(len(data.val), "image")
    kinds = "labels" if several else "classes"
    if len(data.classes) > MOST_CLASSES:
        fewest, most = min(counts.values()), max(counts.values())
        return f"{images} of {len(counts)} {kinds}, {fewest:,} to {most:,} of each."
    each = ", ".join(f"{name} {counts[number]:,}" for number, name in enumerate(data.classes))
    return f"{images}: {each}."


def write(found: Found, output: Path, command: Sequence[str]) -> list[Path]:
    """Write the scores and return the files.

    Args:
        found: What to write.
        output: A folder for all of them, or one file.
        command: What was typed.
    """
    from cbam.evaluate.class_page import render

    report = found.report
    contents = {
        "scores.json": lambda: json.dumps({**report.content(), "data": found.data.identity}, indent=1) + "\n",
        "classes.csv": report.classes_csv,
        "images.csv": report.images_csv,
        "evaluation.html": lambda: render(
            report, found.data.val.picture, variant=found.variant, notices=found.notices, command=command
        ),
    }
    if output.suffix in _KINDS and not output.is_dir():
        name = next(name for name in contents if name.endswith(output.suffix))
        return [write_atomically(output, contents[name]())]
    return [write_atomically(output / name, content()) for name, content in contents.items()]
