"""`load_data`: training and validation images from a name or a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cbam.data.augmentation import SHIFT, make_augmentation
from cbam.data.built_in import in_memory, read_digits, read_fashion_mnist
from cbam.data.folder import BAD_IMAGES, load_folder
from cbam.data.image_data import ImageData, checked_statistics
from cbam.data.labelled import load_labelled
from cbam.data.pictures import DEFAULT_MAX_PIXELS
from cbam.data.prepared import Preparation, Selection, make_resize
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
    resize: int | None = None,
    augment: str | None = None,
    crop: float | str | None = None,
    flip: float | None = None,
    labels: str | Path | None = None,
    whole: bool = False,
    channels: int = 3,
    interpolation: str = "bilinear",
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
        resize: how validation pictures are resized before they are cropped, see `cbam.data.prepared.make_resize`.
        augment: policy of the training images: one of `cbam.data.augmentation.AUGMENTATIONS`, by default "crop".
        crop: smallest share of the area in a random crop, or "shift"; see `cbam.data.augmentation.make_augmentation`.
        flip: probability of mirroring left and right; by default 0.5, for digits 0.
        labels: a table of the files in the folder and their labels, see `cbam.data.tables.find_columns`.
        whole: whether all images validate where a folder, shards or a set of Hugging Face have no validation part: to
            evaluate a trained network on them. A single class is enough then.
        channels: 1: pictures in grey, for a network that was trained on such; the built-in sets have their own.
        interpolation: how validation pictures are resized: "bilinear", "bicubic", "nearest" or "lanczos".

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
    if labels is not None and (is_built_in(data) or (name in LATER and folder)):
        path = f", or type ./{data} for the folder of that name" if Path(data).is_dir() else ""
        raise CBAMError(
            f"--labels {labels} is for a folder of images, and {data} has labels of its own. Leave it out{path}"
        )
    load: Callable[..., ImageData] | None = None
    if not isinstance(data, Path) and name in LATER and folder:
        load = partial(_later(name), folder)
    elif not is_built_in(data):
        root = _existing(data)
        load = partial(load_folder, root) if labels is None else partial(load_labelled, root, str(labels))
    if load is not None:
        usual = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
        mean, std = checked_statistics(mean or usual[0], std or usual[1], channels=channels)
        size = 224 if image_size is None else image_size
        augmentation = make_augmentation(size, augment, crop, flip)
        return load(
            Preparation(size, make_resize(size, resize), mean, std, max_pixels, augmentation, interpolation),
            Selection(limit_train, limit_val, val_fraction, split_seed, bad_images, whole=whole),
        )
    for option, given in (("resize", resize), ("crop", crop if crop != SHIFT else None)):
        if given is not None:
            raise CBAMError(
                f"--{option} {given} has no effect on {name}, whose images all have one size and are shifted by up to "
                "an eighth. Leave it out"
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
        raw,
        image_size=image_size,
        mean=mean,
        std=std,
        limit_train=limit_train,
        limit_val=limit_val,
        policy=augment,
        flip=flip,
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
