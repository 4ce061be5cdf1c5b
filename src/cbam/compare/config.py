"""What `cbam compare` is asked to do: the options, their help, their defaults, and the file they are kept in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbam.attach.sites.select import split_sites
from cbam.compare.variants import matched_by_control, parse_variants
from cbam.errors import CBAMError
from cbam.runs.options import absolute_data, check_ranges, folder_name
from cbam.train.config import TrainConfig
from cbam.train.images import ImageOptions, check_start


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ImageOptions):
    """Everything that a comparison depends on.

    Each field is an option of `cbam compare`; the text below it is the option's help.

    >>> config = CompareConfig(data="digits", attention="none,cbam", seeds=2)
    >>> config.variants, str(config.folder)
    (('none', 'cbam'), 'runs/digits-resnet20')
    """

    model: str = "resnet20"
    """resnet20 ... resnet110 for small images, paper_resnet18 ..., or torchvision's and timm's names, e.g. resnet18."""
    attention: str = "none,se,cbam,control"
    """Variants, with commas: none, se, cbam, channel, spatial, and control, which is plain, but widened until it has as
    many parameters as cbam. Words behind a colon change one: cbam:official, cbam:timm; cbam:fresh has random gates
    where --pretrained and --weights would start at identity; cbam:k3, cbam:r8, channel:avg, cbam:parallel, ..."""
    sites: tuple[str, ...] = ("auto",)
    """Where attention goes, as `cbam plan` takes it: auto is the end of every residual branch, or of every stage where
    there is none; or module paths and patterns with spaces or commas, e.g. features.4 features.9 for a VGG."""
    seeds: int = 3
    """How many times to train each variant: seeds 0 to N-1. A finished run can get more of them, and more variants."""
    output: Path | None = None
    """The run's folder; the same command again goes on in it. None: runs/DATA-MODEL."""
    config: Path | None = None
    """A YAML file with options, one `name: value` per line; options on the command line win."""
    pretrained: bool = False
    """Start from the weights that torchvision or timm publish for the model."""
    weights: Path | None = None
    """Start from this file (.safetensors, .pth); a classifier of another size is left out."""
    reduction_ratio: int = 16
    """Width of the channel gate's hidden layer: channels / ratio."""
    ray: str | None = None
    """Train the models on a Ray cluster whose machines share the folders: its address, auto for the one that this
    machine is in, local for one on this machine alone."""
    slurm: str | None = None
    """Train each model as a Slurm job through submitit, whose parameters these are, with commas, e.g.
    slurm_partition=gpu,timeout_min=240; cluster=local runs them on this machine."""
    model_cpus: int = 1
    """Processor cores for each model, with --ray or --slurm."""
    model_gpus: int = 0
    """GPUs for each model, with --ray or --slurm."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The recipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_attention()
        if self.train.shard:
            raise CBAMError("--shard is for one network that does not fit: cbam train --shard")
        if self.ray and self.slurm:
            raise CBAMError("--ray and --slurm both say where to train: give one of them")
        check_ranges(
            ("seeds", self.seeds, self.seeds >= 1, "at least 1"),
            ("model-cpus", self.model_cpus, self.model_cpus >= 1, "at least 1"),
            ("model-gpus", self.model_gpus, self.model_gpus >= 0, "at least 0"),
            ("reduction-ratio", self.reduction_ratio, self.reduction_ratio >= 1, "at least 1"),
        )
        check_start(self.pretrained, self.weights)
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
    def elsewhere(self) -> bool:
        """Whether the models are trained by other processes than this one."""
        return self.ray is not None or self.slurm is not None

    @property
    def fine_tuning(self) -> bool:
        """Whether training starts from weights of an earlier training."""
        return self.pretrained or self.weights is not None

    @property
    def folder(self) -> Path:
        """The run's folder, relative as given."""
        if self.output is not None:
            return self.output
        return Path("runs") / folder_name(self.data, self.model)


# These change where or how fast a run is computed, or how much of it, not what comes out of one cell.
NOT_COMPARED = ("output", "workers", "seeds", "attention", "ray", "slurm", "model_cpus", "model_gpus")


def resolved(config: CompareConfig) -> dict[str, Any]:
    """Return every setting by its option's name, with defaults filled in and paths made absolute.

    >>> resolved(CompareConfig(data="digits"))["lr"]
    0.1
    """
    settings = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    del settings["train"], settings["config"]
    settings |= dataclasses.asdict(config.train)
    settings["lr"] = config.train.peak_lr(fine_tuning=config.fine_tuning)
    settings["attention"] = ",".join(config.variants)
    settings["sites"] = ",".join(split_sites(config.sites))
    settings["data"] = absolute_data(config.data)
    settings["output"] = config.folder
    settings["weights"] = config.weights.resolve() if config.weights else None
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


_DEFAULTS = {
    item.name: item.default
    for part in (CompareConfig, TrainConfig)
    for item in dataclasses.fields(part)
    if item.default is not dataclasses.MISSING and item.name != "sites"
} | {"sites": "auto"}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the settings in which two resolved configurations would give different numbers.

    >>> differences({"epochs": 10, "workers": 0}, {"epochs": 20, "workers": 4})
    ['epochs: 10 there, 20 now']
    """
    # A run of an older version does not name an option that was added since: it ran with what is the default now.
    before = {name: _DEFAULTS[name] for name in now if name in _DEFAULTS} | before
    names = [name for name in dict.fromkeys([*before, *now]) if name not in NOT_COMPARED]
    found = [
        f"{name}: {before.get(name)} there, {now.get(name)} now"
        for name in names
        if before.get(name) != now.get(name)
    ]
    there, here = (str(settings.get("attention", "")).split(",") for settings in (before, now))
    if "control" in there and (
        matched_by_control(there) != (matched := matched_by_control(list(dict.fromkeys([*there, *here]))))
    ):
        found.append(f"control: as large as {matched_by_control(there)} there, as {matched} now")
    return found


def merged(before: str, now: tuple[str, ...]) -> tuple[str, ...]:
    """Return the variants of a run in a folder, and behind them those that are asked for in addition.

    >>> merged("none,cbam", ("none", "se"))
    ('none', 'cbam', 'se')
    """
    return tuple(dict.fromkeys([*before.split(","), *now])) if before else now
