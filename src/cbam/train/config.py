"""The options of a training: the recipe, which `cbam compare` shares, and the options of `cbam train` alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from cbam.attach.replacement import check_replace
from cbam.attach.sites.select import split_sites
from cbam.attach.variants import ALONE, Variant, check_widening, parse_variant
from cbam.errors import CBAMError, unknown_name
from cbam.nn.presets import DEFAULT_PRESET
from cbam.nn.registry import attention_kind
from cbam.runs.config import option
from cbam.runs.options import absolute_data, check_ranges, folder_name, tracker_names
from cbam.train.batch_size import AUTO, BATCH_SIZE
from cbam.train.images import ImageConfig, check_freezing, check_start
from cbam.train.recipe import SCHEDULES, Plan, Recipe

# Peak learning rates at batch size 128: (from scratch, fine-tuning).
PEAK_LR = {"sgd": (0.1, 0.01), "momentum": (0.1, 0.01), "adamw": (1e-3, 1e-4)}
_OF_GATES = ("gate_lr_scale", "gate_weight_decay")
# Options of the attention and their defaults.
_OF_ATTENTION = {"preset": DEFAULT_PRESET, "reduction_ratio": 16, "kernel_size": 7}
_BEFORE = {"preset": "official"}  # what runs of earlier versions hold, also where it has no effect
DEFAULT_MODEL = "resnet20"
"""The network wherever a command trains and none is named."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """The training recipe: SGD with Nesterov momentum 0.9, one short warm-up, then a cosine to zero, step by step.

    Each field is an option of `cbam train` and `cbam compare`; the text below it is the option's help.

    >>> TrainConfig(epochs=2).peak_lr(fine_tuning=False)
    0.1
    """

    batch_size: Annotated[int, BATCH_SIZE] = 128
    """Images per step, over all processes together; auto: the largest power of two that fits into a GPU's memory."""
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
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: in the loss, an image counts inversely to the number of training images of its class."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """balanced: each class comes equally often in an epoch, images of small ones several times, differently
    augmented."""
    freeze_backbone: int = 0
    """First epochs in which only classifier and attention learn; the backbone's batch norms keep their statistics."""
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
            (
                "freeze-backbone",
                self.freeze_backbone,
                0 <= self.freeze_backbone <= self.epochs,
                f"from 0 to --epochs {self.epochs}",
            ),
            ("mixup", self.mixup, 0 <= self.mixup < float("inf"), "at least 0, e.g. 0.2"),
            ("cutmix", self.cutmix, 0 <= self.cutmix < float("inf"), "at least 0, e.g. 1"),
            ("label-smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to below 1"),
        )
        for name, choice, choices in (
            ("--schedule", self.schedule, SCHEDULES),
            ("--class-weights", self.class_weights, ("none", "balanced")),
            ("--sampler", self.sampler, ("shuffle", "balanced")),
        ):
            if choice not in choices:
                raise unknown_name(name, choice, choices)
        if self.class_weights == self.sampler == "balanced":
            raise CBAMError(
                "--class-weights balanced and --sampler balanced make up for the same twice: give one of them"
            )
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
    def has_batch_size(self) -> bool:
        """Whether the batch size is one that can be trained with, or is to be found."""
        return self.batch_size == AUTO or super().has_batch_size

    @property
    def frozen_epochs(self) -> int:
        """First epochs in which only classifier and attention learn."""
        return self.freeze_backbone

    @property
    def sharded(self) -> bool:
        """Whether the network is divided over the processes (FSDP2)."""
        return self.shard

    @property
    def compiled(self) -> bool:
        """Whether the network is compiled."""
        return self.compile


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(ImageConfig):
    """Which classifier is trained, on which images, and how: common to `cbam train` and `cbam compare`.

    Each field is an option; the text below it is the option's help.
    """

    model: str = DEFAULT_MODEL
    """resnet20 ... resnet110 for small images, paper_resnet18 ..., torchvision's and timm's names, e.g. resnet18, or
    your own as my_package.my_net:build, a function or class that returns the network."""
    sites: tuple[str, ...] = ("auto",)
    """Sites, as in `cbam plan`: auto is the end of every residual branch, or of every stage where
    there is none; or module paths and patterns, separated by spaces or commas, e.g. features.4 features.9 for a VGG."""
    replace: str | None = None
    """se: attention in the place of the network's squeeze-excitations, of those that --sites names or of all; without
    attention they stay."""
    pretrained: bool = False
    """Start from the weights that torchvision or timm publish for the model."""
    weights: Path | None = None
    """Start from this file (.safetensors, .pth); a classifier of another size is left out."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The recipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_start(self.pretrained, self.weights)
        check_freezing(self.train.freeze_backbone, self.model, fine_tuning=self.fine_tuning)
        check_replace(self.replace)

    @property
    def fine_tuning(self) -> bool:
        """Whether training starts from weights of an earlier training."""
        return self.pretrained or self.weights is not None

    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.train.peak_lr(fine_tuning=self.fine_tuning)

    def resolved(self) -> dict[str, Any]:
        """Return every option's value, with defaults filled in and paths made absolute."""
        return super().resolved() | {
            "lr": self.peak_lr(),
            "sites": ",".join(split_sites(self.sites)),
            "data": absolute_data(self.data),
            "weights": str(self.weights.resolve()) if self.weights else None,
        }


