"""The options of a training: the recipe, which `cbam compare` shares, and the options of `cbam train` alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from cbam.attach.replacement import check_replace
from cbam.errors import CBAMError, unknown_name
from cbam.nn.registry import attention_kind
from cbam.runs.config import option
from cbam.runs.options import absolute_data, check_ranges, folder_name
from cbam.train.images import ImageConfig, check_start
from cbam.train.recipe import SCHEDULES, Plan, Recipe

# Peak learning rates at batch size 128: (from scratch, fine-tuning).
PEAK_LR = {"sgd": (0.1, 0.01), "momentum": (0.1, 0.01), "adamw": (1e-3, 1e-4)}
TRACKERS = ("tensorboard", "wandb")
_OF_GATES = ("gate_lr_scale", "gate_weight_decay")
# Options of the attention and their defaults.
_OF_ATTENTION = {"preset": "official", "reduction_ratio": 16, "kernel_size": 7}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """The training recipe: SGD with Nesterov momentum 0.9, one short warm-up, then a cosine to zero, step by step.

    Each field is an option of `cbam train` and `cbam compare`; the text below it is the option's help.

    >>> TrainConfig(epochs=2).peak_lr(fine_tuning=False)
    0.1
    """

    lr: float | None = None
    """Peak learning rate. None: 0.1 from scratch, 0.01 with --pretrained or --weights (adamw: 1e-3, 1e-4)."""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine falls to zero; step divides the rate by 10 every --step-epochs."""
    step_epochs: int = 30
    """Epochs between two drops of the step schedule."""
    warmup_epochs: float | None = None
    """Epochs in which the rate rises. None: with cosine 1, or a tenth of all epochs if that is less; with step 0."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    mixup: float = 0.0
    """Mixup with shares from Beta(X, X); 0 is off, 0.2 is usual."""
    cutmix: float = 0.0
    """CutMix with areas from Beta(X, X); 0 is off, 1 is usual. With --mixup, each batch gets one of the two."""
    # As for the device: the same gradient up to rounding.
    shard: bool = option(False, affects_result=False)
    """Shard weights, gradients and optimizer over the processes (FSDP2) instead of copying them (DDP)."""
    compile: bool = option(False, affects_result=False)
    """Compile the network with torch.compile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            ("step-epochs", self.step_epochs, self.step_epochs >= 1, "at least 1"),
            (
                "warmup-epochs",
                self.warmup_epochs,
                self.warmup_epochs is None or 0 <= self.warmup_epochs < self.epochs,
                f"from 0 to below --epochs {self.epochs}",
            ),
            ("mixup", self.mixup, 0 <= self.mixup < float("inf"), "at least 0, e.g. 0.2"),
            ("cutmix", self.cutmix, 0 <= self.cutmix < float("inf"), "at least 0, e.g. 1"),
            ("label-smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to below 1"),
        )
        if self.schedule not in SCHEDULES:
            raise unknown_name("--schedule", self.schedule, SCHEDULES)
        if self.shard and (self.ema or self.compile):
            raise CBAMError("--shard works with neither --ema nor --compile: leave one out")

    def peak_lr(self, *, fine_tuning: bool) -> float:
        """Return the learning rate at the end of the warm-up.

        Args:
            fine_tuning: whether the weights come from an earlier training.
        """
        if self.lr is not None:
            return self.lr
        return PEAK_LR[self.optimizer][fine_tuning]

    def plan(self, steps: int) -> Plan:
        """Return the learning rate's plan; see `Recipe.plan`."""
        cosine = self.schedule == "cosine"
        if self.warmup_epochs is not None:
            warmup = round(self.warmup_epochs * steps)
        else:  # the first epoch, or a tenth of all steps where that is less
            warmup = min(steps, steps * self.epochs // 10) if cosine else 0
        every = 0 if cosine else self.step_epochs * steps
        return Plan(self.epochs * steps, warmup, cosine, every)

    @property
    def sharded(self) -> bool:
        """Whether the network is divided over the processes (FSDP2)."""
        return self.shard

    @property
    def compiled(self) -> bool:
        """Whether the network is compiled."""
        return self.compile


@dataclass(frozen=True, kw_only=True)
class TrainRunConfig(ImageConfig):
    """Everything that one training depends on.

    Each field is an option of `cbam train`; the text below it is the option's help.

    >>> config = TrainRunConfig(data="digits", model="resnet20")
    >>> str(config.folder)
    'runs/train-digits-resnet20-cbam'
    >>> str(TrainRunConfig(data="shards:/data/images?window=2").folder)
    'runs/train-images-resnet50-cbam'
    """

    essential: ClassVar[tuple[str, ...]] = ("seed", "model")

    model: str = "resnet50"
    """resnet20 ... resnet110 for small images, paper_resnet50 ..., torchvision's and timm's names, or your own as
    my_package.my_net:build, a function or class that returns the network."""
    attention: str = "cbam"
    """Kind of attention to attach, or none."""
    preset: str = "official"
    """Preset of CBAM: paper (the equations), official (the authors' code, the paper's parameter counts), timm."""
    sites: str = "auto"
    """Sites, separated by commas, as in `cbam plan`: auto is the end of every residual branch, conv behind every
    convolution."""
    replace: str | None = None
    """se: attention in the place of the network's squeeze-excitations, of those that --sites names or of all."""
    reduction_ratio: int | None = None
    """Width of the channel gate's hidden layer: channels / ratio. None: 16 for CBAM and SE, else the kind's own."""
    kernel_size: int | None = None
    """Kernel of the gate's convolution. None: 7 for CBAM, else the kind's own."""
    seed: int = 0
    """Determines initial weights, order of the images, augmentation and dropout."""
    output: Path | None = option(None, affects_result=False)
    """The run's folder; the same command resumes it. None: runs/train-DATA-MODEL-ATTENTION."""
    config: Path | None = None
    """A YAML file with options, one `name: value` per line; options on the command line win."""
    pretrained: bool = False
    """Start from the weights that torchvision or timm publish for the model."""
    weights: Path | None = None
    """Start from this file (.safetensors, .pth); a classifier of another size is left out."""
    save_every: int | None = option(None, affects_result=False)
    """Steps between two checkpoints; one is always written after each epoch and on a request to stop."""
    keep: int = option(2, affects_result=False)
    """Checkpoints to keep: the newest, and older ones to fall back to if it is damaged."""
    track: str = option("", affects_result=False)
    """tensorboard, wandb, or both with a comma, in addition to metrics.jsonl and metrics.csv."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The recipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            (
                "reduction-ratio",
                self.reduction_ratio,
                self.reduction_ratio is None or self.reduction_ratio >= 1,
                "at least 1",
            ),
            ("save-every", self.save_every, self.save_every is None or self.save_every >= 1, "at least 1"),
            ("keep", self.keep, self.keep >= 1, "at least 1"),
        )
        for name in self.trackers:
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)
        check_start(self.pretrained, self.weights)
        check_replace(self.replace)
        self._refuse_what_is_ignored()

    def _refuse_what_is_ignored(self) -> None:
        """Refuse options that have no effect with this attention."""
        ignored = []
        for name in self._without_effect():
            part: Any = self.train if name in _OF_GATES else self
            given = getattr(part, name)
            # Defaults are class attributes of a dataclass. What is typed as the default changes nothing either way.
            default = given in (getattr(type(part), name), _OF_ATTENTION.get(name))
            if not default and not (name in _OF_GATES and self._brings_attention()):
                ignored.append(f"--{name.replace('_', '-')} {given}")
        if ignored:
            has, it = ("has", "it") if len(ignored) == 1 else ("have", "them")
            instead = "" if self._brings_attention() else ", or use --attention cbam"
            raise CBAMError(
                f"{', '.join(ignored)} {has} no effect with --attention {self.attention}. Leave {it} out{instead}"
            )

    def _without_effect(self) -> list[str]:
        if self.attention == "none":
            return ["sites", "replace", *_OF_ATTENTION, *_OF_GATES]
        options = attention_kind(self.attention).options
        return [name for name in _OF_ATTENTION if name not in options]

    @property
    def attention_options(self) -> dict[str, Any]:
        """Options of `cbam.attach` for the attention; what is None is the kind's own default."""
        if self.attention == "none":
            return {}
        options = attention_kind(self.attention).options
        given = {name: getattr(self, name) for name in _OF_ATTENTION if name in options}
        return {name: value for name, value in given.items() if value is not None}

    def _brings_attention(self) -> bool:
        """Whether the network already has attention of this library, to which the options of gates apply."""
        from cbam.models.registry import split_attention  # lazily: it makes the backbones known

        return split_attention(self.model)[1] is not None

    @property
    def fine_tuning(self) -> bool:
        """Whether training starts from weights of an earlier training."""
        return self.pretrained or self.weights is not None

    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.train.peak_lr(fine_tuning=self.fine_tuning)

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

    def resolved(self) -> dict[str, Any]:
        """Return every option's value, with defaults filled in and paths made absolute.

        >>> TrainRunConfig(data="digits").resolved()["lr"]
        0.1
        """
        options = {} if self.attention == "none" else attention_kind(self.attention).options
        used = {
            name: options.get(name, default) if getattr(self, name) is None else getattr(self, name)
            for name, default in _OF_ATTENTION.items()
        }
        return super().resolved() | {
            **used,
            "lr": self.peak_lr(),
            "data": absolute_data(self.data),
            "output": str(self.folder),
            "weights": str(self.weights.resolve()) if self.weights else None,
        }
