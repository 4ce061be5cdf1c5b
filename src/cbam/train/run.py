"""`cbam train`: run one training, or resume it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from cbam.data import ImageData
from cbam.errors import CBAMError
from cbam.models.registry import as_variant, split_attention
from cbam.pretrained.config import Config
from cbam.pretrained.saving import write_network
from cbam.runs.environment import now
from cbam.runs.folder import RunFolder
from cbam.runs.progress import Progress
from cbam.train.build import build_network, count_parameters, widening
from cbam.train.config import TrainRunConfig
from cbam.train.job import ImageJob, describe_trained, prepare_images, with_batch_size, with_config
from cbam.train.loop import Trained
from cbam.train.single import Network, SingleJob
from cbam.train.trackers import check_trackers


@dataclass(kw_only=True)
class TrainJob(ImageJob[Network, "dict[str, Any]"], SingleJob[ImageData]):
    """The training of one classifier."""

    config: TrainRunConfig

    @property
    def options(self) -> TrainRunConfig:
        """The run's options."""
        return self.config

    @property
    def score_name(self) -> str:
        """The accuracy, or of several labels the mean average precision."""
        return "val_map" if self.data.task == "multilabel" else "val_accuracy"

    @property
    def patience(self) -> int | None:
        """The option."""
        return self.config.patience

    def build(self) -> nn.Module:
        """Return the network as it is before training."""
        return build(self.config, self.data)

    def validation_images(self) -> int:
        """Return the number of images that validate."""
        return len(self.data.val)

    def write_network(self, name: str, weights: dict[str, Tensor]) -> None:
        """Save weights into a folder that `cbam.from_pretrained` and `cbam evaluate` read."""
        self.skeleton.load_state_dict(weights)
        write_network(self.folder.path / name, self.skeleton, self.network)

    def describe_checkpoint(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the config.json of the network in a checkpoint."""
        return with_config(files, self.network)

    @cached_property
    def network(self) -> Config:
        """What config.json says of the network, without the digest of its weights."""
        widened_to = _widening(self.config, self.data)
        return describe_trained(self.skeleton, self.config.model, self.data, widened_to=widened_to)

    def result(self, trained: Trained[Any]) -> dict[str, Any]:
        """Return the scores of the last epoch, and which epoch was the best."""
        best = self.best_row()
        return {
            **trained.evaluation.figures(trained.ema_evaluation),
            "best_epoch": best["epoch"],
            f"best_{self.score_name}": best[self.score_name],
            "epochs": trained.epochs,
            "parameters": count_parameters(self.skeleton),
            "recipe": dataclasses.asdict(self.config.train),
            "seconds": trained.seconds,
            "finished": now(),
        }


def prepare(config: TrainRunConfig, command: list[str], progress: Progress) -> TrainJob:
    """Check everything that can be checked before training: folder, device, trackers, images, model.

    Args:
        config: What to do.
        command: What the user typed, for `env.json`.
        progress: Gets lines on the images and the model.

    Raises:
        CBAMError: Something requested does not exist or does not fit; the message says what to type.
    """
    check_trackers(config.trackers)
    folder = RunFolder(config.folder, overwrite=config.overwrite)
    config = config.as_started(None if config.overwrite else folder.settings())
    config = config.begun(folder.check_settings(config.resolved(), TrainRunConfig))
    accelerator, data = prepare_images(config, config.train, folder, progress)
    recipe = with_batch_size(config.train, [partial(build, config, data)], data, accelerator, progress)
    config = dataclasses.replace(config, train=recipe)
    job = TrainJob(
        config=config, command=command, folder=folder, progress=progress, processes=accelerator, data=data
    )
    count = count_parameters(job.skeleton)
    progress.line(f"{config.model}, attention {config.attention}: {count:,} parameters")
    return job


def build(config: TrainRunConfig, data: ImageData) -> nn.Module:
    """Return the network as it is before training; its first weights depend on the seed alone.

    Args:
        config: Model, weights and attention.
        data: Gives the number of classes and the image size.

    Raises:
        CBAMError: The model, its weights or the sites for the attention do not exist.
    """
    backbone, brought = split_attention(config.model)
    if brought and config.attention != "none":
        raise CBAMError(
            f"--model {config.model} already has attention. Type --attention none, or "
            f"--model {backbone} --attention {as_variant(brought)}"
        )
    widened_to = _widening(config, data)
    return build_network(config, data, config.seed, config.attach_arguments, widened_to=widened_to)


def _widening(config: TrainRunConfig, data: ImageData) -> int | None:
    with_cbam = dataclasses.replace(config, attention="cbam", widened_to=None)
    return widening(config.widened_to, config.attention, lambda: build(with_cbam, data))
