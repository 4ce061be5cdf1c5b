"""The images of a training: the options that `cbam train` and `cbam compare` share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cbam.errors import CBAMError
from cbam.runs.config import RunConfig, option
from cbam.runs.imports import import_modules
from cbam.runs.options import check_ranges
from cbam.train.batch_size import found_before

if TYPE_CHECKING:
    from typing_extensions import Self

    from cbam.data import ImageData


@dataclass(frozen=True, kw_only=True)
class ImageConfig(RunConfig):
    """Which images, and how they are prepared.

    Each field is an option; the text below it is the option's help.

    >>> images = ImageConfig(data="digits", limit_train=100).load()
    >>> len(images.train), images.input_size
    (100, (1, 8, 8))
    """

    data: str
    """fashion-mnist, digits, a folder of class folders or of train/ and val/ with those, shards, ...: docs/data.md."""
    labels: str | None = None
    """A table (.csv, .tsv, .json) of the images below --data and their classes, also several for an image; its columns
    are guessed and said: docs/augmentation.md."""
    image_size: int | None = None
    """Height and width of the images. None: the set's own; for folders what the model is designed for, mostly 224."""
    resize: int | None = None
    """Short side of validation pictures before the centre is cropped. None: --image-size below 96, else 8/7 of it."""
    augment: Literal["none", "flip", "crop", "randaugment", "trivial", "autoaugment", "augmix"] | None = None
    """Of training images: none; flip; crop (and flip); or torchvision's policy in addition. None: crop; see
    docs/augmentation.md."""
    crop: str | None = None
    """Smallest share of a picture's area in a random crop, e.g. 0.25; or shift: by up to an eighth of the size. None:
    shift below 96 pixels, else 0.08."""
    flip: float | None = None
    """Probability of mirroring left and right; 0 where that makes another class, as of text. None: 0.5, digits 0."""
    mean: str | None = None
    """Channel means on the 0..1 scale, with commas, or one for all. None: the set's own; for folders ImageNet's."""
    std: str | None = None
    """Standard deviations of the channels, in the same form."""
    limit_train: int | None = None
    """Use only this many training images, the same number of each class."""
    limit_val: int | None = None
    """Use only this many validation images, the same number of each class."""
    val_fraction: float = 0.2
    """Share of each class kept for validation where there is no validation folder."""
    bad_images: Literal["fail", "skip"] = "fail"
    """Files that cannot be read: stop before training, or leave them out with a note."""

    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = (
        option((), affects_result=False)
    )
    """Modules of your own to import first, such as my_package.my_gate, for the attention that they register; see
    docs/your-own-attention.md."""

    def __post_init__(self) -> None:
        import_modules(self.imports)
        check_ranges(
            ("image-size", self.image_size, self.image_size is None or self.image_size >= 1, "at least 1"),
            (
                "limit-train",
                self.limit_train,
                self.limit_train is None or self.limit_train >= 1,
                "at least 1",
            ),
            ("limit-val", self.limit_val, self.limit_val is None or self.limit_val >= 1, "at least 1"),
            ("val-fraction", self.val_fraction, 0 < self.val_fraction < 1, "between 0 and 1"),
        )
        numbers("mean", self.mean)
        numbers("std", self.std)

    @property
    def size(self) -> int | None:
        """Height and width of the images; None: the built-in set's own."""
        from cbam.data.load import is_built_in
        from cbam.models.registry import made_for

        if self.image_size is not None or is_built_in(self.data):
            return self.image_size
        return made_for(getattr(self, "model", ""))[1][-1]

    def resolved(self) -> dict[str, Any]:
        """Return every option's value, with defaults filled in; of the size, the one that differs from 224."""
        usual = self.image_size is None and self.size == 224
        size = None if usual else self.size
        return super().resolved() | {
            "image_size": size,
            "labels": absolute_table(self.labels),
            **self._prepared(),
        }

    def _prepared(self) -> dict[str, Any]:
        """Return how the images are prepared; what a set decides by itself, or has no effect, is None."""
        from cbam.data.augmentation import make_augmentation
        from cbam.data.load import is_built_in
        from cbam.data.prepared import make_resize

        built_in, size = is_built_in(self.data), self.size or 1
        made = make_augmentation(1 if built_in else size, self.augment, self.crop, self.flip)
        return {
            "resize": self.resize if built_in else make_resize(size, self.resize),
            "augment": made.policy,
            "crop": made.crop if made.crops else None,
            "flip": self.flip if built_in or not made.mirrors else made.flip,
        }

    def as_started(self, before: dict[str, Any] | None) -> Self:
        """Return the options with which the same command once began the run in a folder.

        One of an earlier version keeps its preparation of images, and one that found its batch size keeps that.

        Args:
            before: The settings stored in the folder, if there are any.
        """
        recipe: Any = getattr(self, "train", None)
        if recipe is not None and (found := found_before(recipe, before)) is not recipe:
            again: Any = self
            return replace(again, train=found).as_started(before)
        if not before or not _is_earlier(before) or self.augment is not None:
            return self
        missing = {name: value for name, value in _earlier(before).items() if getattr(self, name) is None}
        return replace(self, **missing)

    @classmethod
    def differences(cls, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """Name the settings in which two runs would give different results."""
        return super().differences(_earlier(before) | before if _is_earlier(before) else before, now)

    def load(self) -> ImageData:
        """Load the images.

        Raises:
            CBAMError: See `cbam.data.load_data`.
        """
        from cbam.data import load_data

        return load_data(
            self.data,
            image_size=self.size,
            mean=numbers("mean", self.mean),
            std=numbers("std", self.std),
            limit_train=self.limit_train,
            limit_val=self.limit_val,
            val_fraction=self.val_fraction,
            bad_images=self.bad_images,
            resize=self.resize,
            augment=self.augment,
            crop=self.crop,
            flip=self.flip,
            labels=self.labels,
        )


def absolute_table(labels: str | None) -> str | None:
    """Return the value of `--labels` with an absolute path."""
    if labels is None:
        return None
    file, mark, options = labels.partition("?")
    return f"{Path(file).expanduser().resolve()}{mark}{options}"


def _is_earlier(before: dict[str, Any]) -> bool:
    return bool(before) and "augment" not in before


def _earlier(before: dict[str, Any]) -> dict[str, Any]:
    """Return how images were prepared before there were options for it, at any size.

    Args:
        before: The settings of a run of that time.
    """
    from cbam.data.augmentation import IMAGENET_CROP, SHIFT
    from cbam.data.load import is_built_in
    from cbam.data.prepared import short_side

    if is_built_in(before.get("data", "")):
        return {"augment": "crop", "crop": SHIFT}
    size = before.get("image_size") or 224
    return {"augment": "crop", "crop": IMAGENET_CROP, "flip": 0.5, "resize": short_side(size)}


def check_start(pretrained: bool, weights: Path | None) -> None:
    """Refuse two sources of initial weights.

    Raises:
        CBAMError: Both are given.
    """
    if pretrained and weights:
        raise CBAMError("--pretrained and --weights both say where to start: give one of them")


def check_freezing(epochs: int, model: str, *, fine_tuning: bool) -> None:
    """Refuse to keep a backbone whose weights were drawn at random.

    Args:
        epochs: In which it would be kept.
        model: Its name; one's own network may bring trained weights.
        fine_tuning: Whether the weights come from an earlier training.

    Raises:
        CBAMError: It would be kept.
    """
    from cbam.models.own import is_own  # lazily: it imports the backbones

    if epochs and not fine_tuning and not is_own(model):
        raise CBAMError(
            f"--freeze-backbone {epochs} would keep random weights: start from trained ones with --pretrained or "
            "--weights FILE, or leave it out"
        )


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read the value of `--mean` or `--std`: one number for all channels, or one for each.

    Raises:
        CBAMError: it is neither.

    >>> numbers("mean", "0.5"), numbers("std", "0.1, 0.2, 0.3"), numbers("std", None)
    ((0.5,), (0.1, 0.2, 0.3), None)
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CBAMError(f"--{option} takes numbers with commas, e.g. 0.5,0.5,0.5; given {text!r}") from None
