"""`cbam compare`: run a comparison of classifiers from its options to its report, or resume one that was stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from cbam.attach.variants import CONTROL, matched_by_control
from cbam.checkpoints import tensors_file
from cbam.checkpoints.switches import as_header, switches_of
from cbam.compare.config import CompareConfig
from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell, build_cell
from cbam.compare.job import ComparisonJob, Outcome, grown
from cbam.compare.measure import draw_pictures, known_costs, measure_costs, pictures_done, trained_models
from cbam.compare.mistakes import draw_mistakes
from cbam.compare.report import write_report
from cbam.compare.statistics import ACCURACY, score_of, summarise, write_summary_csv
from cbam.data import ImageData
from cbam.errors import CBAMError
from cbam.evaluate.predictions import FILE as PREDICTIONS
from cbam.models.registry import as_variant, split_attention
from cbam.pretrained.config import Config
from cbam.pretrained.saving import write_network
from cbam.runs.environment import now
from cbam.runs.launchers import check_launcher
from cbam.runs.progress import Progress
from cbam.train.build import count_parameters
from cbam.train.evaluation import Evaluation
from cbam.train.job import ImageJob, describe_trained, prepare_images, with_batch_size, with_config
from cbam.train.loop import Trained
from cbam.train.trackers import check_trackers


@dataclass(kw_only=True)
class CompareJob(ImageJob[Cell, Outcome], ComparisonJob[ImageData]):
    """A comparison of classifiers, or of networks for several labels.

    Attributes:
        described: What config.json says of the networks that this process has trained, by cell.
    """

    config: CompareConfig
    described: dict[str, Config] = field(default_factory=dict)

    @classmethod
    def score_name(cls, data: ImageData) -> str:
        """Return the accuracy, or of several labels the mean average precision."""
        return score_of(data.identity).key

    def build(self, cell: Cell) -> nn.Module:
        """Return the model of a cell as it is before training."""
        return build_cell(cell, self.config, self.data, self.parameters)

    def result(self, cell: Cell, trained: Trained[Any]) -> dict[str, Any]:
        """Return accuracy and confusion, or the scores of each label; write what the network said of each image."""
        counts = {}
        if isinstance(trained.evaluation, Evaluation):
            counts["confusion"] = trained.evaluation.confusion.tolist()
            if self.processes.is_main_process and trained.evaluation.predictions is not None:
                trained.evaluation.predictions.write(self.folder.cell(cell) / PREDICTIONS)
        about = {
            "parameters": count_parameters(trained.model),
            "seconds": trained.seconds,
            "finished": now(),
        }
        return {**trained.evaluation.figures(trained.ema_evaluation), **counts, **about}

    def result_text(self, result: dict[str, Any]) -> str:
        """Format the main score."""
        score = score_of(self.data.identity)
        return f"val {'' if score is ACCURACY else 'mAP '}{100 * result[score.key]:.2f} %"

    def write_weights(self, cell: Cell, model: nn.Module, averaged: nn.Module | None) -> None:
        """Write the network like `cbam.save_pretrained`, and the weights of its moving average beside it."""
        path = self.folder.cell(cell)
        write_network(path, model, self._describe(cell, model))
        if averaged is not None:
            header = as_header(switches_of(averaged))
            tensors_file.write(path / "model_ema.safetensors", averaged.state_dict(), header)

    def describe_checkpoint(
        self, cell: Cell, model: nn.Module, files: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        """Return the config.json of the network in a checkpoint."""
        return with_config(files, self._describe(cell, model))

    def _describe(self, cell: Cell, model: nn.Module) -> Config:
        known = self.described.get(cell.name)
        if known is None:
            target = None
            if cell.variant == CONTROL:
                target = self.parameters[matched_by_control(self.config.variants)]
            known = describe_trained(model, self.config.model, self.data, widened_to=target)
        self.described[cell.name] = known
        return known

    def finish(self, worked: Sequence[Cell]) -> Outcome:
        """Measure, draw, and write the report."""
        costs = self._measure(again=any(cell.seed == 0 for cell in worked))
        results = [result for cell in self.cells if (result := self.folder.result(cell))]
        score = score_of(self.data.identity)
        summary = summarise(results, self.config.variants, score, self.folder.metrics.read())
        write_summary_csv(self.folder.path, summary, score)
        if self.data.task == "multiclass":
            draw_mistakes(self.folder, self.cells, self.data)
        return Outcome(self.data.name, summary, costs, write_report(self.folder.path), score.word)

    def _measure(self, *, again: bool) -> dict[str, Any]:
        """Write `costs.json` and the pictures where they are missing, or all of them if `again`."""
        variants, folder, quick = self.config.variants, self.folder, self.config.quick
        costs = known_costs(folder, variants, again=again, quick=quick)
        several = self.data.task == "multilabel"  # Grad-CAM's panels show one class of each image
        drawn = quick or several or (pictures_done(folder, variants) and not again)
        if not (costs and drawn):
            device = self.processes.device
            models = trained_models(folder, self.config, self.data, self.parameters, device)
            if not costs:
                self.progress.phase("counting the cost" if quick else "measuring cost and latency")
                costs = measure_costs(models, self.data.input_size, timed=not quick)
            if not drawn:
                self.progress.phase("drawing what the models look at (Grad-CAM)")
                try:
                    draw_pictures(folder, models, self.data)
                except CBAMError as error:  # a network without a feature map still has its numbers
                    self.progress.note(f"no pictures: {error}")
        return self.with_speed(costs)


def prepare(config: CompareConfig, command: list[str], progress: Progress) -> CompareJob:
    """Check everything that can be checked before training: folder, device, images, and a model of each variant.

    Args:
        config: What to do.
        command: What the user typed, for `env.json`.
        progress: Gets lines on the images and the models.

    Raises:
        CBAMError: Something requested does not exist or does not fit; the message says what to type.
    """
    check_launcher(config.ray, config.slurm)
    backbone, brought = split_attention(config.model)
    if brought:
        raise CBAMError(
            f"--model {config.model} already has attention, so every variant would have it. "
            f"Type --model {backbone} --attention none,{as_variant(brought)}"
        )
    check_trackers(config.trackers)
    folder = CompareFolder(config.folder, overwrite=config.overwrite)
    config = config.as_started(None if config.overwrite else folder.settings())
    before = folder.check_settings(config.resolved(), CompareConfig)
    config = grown(config, before, progress)
    accelerator, data = prepare_images(config, config.train, folder, progress)
    folder.score_name = CompareJob.score_name(data)
    models = [partial(build_cell, Cell(variant, 0), config, data) for variant in config.variants]
    config = replace(config, train=with_batch_size(config.train, models, data, accelerator, progress))
    parameters: dict[str, int] = {}
    for variant in config.variants:
        if variant not in parameters:
            build_cell(Cell(variant, 0), config, data, parameters)
    counts = ", ".join(f"{variant} {parameters[variant]:,}" for variant in config.variants)
    progress.line(f"{config.model}, parameters: {counts}")
    return CompareJob(
        config=config,
        command=command,
        folder=folder,
        progress=progress,
        processes=accelerator,
        data=data,
        parameters=parameters,
    )
