"""Data sets of Hugging Face's `datasets`: saved on this disk, or by name from the hub."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbam.data.image_data import ImageData
from cbam.data.options import split_options
from cbam.data.pictures import decode_image, open_image
from cbam.data.prepared import Preparation, PreparedImages, Selection, prepared_data
from cbam.data.split import stratified_split
from cbam.errors import CBAMError, MissingExtra, unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Self

OPTIONS = ("image", "label", "train", "val", "config")
_IMAGE_NAMES = ("image", "img", "jpg", "png", "picture")
_LABEL_NAMES = ("label", "labels", "cls", "fine_label", "class", "target")
_VALIDATION_NAMES = ("validation", "val", "valid", "test")


class HuggingFaceImages(PreparedImages):
    """The images of one split; the columns stay memory-mapped in `datasets`' files.

    Args:
        table: a `datasets.Dataset` whose image column is not decoded.
        split: name of the split.
        image: name of the image column.
        labels: class of every row (N,), as an index into `classes`.
        classes: names of the classes.
        preparation: how an image becomes an item.
        augment: whether to augment (training).
    """

    def __init__(
        self,
        table: Any,
        split: str,
        image: str,
        labels: Sequence[int],
        classes: Sequence[str],
        preparation: Preparation,
        *,
        augment: bool,
    ):
        super().__init__(classes, preparation, augment=augment)
        self.labels = list(labels)
        self._table, self._split, self._image = table, split, image
        self._rows: NDArray[np.int64] = np.arange(len(self.labels))

    def subset(self, indices: Sequence[int]) -> Self:
        """Return a view of the images at `indices`, in that order."""
        view = copy.copy(self)
        view.labels = [self.labels[index] for index in indices]
        view._rows = self._rows[np.asarray(indices, dtype=np.int64)]
        return view

    def identifier(self, index: int) -> str:
        """Return the split's name and the row in it."""
        return f"{self._split}:{self._rows[index]}"

    def digest(self) -> bytes:
        """Return a hash of which row has which label."""
        total = hashlib.sha256(str(self._table.num_rows).encode())
        total.update(self._rows.tobytes())
        total.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return total.digest()

    def _open(self, index: int) -> Image:
        stored = self._table[int(self._rows[index])][self._image]
        name = f"row {self._rows[index]} of {self._split}"
        if stored is None:
            return decode_image(b"", name, self.max_pixels)
        if stored["bytes"] is None:
            return open_image(Path(stored["path"]), self.max_pixels)
        return decode_image(stored["bytes"], name, self.max_pixels)


def load_hugging_face(
    text: str,
    preparation: Preparation,
    selection: Selection,
) -> ImageData:
    """Open a data set of Hugging Face's `datasets`.

    Args:
        text: "NAME_OR_FOLDER" or "NAME?image=COLUMN&label=COLUMN&train=SPLIT&val=SPLIT&config=CONFIG"; by default the
            columns are found by their types and usual names, and the splits are train and validation, val or test.
        preparation: how an image becomes an item.
        selection: which images train and which validate.

    Raises:
        CBAMError: no such set, split or column, or `bad_images` is "skip", which is not available for these sets.
        MissingExtra: `datasets` is not installed.
    """
    name, options = split_options(text, OPTIONS)
    if selection.bad_images == "skip":
        raise CBAMError(
            f"hf:{name} is not checked image by image, so none can be skipped. Leave out --bad-images skip, or "
            "save the images to a folder."
        )
    splits = _opened(name, options.get("config"))
    train_name = _split_name(splits, options.get("train"), ("train",)) or next(iter(splits))
    val_name = _split_name(splits, options.get("val"), _VALIDATION_NAMES)
    if val_name == train_name:
        val_name = None
    image, label = _columns(splits[train_name], options)
    classes = _class_names(splits[train_name], label)

    def side(split: str, augment: bool) -> HuggingFaceImages:
        table = splits[split].cast_column(image, _undecoded())
        labels = _numbers(splits[split], split, label, classes)
        return HuggingFaceImages(table, split, image, labels, classes, preparation, augment=augment)

    train, val = side(train_name, True), side(val_name or train_name, False)
    how = f"{train_name} trains, {val_name} validates"
    if val_name is None and selection.whole:
        train, how = train.subset(()), f"all of {train_name}"
    elif val_name is None:
        names = [train.identifier(index) for index in range(len(train))]
        into = stratified_split(names, train.labels, selection.val_fraction, selection.split_seed)
        train, val = train.subset(into[0]), val.subset(into[1])
        how = f"{train_name} is split by class with split seed {selection.split_seed}"
    return prepared_data(
        name.rstrip("/").rpartition("/")[2],
        f"hf:{name}: {how}",
        train,
        val,
        preparation,
        selection,
    )


def _opened(name: str, config: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"the data set hf:{name}", "datasets", "datasets") from error
    folder = Path(name).expanduser()
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "dataset_info.json"))
    try:
        found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(name, config)
    except Exception as error:  # the package raises errors of many types, its own and those of others
        what = (
            "was saved there, but cannot be read"
            if saved
            else "is no saved folder, and the hub does not give it"
        )
        raise CBAMError(f"hf:{name} {what}: {error}") from error
    if isinstance(found, datasets.Dataset):
        return {str(found.split or "train"): found}
    return {str(split): table for split, table in found.items()}


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)


def _split_name(splits: dict[str, Any], asked: str | None, usual: Sequence[str]) -> str | None:
    if asked is not None and asked not in splits:
        raise unknown_name("split", asked, splits)
    return asked or next((name for name in usual if name in splits), None)


def _columns(table: Any, options: dict[str, str]) -> tuple[str, str]:
    images = [name for name, kind in table.features.items() if type(kind).__name__ == "Image"]
    labels = [name for name, kind in table.features.items() if type(kind).__name__ == "ClassLabel"]
    found = []
    for what, typed, usual in (("image", images, _IMAGE_NAMES), ("label", labels, _LABEL_NAMES)):
        asked = options.get(what)
        if asked is not None:
            if asked not in table.column_names:
                raise unknown_name("column", asked, table.column_names)
            found.append(asked)
            continue
        named = [name for name in usual if name in table.column_names]
        if len(typed) == 1:
            found.append(typed[0])
        elif named:
            found.append(named[0])
        else:
            raise CBAMError(
                f"which column holds the {what}? There are {', '.join(table.column_names)}. "
                f"Type for example: --data 'hf:NAME?{what}={table.column_names[0]}'"
            )
    return found[0], found[1]


def _class_names(table: Any, label: str) -> tuple[str, ...]:
    kind = table.features[label]
    names = getattr(kind, "names", None)
    if names is None:
        names = sorted(set(table.unique(label)), key=lambda value: (isinstance(value, str), value))
    if len(names) < 2:
        raise CBAMError(f"the column {label!r} holds one class only. At least two are needed.")
    return tuple(map(str, names))


def _numbers(table: Any, split: str, label: str, classes: tuple[str, ...]) -> list[int]:
    numbered = hasattr(table.features[label], "names")
    values: list[Any] = list(table[label])
    known: dict[Any, int] = {number: number for number in range(len(classes))}
    if not numbered:
        values = list(map(str, values))
        known = {name: number for number, name in enumerate(classes)}
    if bad := sorted({str(value) for value in values if value not in known}):
        raise CBAMError(
            f"the split {split!r} holds {label} = {', '.join(bad[:5])}, which is none of the "
            f"{len(classes)} classes in training."
        )
    return [known[value] for value in values]
