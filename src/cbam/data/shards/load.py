"""`load_shards`: training and validation images from tar shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cbam.data.hashing import hash64
from cbam.data.image_data import ImageData
from cbam.data.options import split_options
from cbam.data.pictures import BadImage, check_image
from cbam.data.prepared import Preparation, Selection, prepared_data
from cbam.data.scan import some
from cbam.data.shards.dataset import Samples, ShardImages
from cbam.data.shards.headers import Rows
from cbam.data.shards.index import Part, ShardIndex, load_index, parts_of, write_somewhere
from cbam.data.shards.locations import ShardNames, find_shards
from cbam.data.shards.order import WINDOW
from cbam.data.shards.storage import is_remote, read_all
from cbam.errors import CBAMError
from cbam.runs.progress import counting

OPTIONS = ("train", "val", "window")
_LARGEST_CLASSES_FILE = 1 << 26
_MOST_CLASSES = 1_000_000
_CLASSES_WITHOUT_IMAGES = (
    100_000  # a few shards of a large set may have more classes than images, but not more of them
)
_AT_ONCE = 256
_PROBES = 16


def load_shards(
    text: str,
    preparation: Preparation,
    selection: Selection,
) -> ImageData:
    """Open the shards at a folder or URL.

    Args:
        text: "LOCATION" or "LOCATION?train=PATTERN&val=PATTERN&window=SHARDS", see `find_shards` and `WindowedOrder`.
        preparation: how an image becomes an item.
        selection: which images train and which validate.

    Raises:
        CBAMError: no shards, a damaged shard, or labels that do not match the class names.
    """
    location, options = split_options(text, OPTIONS, url=is_remote(text))
    window = _window(options.get("window"))
    names = find_shards(location, options.get("train"), options.get("val"))
    listed = _class_names(names)
    with counting("reading the headers of shards") as count:
        index = load_index(names, {name: label for label, name in enumerate(listed or ())}, count)
    classes, notices = _classes(index, names, listed)
    if selection.bad_images == "skip":
        index = _checked_index(index, names, preparation.max_pixels)

    def side(shards: Sequence[str], augment: bool) -> ShardImages:
        images = ShardImages(
            names, Samples(index, shards), classes, preparation, augment=augment, window=window
        )
        if any(index.shards[name].checked for name in shards):
            images = _without_bad(images, location, selection.bad_images, notices)
        return images

    train = side(names.train, True)
    val = side(names.val or names.train, False)
    how = f"{len(names.train):,} shards train, {len(names.val):,} validate"
    if not names.val and selection.whole:
        train, how = train.subset(()), f"all of {len(names.train):,} shards"
    elif not names.val:
        for_train, for_val = _split(np.asarray(train.labels), selection.val_fraction, selection.split_seed)
        train, val = train.subset(for_train), val.subset(for_val)
        how = f"{len(names.train):,} shards are split by class with split seed {selection.split_seed}"
    for images in (val,) if selection.whole else (train, val):
        _probe(images)
    return prepared_data(
        names.base.rstrip("/").rpartition("/")[2] or "shards",
        f"{names.base}: {how}",
        train,
        val,
        preparation,
        selection,
        notices=notices,
    )


def _without_bad(images: ShardImages, location: str, bad_images: str, notices: list[str]) -> ShardImages:
    bad = int((images.labels < 0).sum())
    if not bad:
        return images
    if bad_images == "fail":
        raise CBAMError(
            f"{bad:,} images in {location} cannot be used. To leave them out, type: --bad-images skip"
        )
    notices.append(f"{bad:,} bad images in {location} were left out.")
    return images.subset(np.flatnonzero(images.labels >= 0))


def _window(text: str | None) -> int:
    if text is None:
        return WINDOW
    if not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise CBAMError(
            f"window is a number of shards from 1 up, given {text!r}. Type for example: ?window=64"
        )
    return int(text)


def _class_names(names: ShardNames) -> tuple[str, ...] | None:
    content = read_all(names.location("classes.txt"), _LARGEST_CLASSES_FILE)
    if content is not None:
        listed = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
        return _unique([name for name in listed if name], "classes.txt")
    content = read_all(names.location("classes.json"), _LARGEST_CLASSES_FILE)
    if content is None:
        return None
    try:
        value = json.loads(content)
        if isinstance(value, dict):  # name -> number, or number -> name
            pairs = [(int(b), a) if isinstance(b, int) else (int(a), str(b)) for a, b in value.items()]
            if sorted(number for number, _ in pairs) != list(range(len(pairs))):
                raise ValueError("the numbers must run from 0 without a gap")
            value = [name for _, name in sorted(pairs)]
        if not isinstance(value, list):
            raise TypeError("neither a list nor an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise CBAMError(
            f"{names.location('classes.json')} is neither a list of names nor an object {{name: number}} ({error})."
        ) from error
    return _unique([str(name) for name in value], "classes.json")


def _unique(listed: list[str], file: str) -> tuple[str, ...]:
    if len(set(listed)) < len(listed):
        twice = sorted(name for name, count in Counter(listed).items() if count > 1)
        raise CBAMError(f"{file} holds names twice: {some(twice)}.")
    return tuple(listed)


def _classes(
    index: ShardIndex, names: ShardNames, listed: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the class names, numbers where the shards have none, and notices for the user."""
    top = {name: index.shards[name].top_label for name in (*names.train, *names.val)}
    highest = max(top, key=lambda name: top[name])
    if listed is not None:
        if top[highest] >= len(listed):
            raise CBAMError(
                f"{names.location(highest)} holds the label {top[highest]}, but there are names for "
                f"{len(listed)} classes, 0 to {len(listed) - 1}, at {names.base}."
            )
        return listed, []
    trained = max(top[name] for name in names.train)
    if top[highest] > trained:
        raise CBAMError(
            f"{names.location(highest)} holds the label {top[highest]}; the highest one in training is {trained}."
        )
    if trained == 0:
        raise CBAMError(f"all labels in the training shards at {names.base} are 0. At least two are needed.")
    images = sum(index.shards[name].count for name in names.train)
    if trained >= min(_MOST_CLASSES, max(images, _CLASSES_WITHOUT_IMAGES)):
        raise CBAMError(
            f"{names.location(highest)} holds the label {top[highest]:,}, and the training shards hold {images:,}"
            " images. Repair the label, or write a classes.txt with the names of all classes beside the shards."
        )
    notices = [f"There is no classes.txt at {names.base}: the classes are called 0 to {trained}."]
    if trained >= images:
        notices.append(f"{images:,} training images cannot show all {trained + 1:,} classes.")
    return tuple(map(str, range(trained + 1))), notices


