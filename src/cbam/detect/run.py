"""`cbam detect train`: run one training of a detector, or resume it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cbam.checkpoints.switches import switches_of
from cbam.data.detection import DetectionData
from cbam.detect.build import build, detector_arguments
from cbam.detect.config import DetectorConfig, DetectRunConfig
from cbam.detect.evaluation import DetectionScores, make_evaluator
from cbam.detect.recipe import DetectTrainConfig
from cbam.detect.saved import SavedDetector, frozen_eps, save_detector
from cbam.detect.task import Detection
from cbam.errors import CBAMError
from cbam.runs.environment import now
from cbam.runs.folder import RunFolder
from cbam.runs.job import C, Outcome
from cbam.runs.progress import Progress
from cbam.train.build import widening
from cbam.train.device import make_accelerator
from cbam.train.job import TrainingJob
from cbam.train.loop import Trained
from cbam.train.single import Network, SingleJob
from cbam.train.trackers import check_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

EVALUATION = "evaluation.json"


@dataclass(kw_only=True)
class DetectionJob(TrainingJob[C, Outcome, DetectionData]):
    """A run that trains detectors."""

    config: DetectorConfig

    def task(self, recipe: DetectTrainConfig) -> Detection:
        """Return the training of a detector."""
        return detection(self.config, recipe, self.data)

    def steps_per_epoch(self, recipe: DetectTrainConfig) -> int:
        """Return the steps of an epoch."""
        return max(1, len(self.data.train) // recipe.batch_size)

    def about_data(self) -> dict[str, Any]:
        """Return how detections are judged."""
        return {"metric": self.config.judged_by}

    def score_text(self, row: dict[str, Any]) -> str:
        """Format the average precision, and that of the moving average."""
        if "val_map" not in row:
            return ""
        parts = [f"AP {100 * row['val_map']:.1f}"] if "val_ap75" in row else []
        parts.append(f"AP50 {100 * row['val_ap50']:.1f}")
        if "val_mask_map" in row:
            parts.append(f"masks {100 * row['val_mask_map']:.1f}")
        if "val_map_ema" in row:
            parts.append(f"average {100 * row['val_map_ema']:.1f}")
        return "val " + "  ".join(parts)


@dataclass(kw_only=True)
class DetectJob(DetectionJob[Network, "dict[str, Any]"], SingleJob[DetectionData]):
    """The training of one detector."""

    config: DetectRunConfig

    @property
    def options(self) -> DetectRunConfig:
        """The run's options."""
        return self.config

    @property
    def score_name(self) -> str:
        """The average precision of boxes."""
        return "val_map"

    def build(self) -> nn.Module:
        """Return the detector as it is before training."""
        config = self.config
        return build(
            config,
            config.attention,
            config.seed,
            len(self.data.classes),
            reduction_ratio=config.reduction_ratio,
            widened_to=self.widened_to,
        )

    @cached_property
    def widened_to(self) -> int | None:
        """The number of parameters of a control; None for other detectors."""
        config, classes = self.config, len(self.data.classes)
        return widening(
            config.widened_to, config.attention, lambda: build(config, "cbam", config.seed, classes)
        )

    def validation_images(self) -> int:
        """Return the number of images that validate."""
        return len(self.data.validation)

    def write_network(self, name: str, weights: dict[str, Tensor]) -> None:
        """Save weights into a folder that `cbam detect evaluate` and `cbam detect predict` read."""
        config = self.config
        arguments = detector_arguments(
            config, config.attention, config.reduction_ratio, len(self.data.classes)
        )
        about = describe(self.data, config, arguments, self.skeleton, self.widened_to)
        save_detector(self.folder.path / name, weights, about, switches_of(self.skeleton))

    def result(self, trained: Trained[DetectionScores]) -> dict[str, Any]:
        """Return the scores of the last epoch, and which epoch was the best; write all figures and curves."""
        scores, ema = trained.evaluation, trained.ema_evaluation
        best = self.best_row()
        self.folder.write_json(EVALUATION, {"metric": scores.metric, **scores.content})
        averaged = {"val_map_ema": ema.mean_ap, "val_ap50_ema": ema.figures()["AP50"]} if ema else {}
        return {
            **scores.row(),
            "images": scores.images,
            **averaged,
            "best_epoch": best["epoch"],
            "best_val_map": best["val_map"],
            "best_val_ap50": best["val_ap50"],
            "epochs": self.epochs(self.config.train),
            "parameters": sum(parameter.numel() for parameter in self.skeleton.parameters()),
            "per_class": scores.per_class(),
            "recipe": dataclasses.asdict(self.config.train),
            "seconds": trained.seconds,
            "finished": now(),
        }


