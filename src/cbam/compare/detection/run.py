"""`cbam detect compare`: run a comparison of detectors from its options to its report, or resume one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from cbam.attach.variants import CONTROL, matched_by_control
from cbam.checkpoints.switches import switches_of
from cbam.compare.detection.config import DetectCompareConfig
from cbam.compare.detection.measure import (
    DETECTIONS,
    draw_detected,
    image_intervals,
    measure_detectors,
    pictures_drawn,
    store_detections,
    trained_detectors,
)
from cbam.compare.detection.report import AVERAGE_PRECISION, write_detection_report
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell
from cbam.compare.job import ComparisonJob, Outcome, grown
from cbam.compare.measure import known_costs
from cbam.compare.statistics import summarise, write_summary_csv
from cbam.data.detection import DetectionData
from cbam.detect.build import build, detector_arguments
from cbam.detect.evaluation import DetectionScores
from cbam.detect.run import DetectionJob, describe, prepare_detection
from cbam.detect.saved import save_detector
from cbam.runs.environment import now
from cbam.runs.launchers import check_launcher
from cbam.runs.progress import Progress
from cbam.train.build import count_parameters
from cbam.train.loop import Trained
from cbam.train.state import whole_state
from cbam.train.trackers import check_trackers


@dataclass(kw_only=True)
class DetectCompareJob(DetectionJob[Cell, Outcome], ComparisonJob[DetectionData]):
    """A comparison of detectors."""

    config: DetectCompareConfig

    @classmethod
    def score_name(cls, data: DetectionData) -> str:
        """Return the average precision of boxes."""
        return AVERAGE_PRECISION.key

    def build(self, cell: Cell) -> nn.Module:
        """Return the detector of a cell as it is before training."""
        return build_cell(cell, self.config, len(self.data.classes), self.parameters)

    def result(self, cell: Cell, trained: Trained[DetectionScores]) -> dict[str, Any]:
        """Return the figures; write all of them with the curves, and the detections."""
        scores, ema = trained.evaluation, trained.ema_evaluation
        if self.processes.is_main_process:
            path = self.folder.cell(cell)
            store_detections(path / DETECTIONS, scores)
            self.folder.write_json(
                f"cells/{cell.name}/evaluation.json", {"metric": scores.metric, **scores.content}
            )
        return {
            **scores.row(),
            **({"val_map_ema": ema.mean_ap} if ema else {}),
            "per_class_ap": list(scores.per_class().values()),
            "parameters": count_parameters(trained.model),
            "seconds": trained.seconds,
            "finished": now(),
        }

    def result_text(self, result: dict[str, Any]) -> str:
        """Format the average precision."""
        return self.score_text(result)

    def write_weights(self, cell: Cell, model: nn.Module, averaged: nn.Module | None) -> None:
        """Write the detector in the form that `cbam detect evaluate` and `predict` read."""
        config, classes = self.config, len(self.data.classes)
        arguments = detector_arguments(config, cell.variant, config.reduction_ratio, classes)
        target = None
        if cell.variant == CONTROL:
            target = self.parameters[matched_by_control(self.config.variants)]
        about = describe(self.data, config, arguments, model, target)
        path = self.folder.cell(cell)
        save_detector(path, whole_state(model), about, switches_of(model))
        if averaged is not None:
            save_detector(path / "ema", whole_state(averaged), about, switches_of(averaged))

    def finish(self, worked: Sequence[Cell]) -> Outcome:
        """Measure, draw, resample, and write the report."""
        costs = self._measure(again=any(cell.seed == 0 for cell in worked))
        done = [cell for cell in self.cells if self.folder.result(cell)]
        summary = summarise(
            [result for cell in done if (result := self.folder.result(cell))],
            self.config.variants,
            AVERAGE_PRECISION,
            self.folder.metrics.read(),
        )
        if worked or not (self.folder.path / "images.json").exists():
            self.progress.phase("resampling the validation images")
            intervals = image_intervals(self.folder, done, self.data, self.config.judged_by, summary.baseline)
            self.folder.write_json("images.json", intervals)
        write_summary_csv(self.folder.path, summary, AVERAGE_PRECISION)
        return Outcome(self.data.name, summary, costs, write_detection_report(self.folder.path))

    def _measure(self, *, again: bool) -> dict[str, Any]:
        """Write `costs.json` and the pictures where they are missing, or all of them if `again`."""
        variants, folder, quick = self.config.variants, self.folder, self.config.quick
        costs = known_costs(folder, variants, again=again, quick=quick)
        drawn = quick or (pictures_drawn(folder, variants) and not again)
        if not (costs and drawn):
            models = trained_detectors(folder, variants, self.processes.device)
            if not costs:
                self.progress.phase("counting the cost" if quick else "measuring cost and latency")
                side = self.config.sides[0]
                costs = measure_detectors(models, (3, side, side), timed=not quick)
            if not drawn:
                self.progress.phase("drawing what the detectors find")
                draw_detected(folder, models, self.data)
        return self.with_speed(costs)


def build_cell(
    cell: Cell, config: DetectCompareConfig, classes: int, parameters: dict[str, int]
) -> nn.Module:
    """Return the detector of a cell as it is before training; all variants of a seed start from the same weights.

    Args:
        cell: Variant and seed.
        config: Of the run.
        classes: Number of classes.
        parameters: Parameter counts by variant that are known so far; this detector's is added.

    Raises:
        CBAMError: The detector, its weights, the sites for the attention or a control of that size do not exist.
    """
    target = None
    if cell.variant == CONTROL:
        matched = matched_by_control(config.variants)
        if matched not in parameters:
            build_cell(Cell(matched, cell.seed), config, classes, parameters)
        target = parameters[matched]
    ratio = config.reduction_ratio
    model = build(config, cell.variant, cell.seed, classes, reduction_ratio=ratio, widened_to=target)
    parameters[cell.variant] = count_parameters(model)
    return model


def prepare(config: DetectCompareConfig, command: list[str], progress: Progress) -> DetectCompareJob:
    """Check everything that can be checked before training: folder, device, annotations, a detector of each variant.

    Args:
        config: What to do.
        command: What the user typed, for `env.json`.
        progress: Gets lines on the images and the detectors.

    Raises:
        CBAMError: Something requested does not exist or does not fit; the message says what to type.
    """
    check_launcher(config.ray, config.slurm)
    check_trackers(config.trackers)
    folder = CompareFolder(config.folder, AVERAGE_PRECISION.key, overwrite=config.overwrite)
    before = folder.check_settings(config.resolved(), DetectCompareConfig)
    config = grown(config, before, progress)
    accelerator, data = prepare_detection(config, config.train, folder, progress)
    parameters: dict[str, int] = {}
    for variant in config.variants:
        if variant not in parameters:
            build_cell(Cell(variant, 0), config, len(data.classes), parameters)
    counts = ", ".join(f"{variant} {parameters[variant]:,}" for variant in config.variants)
    progress.line(f"{config.model}, parameters: {counts}")
    return DetectCompareJob(
        config=config,
        command=command,
        folder=folder,
        progress=progress,
        processes=accelerator,
        data=data,
        parameters=parameters,
    )
