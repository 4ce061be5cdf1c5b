"""The options of `cbam compare`, and how they are stored in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from cbam.attach.variants import CONTROL, matched_by_control, parse_variants
from cbam.errors import CBAMError
from cbam.runs.config import RunConfig, option
from cbam.runs.options import absolute_data, check_ranges, folder_name, tracker_names
from cbam.train.config import NetworkConfig
from cbam.train.images import absolute_table


@dataclass(frozen=True, kw_only=True)
class GridConfig(RunConfig):
    """The options of a comparison, whatever is trained: variants, seeds, and where.

    Each field is an option; the text below it is the option's help.
    """

    compares: ClassVar[bool] = True
    essential: ClassVar[tuple[str, ...]] = ("seeds",)

    # A finished run can get more variants and more seeds: they change how much is computed, not the result of a cell.
    attention: str = option("none,se,cbam,control", affects_result=False)
    """Variants, separated by commas: none; kinds of attention, e.g. se, eca, timm:gc, cbam; and control: plain, but
    widened until it has as many parameters as cbam. Words after a colon modify a kind: cbam:official, cbam:timm;
    cbam:fresh has random gates where --pretrained and --weights would start at identity; cbam:k3, cbam:r8,
    channel:avg, cbam:parallel, ..."""
    reduction_ratio: int | None = None
    """Width of the channel gate's hidden layer: channels / ratio. None: 16 for CBAM and SE, else the kind's own."""
    seeds: int = option(3, affects_result=False)
    """How many times to train each variant: seeds 0 to N-1. Seeds and variants can be added to a finished run."""
    output: Path | None = option(None, affects_result=False)
    """The run's folder; the same command resumes it. None: runs/DATA-MODEL, with -2, -3, ... where that holds another
    run."""
    overwrite: bool = option(False, affects_result=False)
    """Start over: move the run in the folder aside, to FOLDER-old."""
    config: Path | None = None
    """A YAML file with options, one `name: value` per line; options on the command line win."""
    ray: str | None = option(None, affects_result=False)
    """Train on a Ray cluster with shared folders: its address, auto to find it, local for one on this machine."""
    slurm: str | None = option(None, affects_result=False)
    """Train in Slurm jobs: submitit's parameters, e.g. slurm_partition=gpu,timeout_min=240; cluster=local runs here."""
    track: str = option("", affects_result=False)
    """tensorboard, wandb, or both with a comma, for every model, in addition to metrics.jsonl."""
    quick: bool = option(False, affects_result=False)
    """Leave out what comes after training: latency and pictures. The same command without it adds them."""
    model_cpus: int = option(1, affects_result=False)
    """Processor cores for each model, with --ray or --slurm."""
    model_gpus: int = option(0, affects_result=False)
    """GPUs for each model, with --ray or --slurm."""

    def check_grid(self) -> None:
        """Refuse options outside their range, or that would be ignored.

        Raises:
            CBAMError: The first one, by name.
        """
        self._check_attention()
        tracker_names(self.track)
        if self.ray and self.slurm:
            raise CBAMError("--ray and --slurm both say where to train: give one of them")
        check_ranges(
            ("seeds", self.seeds, self.seeds >= 1, "at least 1"),
            ("model-cpus", self.model_cpus, self.model_cpus >= 1, "at least 1"),
            ("model-gpus", self.model_gpus, self.model_gpus >= 0, "at least 0"),
            (
                "reduction-ratio",
                self.reduction_ratio,
                self.reduction_ratio is None or self.reduction_ratio >= 1,
                "at least 1",
            ),
        )
        if not self.elsewhere:
            for option, given, default in (("cpus", self.model_cpus, 1), ("gpus", self.model_gpus, 0)):
                if given != default:
                    raise CBAMError(
                        f"--model-{option} {given} has no effect without --ray or --slurm: leave it out, or say where "
                        "to train, for example --ray auto"
                    )

    def _check_attention(self) -> None:
        parse_variants(self.attention)

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants in the order given."""
        return parse_variants(self.attention)

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers' names."""
        return tracker_names(self.track)

    @property
    def elsewhere(self) -> bool:
        """Whether the models are trained by other processes than this one."""
        return self.ray is not None or self.slurm is not None

    def grid_settings(self) -> dict[str, Any]:
        """Return the options whose value is not stored as it was given."""
        return {
            "attention": ",".join(self.variants),
            "reduction_ratio": 16 if self.reduction_ratio is None else self.reduction_ratio,
            "output": str(self.folder),
        }

    @classmethod
    def differences(cls, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """Name the settings in which two runs would give different results, the size of the control among them."""
        found = super().differences(before, now)
        there, here = (str(settings.get("attention", "")).split(",") for settings in (before, now))
        if CONTROL in there and (
            matched_by_control(there) != (matched := matched_by_control(list(dict.fromkeys([*there, *here]))))
        ):
            found.append(f"control: as large as {matched_by_control(there)} there, as {matched} now")
        return found


@dataclass(frozen=True, kw_only=True)
class CompareConfig(GridConfig, NetworkConfig):
    """Everything that a comparison depends on.

    Each field is an option of `cbam compare`; the text below it is the option's help.

    >>> config = CompareConfig(data="digits", attention="none,cbam", seeds=2)
    >>> config.variants, str(config.folder)
    (('none', 'cbam'), 'runs/digits-resnet20')
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_grid()
        if self.train.shard:
            raise CBAMError("--shard is for one network that does not fit: cbam train --shard")

    @property
    def folder(self) -> Path:
        """The run's folder, relative as given."""
        if self.output is not None:
            return self.output
        return Path("runs") / folder_name(self.data, self.model)

    def resolved(self) -> dict[str, Any]:
        """Return every option's value, with defaults filled in and paths made absolute.

        >>> CompareConfig(data="digits").resolved()["lr"]
        0.1
        """
        return super().resolved() | self.grid_settings()

    def anywhere(self) -> CompareConfig:
        """Return the options with absolute paths, for processes that start in another folder.

        >>> CompareConfig(data="digits").anywhere().folder.is_absolute()
        True
        """
        return replace(
            self,
            output=self.folder.resolve(),
            data=absolute_data(self.data),
            labels=absolute_table(self.labels),
            weights=self.weights.resolve() if self.weights else None,
        )


def merged(before: str, now: tuple[str, ...]) -> tuple[str, ...]:
    """Return the variants of the run in a folder, followed by those that are new.

    >>> merged("none,cbam", ("none", "se"))
    ('none', 'cbam', 'se')
    """
    return tuple(dict.fromkeys([*before.split(","), *now])) if before else now
