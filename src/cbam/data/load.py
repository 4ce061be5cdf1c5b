"""`load_data`: training and validation images from a name or a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cbam.data.built_in import in_memory, read_digits, read_fashion_mnist
from cbam.data.folder import BAD_IMAGES, load_folder
from cbam.data.image_data import ImageData, checked_statistics
from cbam.data.pictures import DEFAULT_MAX_PIXELS
from cbam.data.prepared import Preparation, Selection
from cbam.errors import CBAMError, nearest, unknown_name
from cbam.files import checked_path

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BUILT_IN = ("fashion-mnist", "digits")
LATER = ("shards", "hf")  # prefixes whose code is imported when it is needed


def load_data(
    data: str | Path,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    bad_images: str = "fail",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    download: bool = True,
    whole: bool = False,
) -> ImageData:
    """Load images by name or from a folder.

    Args:
        data: "fashion-mnist" (from "fashion-mnist:/its/folder", the folder in CBAM_FASHION_MNIST, Debian's package, an
            earlier download, a download, or, with a notice, scikit-learn's digits instead), "digits", or a folder with
            train/ and val/, or one with a folder for each class; "./digits" is a folder of that name.
            "shards:LOCATION" are tar shards in a folder or at a URL (`cbam.data.shards.load.load_shards`), "hf:NAME"
            is a data set of Hugging Face, saved on disk or from the hub (`cbam.data.hugging_face.load_hugging_face`).
        image_size: height and width of the items; by default the set's own for the built-in sets, 224 for folders.
            The built-in sets are held in memory at this size: 70,000 bytes a pixel for Fashion-MNIST.
        mean: per-channel mean on the 0..1 scale, or one value for all; by default the set's own, for folders
            ImageNet's.
        std: per-channel standard deviation, likewise.
        limit_train: keep only this many training images, the same number of each class, the first in file order.
        limit_val: likewise for validation.
        val_fraction: share of each class that is used for validation if there is no validation folder.
        split_seed: another seed gives another split.
        bad_images: "fail" stops at images that cannot be read, "skip" drops them with a notice.
        max_pixels: images with more pixels count as bad; checked before decoding.
        download: whether Fashion-MNIST may be downloaded.
        whole: whether all images validate where a folder, shards or a set of Hugging Face have no validation part: to
            evaluate a trained network on them. A single class is enough then.

    Raises:
        CBAMError: no such set or folder, or images that cannot be used; the message says what to type.

    Example:
        >>> data = load_data("digits", limit_train=100)
        >>> data.input_size, len(data.train), data.classes[:3]
        ((1, 8, 8), 100, ('0', '1', '2'))
    """
    if image_size is not None and image_size < 1:
        raise CBAMError(f"image_size must be at least 1 pixel, given {image_size}.")
    if bad_images not in BAD_IMAGES:
        raise unknown_name("bad_images", bad_images, BAD_IMAGES)
    name, _, folder = str(data).partition(":")
    load: Callable[..., ImageData] | None = None
    if not isinstance(data, Path) and name in LATER and folder:
        load = partial(_later(name), folder)
    elif not is_built_in(data):
        load = partial(load_folder, _existing(data))
    if load is not None:
        mean, std = checked_statistics(mean or IMAGENET_MEAN, std or IMAGENET_STD, channels=3)
        return load(
            Preparation(224 if image_size is None else image_size, mean, std, max_pixels),
            Selection(limit_train, limit_val, val_fraction, split_seed, bad_images, whole=whole),
        )
    if name == "digits":
        raw = read_digits(val_fraction, split_seed)
    else:
        raw = read_fashion_mnist(
            Path(folder) if folder else None,
            download=download,
            val_fraction=val_fraction,
            split_seed=split_seed,
        )
    return in_memory(
        raw, image_size=image_size, mean=mean, std=std, limit_train=limit_train, limit_val=limit_val
    )


def is_built_in(data: str | Path) -> bool:
    """Return whether images are a built-in set, which has a size of its own.

    >>> is_built_in("fashion-mnist"), is_built_in("digits:folder"), is_built_in("my/folder")
    (True, False, False)
    """
    name, _, folder = str(data).partition(":")
    return not isinstance(data, Path) and name in BUILT_IN and not (name == "digits" and bool(folder))


def _later(name: str) -> Callable[..., ImageData]:
    if name == "shards":
        from cbam.data.shards.load import load_shards

        return load_shards
    from cbam.data.hugging_face import load_hugging_face

    return load_hugging_face


def _existing(data: str | Path) -> Path:
    folder = checked_path(Path(data).expanduser())
    if folder.exists():
        return folder
    close = nearest(str(data), BUILT_IN, count=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise CBAMError(
        f"there is no folder {str(data)!r}, and no built-in set of that name.{hint} "
        f"Give a folder of images, shards:FOLDER, hf:NAME, or one of: {', '.join(BUILT_IN)}."
    )
