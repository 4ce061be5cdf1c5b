"""The options of a detector's training: the images, the detector, the run; the recipe is in `recipe.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from cbam.attach.variants import ALONE, check_widening
from cbam.detect.recipe import DetectTrainConfig
from cbam.errors import CBAMError, unknown_name
from cbam.runs.config import RunConfig, option
from cbam.runs.imports import import_modules
from cbam.runs.options import check_ranges, folder_name, tracker_names

if TYPE_CHECKING:
    from cbam.data.detection import DetectionData

AUGMENTATIONS = ("flip", "ssd", "multiscale", "lsj")
METRICS = ("auto", "coco", "voc07", "voc")
NORMS = ("auto", "frozen", "batch")
_SIDE, _LONGEST = 800, 1333  # torchvision's shorter and longer side
_SHORTEST, _SIDES = 0.6, 11  # torchvision's several scales are 480, 512, ..., 800


@dataclass(frozen=True, kw_only=True)
class DetectionSetConfig(RunConfig):
    """Which images with objects, and how detections are judged.

    Each field is an option; the text below it is the option's help.
    """

    data: str
    """coco:FOLDER, voc:FOLDER or yolo:FOLDER; more after a question mark: docs/detection.md."""
    limit_train: int | None = None
    """Use only this many training images."""
    limit_val: int | None = None
    """Use only this many validation images."""
    val_fraction: float = 0.2
    """Share of the images kept for validation where the set names none."""
    bad_data: Literal["fail", "skip"] = "fail"
    """Annotations and images that cannot be used: stop before training, or leave them out with a note."""
    metric: Literal["auto", "coco", "voc07", "voc"] = "auto"
    """How detections are judged: coco (12 figures), voc07 (AP at 11 points), voc (area below the curve). auto: voc07
    for voc:..., else coco."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = (
        option((), affects_result=False)
    )
    """Modules of your own to import first, such as my_package.my_gate, for the attention that they register; see
    docs/your-own-attention.md."""

    def __post_init__(self) -> None:
        import_modules(self.imports)
        check_ranges(
            (
                "limit-train",
                self.limit_train,
                self.limit_train is None or self.limit_train >= 1,
                "at least 1",
            ),
            ("limit-val", self.limit_val, self.limit_val is None or self.limit_val >= 1, "at least 1"),
            ("val-fraction", self.val_fraction, 0 < self.val_fraction < 1, "between 0 and 1"),
        )
        if self.metric not in METRICS:
            raise unknown_name("--metric", self.metric, METRICS)

    @property
    def judged_by(self) -> str:
        """The metric: "coco", "voc07" or "voc"."""
        if self.metric != "auto":
            return self.metric
        return "voc07" if self.data.startswith("voc:") else "coco"

    def load(self) -> DetectionData:
        """Load the set after the doctor has looked at it.

        Raises:
            CBAMError: See `cbam.data.detection.load_detection`.
        """
        from cbam.data.detection import load_detection

        return load_detection(
            self.data,
            val_fraction=self.val_fraction,
            limit_train=self.limit_train,
            limit_val=self.limit_val,
            bad_data=self.bad_data,
        )


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(DetectionSetConfig):
    """Which detector, on which images.

    Each field is an option; the text below it is the option's help.
    """

    model: str = "fasterrcnn_resnet50_fpn"
    """fasterrcnn_BACKBONE_fpn, fasterrcnn_BACKBONE_c4, maskrcnn_, retinanet_ or fcos_BACKBONE_fpn with a ResNet such as
    resnet50; ssd300_vgg16, ssd300_mobilenet, stairnet300_vgg16, stairnet300_mobilenet."""
    sites: str = "backbone"
    """Where attention goes: backbone (the end of every residual branch), head (right before every classifier), or sites
    of `cbam plan`, separated by commas."""
    weights: Path | None = None
    """Start from this file (.safetensors, .pth): a classifier's weights for the backbone, or a whole detector's."""
    image_size: int | None = None
    """Shorter side to which the detector resizes images. None: 800; SSD and StairNet take 300 x 300 always."""
    max_size: int | None = None
    """Most that the longer side may be then. None: 5/3 of the shorter."""
    width: float = 1.0
    """Factor on the channels of VGG16 and MobileNetV1, for small machines."""
    norm: Literal["auto", "frozen", "batch"] = "auto"
    """Batch norms of the backbone: frozen, or trained on each step's images. auto: frozen with --weights."""
    trainable_layers: int | None = None
    """Layers of the backbone that are trained, from the last one on. None: 3 with --weights, else all."""
    detector_options: str = ""
    """Options of torchvision's detector with commas, e.g. rpn_post_nms_top_n_train=200,box_batch_size_per_image=64."""
    augment: Literal["flip", "ssd", "multiscale", "lsj"] = "flip"
    """Changes of the training images: flip; ssd (colours, zoom out, crop, flip); multiscale (a shorter side of 0.6 to 1
    times the image size, flip); lsj (scaled by 0.1 to 2, cropped, flip)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            (
                "image-size",
                self.image_size,
                self.image_size is None or self.image_size >= 32,
                "at least 32",
            ),
            (
                "max-size",
                self.max_size,
                self.max_size is None or self.max_size >= (self.image_size or _SIDE),
                f"at least the shorter side, {self.image_size or _SIDE}",
            ),
            ("width", self.width, 0 < self.width < float("inf"), "above 0"),
        )
        for name, choice, choices in (
            ("--norm", self.norm, NORMS),
            ("--augment", self.augment, AUGMENTATIONS),
        ):
            if choice not in choices:
                raise unknown_name(name, choice, choices)
        if self.takes_300:
            for option, given in (("image-size", self.image_size), ("max-size", self.max_size)):
                if given is not None:
                    raise CBAMError(
                        f"--{option} {given} has no effect with --model {self.model}, which takes 300 x 300. "
                        "Leave it out"
                    )
            if self.augment == "multiscale":
                raise CBAMError(
                    f"--augment multiscale does not fit --model {self.model}, which takes 300 x 300. "
                    "Type: --augment ssd"
                )
        self.more_options()

    @property
    def takes_300(self) -> bool:
        """Whether the detector resizes every image to 300 x 300."""
        return self.model.startswith(("ssd300", "stairnet300"))

    @property
    def fine_tuning(self) -> bool:
        """Whether training starts from weights of an earlier training."""
        return self.weights is not None

    @property
    def sides(self) -> tuple[int, int]:
        """Shorter and longest side to which the detector resizes images."""
        shorter = 300 if self.takes_300 else self.image_size or _SIDE
        if self.max_size is not None:
            return shorter, self.max_size
        return shorter, _LONGEST if shorter == _SIDE else shorter * 5 // 3

    def more_options(self) -> dict[str, Any]:
        """Return the options of torchvision's class, the sizes of the images among them.

        Raises:
            CBAMError: An option is not of the form name=value.

        >>> DetectorConfig(data="coco:x", image_size=96, detector_options="box_score_thresh=0.1").more_options()
        {'min_size': 96, 'max_size': 160, 'box_score_thresh': 0.1}
        """
        found: dict[str, Any] = {}
        if not self.takes_300:
            found["min_size"], found["max_size"] = self.sides
            if (
                self.augment == "multiscale"
            ):  # the detector itself draws a side and uses the last one otherwise
                shares = [_SHORTEST + (1 - _SHORTEST) * step / (_SIDES - 1) for step in range(_SIDES)]
                found["min_size"] = tuple(round(self.sides[0] * share) for share in shares)
        for word in filter(None, (word.strip() for word in self.detector_options.split(","))):
            name, equals, value = (part.strip() for part in word.partition("="))
            if not (name and equals and value):
                raise CBAMError(
                    f"--detector-options takes name=value with commas, e.g. box_score_thresh=0.1; given {word!r}"
                )
            found[name.replace("-", "_")] = _value(value)
        return found

    def resolved(self) -> dict[str, Any]:
        """Return every option's value, with paths made absolute."""
        return super().resolved() | {
            "data": absolute_set(self.data),
            "metric": self.judged_by,
            "weights": str(self.weights.resolve()) if self.weights else None,
        }