def detection(config: DetectorConfig, recipe: DetectTrainConfig, data: DetectionData) -> Detection:
    """Return the task of a run."""
    return Detection(
        recipe,
        data,
        config.judged_by,
        config.augment,
        config.sides,
        masks=config.model.startswith("maskrcnn"),
    )


def describe(
    data: DetectionData,
    config: DetectorConfig,
    arguments: dict[str, Any],
    model: nn.Module,
    widened_to: int | None = None,
) -> SavedDetector:
    """Return what a saved detector's folder says of it.

    Args:
        data: Gives the classes.
        config: Of the run.
        arguments: Of `build_detector`.
        model: The detector.
        widened_to: Of a control the target of `match_parameters`.
    """
    return SavedDetector(
        arguments=arguments,
        classes=data.classes,
        category_ids=data.category_ids,
        metric=config.judged_by,
        data=data.name,
        frozen_eps=frozen_eps(model),
        widened_to=widened_to,
    )


def prepare(config: DetectRunConfig, command: list[str], progress: Progress) -> DetectJob:
    """Check everything that can be checked before training: folder, device, trackers, annotations, images, detector.

    Args:
        config: What to do.
        command: What the user typed, for `env.json`.
        progress: Gets lines on the images and the detector.

    Raises:
        CBAMError: Something requested does not exist or does not fit; the message says what to type.
    """
    check_trackers(config.trackers)
    folder = RunFolder(config.folder, overwrite=config.overwrite)
    folder.check_settings(config.resolved(), DetectRunConfig)
    accelerator, data = prepare_detection(config, config.train, folder, progress)
    job = DetectJob(
        config=config, command=command, folder=folder, progress=progress, processes=accelerator, data=data
    )
    count = sum(parameter.numel() for parameter in job.skeleton.parameters())
    progress.line(f"{config.model}, attention {config.attention}: {count:,} parameters")
    return job


def prepare_detection(
    config: DetectorConfig, recipe: DetectTrainConfig, folder: RunFolder, progress: Progress
) -> tuple[Accelerator, DetectionData]:
    """Return device and images, and show what the images are.

    Args:
        config: Which images, and what the detector needs of them.
        recipe: Where to compute.
        folder: The run's, which may hold the results on other images.
        progress: Where to show them.

    Raises:
        CBAMError: The device or the images are not there or do not fit, or the run in the folder used others.
    """
    from cbam.models.detection.names import parse_name

    parse_name(config.model)  # before the images, which may take minutes
    accelerator = make_accelerator(recipe)
    # The first process writes what the doctor found; the others read it.
    with accelerator.main_process_first():
        data = config.load()
    folder.check_data(data.identity)
    if config.model.startswith("maskrcnn") and not data.has_masks:
        raise CBAMError(
            f"--model {config.model} needs outlines of the objects, and {data.name} has boxes only. Type for example: "
            f"--model {config.model.replace('maskrcnn', 'fasterrcnn')}"
        )
    make_evaluator(data, config.judged_by, masks=False)  # its package may be missing
    progress.line(f"images: {data.source}")
    for notice in data.notices:
        progress.note(notice)
    progress.line(
        f"{len(data.train):,} images to train on with {data.train.objects:,} objects, {len(data.validation):,} to "
        f"validate with {data.validation.objects:,}, {len(data.classes)} classes"
    )
    return accelerator, data