@dataclass(frozen=True, kw_only=True)
class TrainRunConfig(NetworkConfig):
    """Everything that one training depends on.

    Each field is an option of `cbam train`; the text below it is the option's help.

    >>> config = TrainRunConfig(data="digits")
    >>> str(config.folder)
    'runs/train-digits-resnet20-cbam'
    >>> str(TrainRunConfig(data="shards:/data/images?window=2", attention="cbam:official:k3").folder)
    'runs/train-images-resnet20-cbam-official-k3'
    """

    essential: ClassVar[tuple[str, ...]] = ("seed", "model")

    attention: str = "cbam"
    """Kind of attention to attach, as in `cbam compare`: cbam, cbam:official, se, eca:k5, ..., none, or control: none,
    but wider blocks."""
    preset: str | None = None
    """Preset of CBAM: paper (the equations), official (the authors' code, the paper's parameter counts), timm. None:
    paper, as in all commands, unless --attention names one."""
    reduction_ratio: int | None = None
    """Width of the channel gate's hidden layer: channels / ratio. None: 16 for CBAM and SE, else the kind's own."""
    kernel_size: int | None = None
    """Kernel of the gate's convolution. None: 7 for CBAM, else the kind's own."""
    widened_to: int | None = None
    """Parameters of --attention control. None: as many as with --attention cbam."""
    seed: int = 0
    """Determines initial weights, order of the images, augmentation and dropout."""
    output: Path | None = option(None, affects_result=False)
    """The run's folder; the same command resumes it. None: runs/train-DATA-MODEL-ATTENTION, with -2, -3, ... where
    that holds another run."""
    overwrite: bool = option(False, affects_result=False)
    """Start over: move the run in the folder aside, to FOLDER-old."""
    config: Path | None = None
    """A YAML file with options, one `name: value` per line; options on the command line win."""
    save_every: int | None = option(None, affects_result=False)
    """Steps between two checkpoints; one is always written after each epoch and on a request to stop."""
    patience: int | None = None
    """Stop after this many epochs without a better validation score; best/ is the network to keep."""
    keep: int = option(2, affects_result=False)
    """Checkpoints to keep: the newest, and older ones to fall back to if it is damaged."""
    track: str = option("", affects_result=False)
    """tensorboard, wandb, or both with a comma, in addition to metrics.jsonl and metrics.csv."""

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
            ("patience", self.patience, self.patience is None or self.patience >= 1, "at least 1"),
            ("keep", self.keep, self.keep >= 1, "at least 1"),
        )
        tracker_names(self.track)
        check_widening(self.widened_to, self.attention)
        self._refuse_what_is_ignored()

    @property
    def variant(self) -> Variant:
        """The attention."""
        return parse_variant(self.attention)

    def _refuse_what_is_ignored(self) -> None:
        """Refuse options that have no effect with this attention, or that it has set already."""
        ignored = []
        words = dict(self.variant.options)
        for name in self._without_effect():
            part: Any = self.train if name in _OF_GATES else self
            given = getattr(part, name)
            # Defaults are class attributes of a dataclass. What is typed as the default changes nothing either way.
            default = given in (getattr(type(part), name), _OF_ATTENTION.get(name), _BEFORE.get(name))
            if not default and not (name in _OF_GATES and self._brings_attention()):
                shown = " ".join(given) if isinstance(given, tuple) else given
                ignored.append(f"--{name.replace('_', '-')} {shown}")
        if ignored:
            has, it = ("has", "it") if len(ignored) == 1 else ("have", "them")
            instead = "" if self._brings_attention() else ", or use --attention cbam"
            raise CBAMError(
                f"{', '.join(ignored)} {has} no effect with --attention {self.attention}. Leave {it} out{instead}"
            )
        for name in _OF_ATTENTION:
            given = getattr(self, name)
            if name in words and given not in (None, words[name]):
                raise CBAMError(
                    f"--attention {self.attention} sets the {name.replace('_', ' ')} already. "
                    f"Leave out --{name.replace('_', '-')} {given}"
                )

    def _without_effect(self) -> list[str]:
        if self.attention in ALONE:
            return ["sites", "replace", *_OF_ATTENTION, *_OF_GATES]
        options = attention_kind(self.variant.attention or "").options
        return [name for name in _OF_ATTENTION if name not in options]

    @property
    def attach_arguments(self) -> dict[str, Any] | None:
        """Keywords of `cbam.attach`; what is None is the kind's own default. None: no attention."""
        if self.variant.attention is None:
            return None
        options = attention_kind(self.variant.attention).options
        given = {name: getattr(self, name) for name in _OF_ATTENTION if name in options}
        return {
            **{name: value for name, value in given.items() if value is not None},
            **self.variant.attach_arguments(fine_tuning=self.fine_tuning),
        }

    def _brings_attention(self) -> bool:
        """Whether the network already has attention of this library, to which the options of gates apply."""
        from cbam.models.registry import split_attention  # lazily: it makes the backbones known

        return split_attention(self.model)[1] is not None

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers' names."""
        return tracker_names(self.track)

    @property
    def folder(self) -> Path:
        """The run's folder, relative as given."""
        if self.output is not None:
            return self.output
        return Path("runs") / ("train-" + folder_name(self.data, self.model, self.attention))

    def begun(self, before: dict[str, Any]) -> TrainRunConfig:
        """Return the options with which the same command once began the run in a folder.

        Args:
            before: The settings in the folder. An earlier version had another preset by default.
        """
        usual = self.preset is None and "preset" not in dict(self.variant.options)
        return replace(self, preset=before["preset"]) if usual and _is_of_earlier_version(before) else self

    @classmethod
    def differences(cls, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """Name the settings in which two runs would give different results, those of other attentions left out."""
        ignored = _unused(str(now.get("attention", "")))
        if _is_of_earlier_version(before) and now.get("preset") == DEFAULT_PRESET:
            ignored |= {"preset"}  # see `begun`
        kept = [{name: value for name, value in run.items() if name not in ignored} for run in (before, now)]
        return super().differences(*kept)

    def resolved(self) -> dict[str, Any]:
        """Return every option's value, with defaults filled in and paths made absolute.

        >>> TrainRunConfig(data="digits").resolved()["lr"]
        0.1
        """
        variant = self.variant
        options = {} if variant.attention is None else attention_kind(variant.attention).options
        words = dict(variant.options)
        used = {
            name: words.get(name, options.get(name, default) if given is None else given)
            for name, default in _OF_ATTENTION.items()
            for given in [getattr(self, name)]
        }
        return super().resolved() | {**used, "output": str(self.folder)}


def _is_of_earlier_version(settings: dict[str, Any]) -> bool:
    return "preset" in settings and "replace" not in settings


def _unused(attention: str) -> set[str]:
    """Return the options of other attentions than this one."""
    if attention in ALONE:
        return set(_OF_ATTENTION)
    try:
        kind = parse_variant(attention).attention
        return set(_OF_ATTENTION) - set(attention_kind(kind or "cbam").options)
    except CBAMError:  # stored by another version, or a module that is not imported
        return set()
