"""The images of a training: the options that `cbam train` and `cbam compare` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cbam.errors import CBAMError
from cbam.runs.config import RunConfig, option
from cbam.runs.imports import import_modules
from cbam.runs.options import check_ranges

if TYPE_CHECKING:
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
    image_size: int | None = None
    """Height and width of the images. None: the set's own; for folders what the model is designed for, mostly 224."""
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

    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = option((), affects_result=False)
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
        return super().resolved() | {"image_size": None if usual else self.size}

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
        )


def check_start(pretrained: bool, weights: Path | None) -> None:
    """Refuse two sources of initial weights.

    Raises:
        CBAMError: Both are given.
    """
    if pretrained and weights:
        raise CBAMError("--pretrained and --weights both say where to start: give one of them")


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
