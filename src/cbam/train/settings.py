"""What `cbam train` is asked to do: the options, their help, their defaults, and the words they are kept in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cbam.errors import CBAMError, unknown_name
from cbam.runs.options import absolute_data, check_ranges, folder_name
from cbam.train.config import TrainConfig
from cbam.train.images import ImageOptions, check_start

TRACKERS = ("tensorboard", "wandb")
# These change where or how fast a run is computed, not what comes out.
NOT_COMPARED = ("output", "workers", "save_every", "keep", "track", "device", "accumulate", "compile")
_OF_GATES = ("gate_lr_scale", "gate_weight_decay")
_WITHOUT_EFFECT = {
    "se": ("preset", "kernel_size"),
    "channel": ("kernel_size",),
    "spatial": ("reduction_ratio",),
    "none": ("sites", "preset", "reduction_ratio", "kernel_size", *_OF_GATES),
}


@dataclass(frozen=True, kw_only=True)
class TrainRun(ImageOptions):
    """Everything that one training depends on.

    Each field is an option of `cbam train`; the text below it is the option's help.

    >>> run = TrainRun(data="digits", model="resnet20")
    >>> str(run.folder)
    'runs/train-digits-resnet20-cbam'
    >>> str(TrainRun(data="shards:/data/images?window=2").folder)
    'runs/train-images-resnet50-cbam'
    """

    model: str = "resnet50"
    """resnet20 ... resnet110 for small images, paper_resnet50 ..., or torchvision's and timm's names."""
    attention: Literal["cbam", "se", "channel", "spatial", "none"] = "cbam"
    """What to attach."""
    preset: str = "official"
    """Dialect of CBAM: paper (the equations), official (the authors' code, the paper's parameter counts), timm."""
    sites: str = "auto"
    """Where, with commas, as `cbam plan` takes it: auto is the end of every residual branch, conv behind every
    convolution."""
    reduction_ratio: int = 16
    """Width of the channel gate's hidden layer: channels / ratio."""
    kernel_size: int = 7
    """Of the spatial gate's convolution."""
    seed: int = 0
    """Decides first weights, order, augmentation and dropout."""
    output: Path | None = None
    """The run's folder; the same command again goes on in it. None: runs/train-DATA-MODEL-ATTENTION."""
    config: Path | None = None
    """A YAML file with options, one `name: value` per line; options on the command line win."""
    pretrained: bool = False
    """Start from the weights that torchvision or timm publish for the model."""
    weights: Path | None = None
    """Start from this file (.safetensors, .pth); a classifier of another size is left out."""
    save_every: int | None = None
    """Steps between two saves; in any case after each epoch, and when told to stop."""
    keep: int = 2
    """Checkpoints that stay: the newest, and those to fall back to if it is damaged."""
    track: str = ""
    """tensorboard, wandb, or both with a comma, beside metrics.jsonl and metrics.csv."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The recipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            ("reduction-ratio", self.reduction_ratio, self.reduction_ratio >= 1, "at least 1"),
            ("save-every", self.save_every, self.save_every is None or self.save_every >= 1, "at least 1"),
            ("keep", self.keep, self.keep >= 1, "at least 1"),
        )
        for name in self.trackers:
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)
        check_start(self.pretrained, self.weights)
        self._refuse_what_is_ignored()

    def _refuse_what_is_ignored(self) -> None:
        """Refuse options of the attention that the one in the network does not have."""
        ignored = []
        for name in _WITHOUT_EFFECT.get(self.attention, ()):
            part: Any = self.train if name in _OF_GATES else self
            given = getattr(part, name)
            # Defaults are class attributes of a dataclass. What is typed as the default changes nothing either way.
            if given != getattr(type(part), name) and not (name in _OF_GATES and self._brings_attention()):
                ignored.append(f"--{name.replace('_', '-')} {given}")
        if ignored:
            has, it = ("has", "it") if len(ignored) == 1 else ("have", "them")
            instead = "" if self._brings_attention() else ", or take --attention cbam"
            raise CBAMError(
                f"{', '.join(ignored)} {has} no effect with --attention {self.attention}. Leave {it} out{instead}"
            )

    def _brings_attention(self) -> bool:
        """Whether the network comes with attention of ours, whose weights the optimizer knows as such."""
        from cbam.models.registry import split_attention  # lazily: it makes the backbones known

        return split_attention(self.model)[1] is not None

    @property
    def fine_tuning(self) -> bool:
        """Whether training starts from weights of an earlier training."""
        return self.pretrained or self.weights is not None

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers' names."""
        return tuple(name.strip() for name in self.track.split(",") if name.strip())

    @property
    def folder(self) -> Path:
        """The run's folder, relative as given."""
        if self.output is not None:
            return self.output
        return Path("runs") / ("train-" + folder_name(self.data, self.model, self.attention))


def resolved(run: TrainRun) -> dict[str, Any]:
    """Return every setting by its option's name, with defaults filled in and paths made absolute.

    >>> resolved(TrainRun(data="digits"))["lr"]
    0.1
    """
    settings = {item.name: getattr(run, item.name) for item in dataclasses.fields(run)}
    del settings["train"], settings["config"]
    settings |= dataclasses.asdict(run.train)
    settings["lr"] = run.train.peak_lr(fine_tuning=run.fine_tuning)
    settings["data"] = absolute_data(run.data)
    settings["output"] = run.folder
    settings["weights"] = run.weights.resolve() if run.weights else None
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the settings in which two resolved configurations would give different numbers.

    >>> differences({"epochs": 10, "workers": 0}, {"epochs": 20, "workers": 4})
    ['epochs: 10 there, 20 now']
    """
    names = [name for name in dict.fromkeys([*before, *now]) if name not in NOT_COMPARED]
    return [
        f"{name}: {before.get(name)} there, {now.get(name)} now"
        for name in names
        if before.get(name) != now.get(name)
    ]