@dataclass(frozen=True, kw_only=True)
class DetectRunConfig(DetectorConfig):
    """Everything that the training of one detector depends on.

    Each field is an option of `cbam detect train`; the text below it is the option's help.

    >>> str(DetectRunConfig(data="coco:/data/coco").folder)
    'runs/detect-coco-fasterrcnn_resnet50_fpn-cbam'
    """

    essential: ClassVar[tuple[str, ...]] = ("seed", "model")

    attention: str = "cbam"
    """Kind of attention to attach, as in `cbam compare`: cbam, cbam:official, se, eca:k5, ..., none, or control: none,
    but wider blocks."""
    reduction_ratio: int | None = None
    """Width of the channel gate's hidden layer: channels / ratio. None: 16 for CBAM and SE, else the kind's own."""
    widened_to: int | None = None
    """Parameters of --attention control. None: as many as with --attention cbam."""
    seed: int = 0
    """Determines initial weights, order of the images, augmentation and samples of regions."""
    output: Path | None = option(None, affects_result=False)
    """The run's folder; the same command resumes it. None: runs/detect-DATA-MODEL-ATTENTION, with -2, -3, ... where
    that holds another run."""
    overwrite: bool = option(False, affects_result=False)
    """Start over: move the run in the folder aside, to FOLDER-old."""
    config: Path | None = None
    """A YAML file with options, one `name: value` per line; options on the command line win."""
    save_every: int | None = option(None, affects_result=False)
    """Steps between two checkpoints; one is always written after each epoch and on a request to stop."""
    keep: int = option(2, affects_result=False)
    """Checkpoints to keep: the newest, and older ones to fall back to if it is damaged."""
    track: str = option("", affects_result=False)
    """tensorboard, wandb, or both with a comma, in addition to metrics.jsonl and metrics.csv."""
    train: DetectTrainConfig = field(default_factory=DetectTrainConfig)
    """The recipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = self.reduction_ratio
        check_ranges(
            ("reduction-ratio", ratio, ratio is None or ratio >= 1, "at least 1"),
            ("save-every", self.save_every, self.save_every is None or self.save_every >= 1, "at least 1"),
            ("keep", self.keep, self.keep >= 1, "at least 1"),
        )
        tracker_names(self.track)
        check_widening(self.widened_to, self.attention)
        if self.attention in ALONE:
            for name, given, default in (("sites", self.sites, "backbone"), ("reduction-ratio", ratio, None)):
                if given != default:
                    raise CBAMError(
                        f"--{name} {given} has no effect with --attention {self.attention}. Leave it out, or use"
                        " --attention cbam"
                    )

    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.train.peak_lr(self.model)

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers' names."""
        return tracker_names(self.track)

    @property
    def folder(self) -> Path:
        """The run's folder, relative as given."""
        if self.output is not None:
            return self.output
        return Path("runs") / (
            "detect-" + folder_name(self.data.partition(":")[2], self.model, self.attention)
        )

    def resolved(self) -> dict[str, Any]:
        """Return every option's value, with defaults filled in and paths made absolute."""
        return super().resolved() | {"lr": self.peak_lr(), "output": str(self.folder)}


def absolute_set(data: str) -> str:
    """Return a detection set's name with an absolute folder: the same name in two folders is not the same run.

    >>> absolute_set("coco:/data/../data/coco?train=a.json")
    'coco:/data/coco?train=a.json'
    """
    form, colon, rest = data.partition(":")
    folder, mark, options = rest.partition("?")
    return f"{form}{colon}{Path(folder).expanduser().resolve()}{mark}{options}" if colon else data


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for form in (int, float):
        try:
            return form(text)
        except ValueError:
            continue
    return text