def _split(
    labels: NDArray[np.int32], val_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split by class like `stratified_split`, but by index instead of name, and vectorised."""
    if not 0 < val_fraction < 1:
        raise CBAMError(f"val_fraction must lie between 0 and 1, given {val_fraction}. Type for example: 0.2")
    order = np.lexsort((hash64(seed, np.arange(len(labels))), labels))
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    held = np.minimum(np.maximum(1, np.rint(val_fraction * counts).astype(np.int64)), counts - 1)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    validates = np.zeros(len(labels), dtype=bool)
    validates[order] = rank < np.repeat(held, counts)
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def _probe(images: ShardImages) -> None:
    """Decode a few images spread over the set, to find problems that all of them share before training."""
    if not len(images):
        raise CBAMError(f"no images on one side of {images.samples.names[0]} and similar shards.")
    chosen = np.unique(np.linspace(0, len(images) - 1, _PROBES).astype(np.int64)).tolist()
    for name, content in images.contents(chosen):
        check_image(content, images.max_pixels, name)


def _checked_index(index: ShardIndex, names: ShardNames, max_pixels: int) -> ShardIndex:
    """Decode every image of the shards that are not checked yet, and mark in the index which cannot be used."""
    wanted = [name for name in (*names.train, *names.val) if not index.shards[name].checked]
    if not wanted:
        return index
    plain = Preparation(1, (0.0,) * 3, (1.0,) * 3, max_pixels)
    found: dict[str, Part] = {}
    total, done = sum(index.shards[name].count for name in wanted), 0
    with counting("checking images in shards") as count, ThreadPoolExecutor() as pool:
        for name in wanted:
            shard, rows = index.shards[name], index.rows_of(index.shards[name])
            images = ShardImages(names, Samples(index, [name]), (), plain, augment=False)
            labels = np.array(rows.labels)
            for start in range(0, shard.count, _AT_ONCE):
                part = range(start, min(start + _AT_ONCE, shard.count))
                fine = list(pool.map(partial(_is_fine, max_pixels=max_pixels), images.contents(part)))
                bad = np.array(part)[~np.array(fine)]
                labels[bad] = np.minimum(labels[bad], -1 - labels[bad])
                count(done := done + len(part), total)
            found[name] = Part(name, shard.stamp, Rows(rows.blocks, rows.sizes, labels), checked=True)
    return write_somewhere(names, [found.get(part.name, part) for part in parts_of(index)])


def _is_fine(item: tuple[str, bytes], max_pixels: int) -> bool:
    name, content = item
    try:
        check_image(content, max_pixels, name)
    except BadImage:
        return False
    return True
