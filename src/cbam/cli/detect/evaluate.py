"""`cbam detect evaluate`: average precision of a trained detector."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from cbam.cli.parsing import read_options
from cbam.detect.config import DetectionSetConfig
from cbam.documents import read_yaml
from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.runs.imports import import_modules

if TYPE_CHECKING:
    from cbam.data.detection import DetectionData
    from cbam.detect.evaluation import DetectionScores
    from cbam.detect.saved import SavedDetector

DESCRIPTION = """Judge a detector on validation images: COCO's 12 figures of boxes and masks, or VOC's average
precision, each class, and the curves of precision over recall. Every image counts once, on any number of processes
(torchrun -m cbam detect evaluate ...).

Example: cbam detect evaluate runs/detect-coco-fasterrcnn_resnet50_fpn-cbam"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate, and on which images."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run of `cbam detect train` (its best weights), or a folder with detector.json, such as RUN/final."""
    data: str | None = None
    """coco:FOLDER, voc:FOLDER or yolo:FOLDER; its validation images count. None: those that the run validated on."""
    metric: Literal["auto", "coco", "voc07", "voc"] = "auto"
    """coco, voc07 (AP at 11 points) or voc (area below the curve). auto: as in the run."""
    batch_size: int = 8
    """Images at a time, over all processes together."""
    limit_val: int | None = None
    """Use only this many validation images. None: as the run, or all of another set."""
    bad_data: Literal["fail", "skip"] = "fail"
    """What to do with annotations and images that cannot be used."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    workers: int = 0
    """Processes that load images."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the detector."""
    output: Path | None = None
    """A JSON file for all figures and curves. None: evaluation.json beside the detector's weights."""
    detections: Path | None = None
    """A JSON file for all detections, in the form of COCO's results."""

    def __post_init__(self) -> None:
        import_modules(self.imports)


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = read_options(EvaluateConfig, "cbam detect evaluate", DESCRIPTION, arguments)
    from cbam.detect.saved import find_detector

    folder = find_detector(config.source)
    data, scores, main_process = run(config, set_of(config, folder))
    if main_process:
        console = Console(highlight=False)
        for notice in data.notices:
            console.print(f"note: {notice}", soft_wrap=True)
        show(scores, console)
        output = config.output or folder / "evaluation.json"
        content = {"source": config.source, "data": data.identity, "metric": scores.metric, **scores.content}
        write_atomically(output, json.dumps(content, indent=1) + "\n")
        console.print(f"all figures and curves: {output}", soft_wrap=True)
        if config.detections:
            found = scores.evaluator.results(data.category_ids)
            write_atomically(config.detections, json.dumps(found) + "\n")
    return 0


def set_of(config: EvaluateConfig, folder: Path) -> DetectionSetConfig:
    """Return which images to judge on: with another split than the run's, images that it was trained on would count.

    Args:
        config: The options.
        folder: Of the detector.

    Raises:
        CBAMError: No set is named, and the detector is in no run's folder.
    """
    names = ("data", "val_fraction", "limit_val", "bad_data", "metric")
    settings = _settings(folder.parent)
    chosen = (
        DetectionSetConfig(**{name: settings[name] for name in names if name in settings})
        if settings
        else None
    )
    if config.data is not None and (chosen is None or not _same(config.data, chosen.data)):
        chosen = DetectionSetConfig(data=config.data, metric=_metric(settings))
    if chosen is None:
        raise CBAMError(
            f"{folder} is not in the folder of a run, which names its images. Type: --data coco:FOLDER"
        )
    given: dict[str, Any] = {"bad_data": config.bad_data} if config.bad_data != "fail" else {}
    if config.metric != "auto":
        given["metric"] = config.metric
    if config.limit_val is not None:
        given["limit_val"] = config.limit_val
    return replace(chosen, **given)


def run(config: EvaluateConfig, images: DetectionSetConfig) -> tuple[DetectionData, DetectionScores, bool]:
    """Return the images, the scores, and whether this is the main process.

    Raises:
        CBAMError: The detector or the images do not exist, or do not match.
    """
    from cbam.data.detection import PreparedDetection, make_detection_loader
    from cbam.detect.evaluation import evaluate_detector, make_evaluator
    from cbam.detect.recipe import DetectTrainConfig
    from cbam.detect.saved import open_detector
    from cbam.train.device import make_accelerator

    recipe = DetectTrainConfig(batch_size=config.batch_size, precision=config.precision, device=config.device)
    accelerator = make_accelerator(recipe)
    model, saved = open_detector(config.source)
    data = images.load()
    check_classes(saved, data)
    masks = saved.arguments["name"].startswith("maskrcnn") and images.judged_by == "coco"
    evaluator = make_evaluator(data, images.judged_by, masks=masks and data.validation.with_masks)
    data.validation.with_masks = False  # the evaluator reads them from the records
    loader = make_detection_loader(
        PreparedDetection(data.validation, None),
        batch_size=config.batch_size,
        seed=0,
        shuffle=False,
        workers=config.workers,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    scores = evaluate_detector(model.to(accelerator.device), loader, evaluator, images.judged_by, accelerator)
    return data, scores, accelerator.is_main_process


def check_classes(saved: SavedDetector, data: DetectionData) -> None:
    """Refuse images with other classes than the detector's.

    Raises:
        CBAMError: The classes differ in number or name.
    """
    if saved.classes != data.classes:
        pairs = zip((*saved.classes, None), (*data.classes, None), strict=False)
        first = next((a, b) for a, b in pairs if a != b)
        raise CBAMError(
            f"the detector's {len(saved.classes)} classes are not the images' {len(data.classes)}: the first that "
            f"differ are {first[0]!r} there and {first[1]!r} here."
        )


def show(scores: DetectionScores, console: Console) -> None:
    """Print the figures and each class."""
    if scores.metric == "coco":
        console.print(_coco_table(scores.content))
    else:
        points = "at 11 points" if scores.metric == "voc07" else "below the curve"
        console.print(f"mAP {scores.mean_ap:.2%} {points}, IoU above 0.5, {scores.images:,} images")
    kind = scores.content["boxes"] if scores.metric == "coco" else scores.content
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = [name for name in ("AP", "AP50", "AP75", "AR") if name in kind["per_class"][0]]
    table.add_column("class")
    for heading in ("objects", *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in kind["per_class"]:
        table.add_row(row["class"], f"{row['objects']:,}", *(_percent(row[name]) for name in columns))
    console.print(table)


def _coco_table(content: Mapping[str, Any]) -> Table:
    kinds = [kind for kind in ("boxes", "masks") if kind in content]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("COCO")
    for kind in kinds:
        table.add_column(kind, justify="right", no_wrap=True)
    for name in content["boxes"]["figures"]:
        table.add_row(name.replace("_", " "), *(_percent(content[kind]["figures"][name]) for kind in kinds))
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run of `cbam detect`; none where there is none, or a file that cannot be read."""
    try:
        settings = read_yaml(folder / "config.yaml")
    except CBAMError:
        return {}
    return settings if isinstance(settings, dict) and isinstance(settings.get("data"), str) else {}


def _metric(settings: Mapping[str, Any]) -> Any:
    return settings.get("metric", "auto")


def _same(given: str, known: str) -> bool:
    from cbam.detect.config import absolute_set

    return absolute_set(given) == absolute_set(known)
