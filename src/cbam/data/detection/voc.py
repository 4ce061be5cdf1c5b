"""PASCAL VOC (Everingham et al., IJCV 2010): an XML file for each image, lists of images for each year."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from cbam.data.detection.boxes import from_inclusive, usable_box
from cbam.data.detection.problems import Problems
from cbam.data.detection.raw import RawDetection, listed, name_of, size_in_header
from cbam.data.detection.records import Annotation, DetectionRecord, make_record
from cbam.data.pictures import SUFFIXES
from cbam.data.scan import some
from cbam.documents import RefusedFile, inside, read_text, read_xml
from cbam.errors import CBAMError, nearest

OPTIONS = ("train", "val")
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_MOST_LIST = 64 * 2**20  # bytes of a list of images


@dataclass(frozen=True)
class _Image:
    """An image of a list: its year's folder and its name there."""

    year: Path
    name: str


@dataclass(frozen=True)
class _Object:
    """An object as its XML file names it; the box is VOC's, inclusive and counted from 1."""

    name: str
    box: tuple[float, ...]
    difficult: bool
    where: str


def read_voc(root: Path, options: dict[str, str]) -> RawDetection:
    """Read VOCdevkit, the folder around it, or the folder of one year.

    Without options the trainval lists of all years train and the test list of 2007 validates (the usual 07+12); without
    a test list train.txt trains and val.txt validates; without lists a share of all annotated images validates.

    Args:
        root: the folder.
        options: "train" and "val" are lists with plus signs, such as "2007:trainval+2012:trainval".

    Raises:
        CBAMError: no year with Annotations/ and JPEGImages/, or a list that is not there.
    """
    problems = Problems()
    years = _years(root)
    lists = _lists(years, options)
    sides = {side: _listed_images(paths, years, problems) for side, paths in lists.items()}
    if "train" not in sides:
        everything = [_Image(year, file.stem) for year in years.values() for file in _annotation_files(year)]
        sides = {"train": everything}
        problems.notice("There are no lists in ImageSets/Main: a share of all annotated images validates.")
    read = _Reader(problems)
    found = {side: [read.image(image) for image in images] for side, images in sides.items()}
    names = sorted({one.name for side in found.values() for entry in side if entry for one in entry[2]})
    classes = CLASSES if set(names) <= set(CLASSES) else tuple(names)
    if classes is not CLASSES and len(set(names) & set(CLASSES)) > 10:
        unknown = [name for name in names if name not in CLASSES]
        problems.warning("sets of VOC's classes with others", "all are used", some(unknown))
    records = _records(found, {name: label for label, name in enumerate(classes, 1)}, problems)
    chosen = ", ".join(f"{side}: {'+'.join(_title(path) for path in paths)}" for side, paths in lists.items())
    return RawDetection(
        name=root.resolve().name,
        source=f"VOC annotations in {root}" + (f" ({chosen})" if chosen else ""),
        train=records["train"],
        validation=records.get("val"),
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        problems=problems,
    )


def _years(root: Path) -> dict[str, Path]:
    def has_both(folder: Path) -> bool:
        return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()

    if has_both(root):
        return {root.name.removeprefix("VOC"): root}
    for folder in (root, root / "VOCdevkit"):
        years = sorted(path for path in folder.glob("*") if has_both(path))
        if years:
            return {year.name.removeprefix("VOC"): year for year in years}
    raise CBAMError(
        f"{root} holds no VOC set: no folder with Annotations/ and JPEGImages/ is in it or in its VOCdevkit/. "
        "Give the folder that holds VOC2007/ and VOC2012/."
    )


def _list_path(year: Path, name: str) -> Path:
    return year / "ImageSets" / "Main" / f"{name}.txt"


def _lists(years: dict[str, Path], options: dict[str, str]) -> dict[str, list[Path]]:
    if options:
        if "train" not in options:
            raise CBAMError("val=... needs the training lists too: ?train=2007:trainval&val=2007:test")
        # A plus sign in an option has become a space, as in a URL.
        return {
            side: [_named_list(years, part) for part in text.replace("+", " ").split()]
            for side, text in options.items()
        }
    there = {
        name: [path for year in years.values() if (path := _list_path(year, name)).is_file()]
        for name in ("trainval", "test", "train", "val")
    }
    if there["trainval"] and there["test"]:
        return {"train": there["trainval"], "val": there["test"]}
    if there["train"] and there["val"]:
        return {"train": there["train"], "val": there["val"]}
    whole = there["trainval"] or there["train"]
    return {"train": whole} if whole else {}


def _named_list(years: dict[str, Path], text: str) -> Path:
    year, _, name = text.rpartition(":")
    if not year and len(years) == 1:
        year = next(iter(years))
    if year not in years:
        raise CBAMError(
            f"{text!r} names no year. Found: {listed(list(years))}. Type for example: 2007:trainval"
        )
    path = inside(years[year] / "ImageSets" / "Main", f"{name}.txt")
    if path is None or not path.is_file():
        lists = sorted(file.stem for file in (years[year] / "ImageSets" / "Main").glob("*.txt"))
        close = nearest(name, lists, count=1)
        hint = f" Did you mean {year}:{close[0]}?" if close else ""
        raise CBAMError(f"{text!r}: there is no list {name}.txt in {years[year]}/ImageSets/Main.{hint}")
    return path


def _title(path: Path) -> str:
    return f"{path.parents[2].name}/{path.stem}"


def _listed_images(paths: Sequence[Path], years: dict[str, Path], problems: Problems) -> list[_Image]:
    found: dict[tuple[Path, str], _Image] = {}
    for path in paths:
        year = path.parents[2]
        for number, line in enumerate(read_text(path, _MOST_LIST).splitlines(), 1):
            words = line.split()
            if not words or words[1:2] == ["-1"]:  # the lists of one class say whether an image shows it
                continue
            if inside(year / "Annotations", words[0]) is None or "/" in words[0]:
                problems.error(
                    "file names that lead out of the folder", f"line {number} of {path}: {name_of(line)}"
                )
            elif (year, words[0]) in found:
                problems.warning("images listed twice", "used once", f"{words[0]} in {path}")
            else:
                found[year, words[0]] = _Image(year, words[0])
    return list(found.values())


def _annotation_files(year: Path) -> list[Path]:
    return sorted(file for file in (year / "Annotations").glob("*.xml") if not file.name.startswith("."))


class _Reader:
    """Reads the XML files."""

    def __init__(self, problems: Problems):
        self.problems = problems

    def image(self, image: _Image) -> tuple[Path, tuple[int, int], list[_Object]] | None:
        """Return the file of an image, its size and its objects; None, counted, if it cannot be used."""
        file = image.year / "Annotations" / f"{image.name}.xml"
        where = f"{image.year.name}/Annotations/{image.name}.xml"
        if not file.is_file():
            self.problems.error("missing annotation files", where)
            return None
        try:
            tree = read_xml(file)
        except RefusedFile as error:
            self.problems.error("annotation files that are refused", str(error))
            return None
        except CBAMError as error:
            self.problems.error("annotation files that cannot be read", str(error))
            return None
        if tree.tag != "annotation":
            self.problems.error("annotation files that are none of VOC's", f"{where}: <{name_of(tree.tag)}>")
            return None
        path = self._picture(image, tree, where)
        size = None if path is None else self._size(tree, path, where)
        if path is None or size is None:
            return None
        objects = [
            self._object(node, f"object {n} of {where}") for n, node in enumerate(tree.findall("object"), 1)
        ]
        return path, size, [one for one in objects if one is not None]

    def _picture(self, image: _Image, tree: ET.Element, where: str) -> Path | None:
        folder = image.year / "JPEGImages"
        stated = (tree.findtext("filename") or "").strip()
        if stated:
            path = inside(folder, stated)
            if path is None:
                self.problems.error("file names that lead out of the folder", f"{where}: {name_of(stated)}")
                return None
            # Tools that convert annotations leave the <filename> of the source behind; the list names the image.
            if path.stem == image.name and path.is_file():
                return path
        for suffix in SUFFIXES:
            if (path := folder / f"{image.name}{suffix}").is_file():
                return path
        self.problems.error("missing files", f"JPEGImages/{image.name}.jpg of {where}")
        return None

    def _size(self, tree: ET.Element, path: Path, where: str) -> tuple[int, int] | None:
        texts = [tree.findtext(f"size/{side}") for side in ("width", "height")]
        numbers = [_number(text) for text in texts]
        if not any(texts) or numbers == [0, 0]:  # converters write nothing or zeros
            self.problems.warning("annotation files without the image's size", "taken from the image", where)
            return size_in_header(path, self.problems, where, upright=False)
        width, height = (
            int(number) if number is not None and 1 <= number <= 10**6 and number == int(number) else 0
            for number in numbers
        )
        if not (width and height):
            self.problems.error(
                "images whose 'width' and 'height' are no sizes",
                f"{where}: {name_of(texts[0])} x {name_of(texts[1])}",
            )
            return None
        return width, height

    def _object(self, node: ET.Element, where: str) -> _Object | None:
        name = (node.findtext("name") or "").strip()
        if not name:
            self.problems.error("objects without a name", where)
            return None
        # The parts of a person have a bndbox of their own further down.
        numbers = [_number(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        box = [number for number in numbers if number is not None]
        if len(box) < 4:
            self.problems.error("objects whose 'bndbox' lacks a number", f"{where}, {name}")
            return None
        return _Object(name, tuple(box), (node.findtext("difficult") or "0").strip() == "1", where)


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if abs(value) < 1e15 or value != value else float("inf")


def _records(
    found: dict[str, list[tuple[Path, tuple[int, int], list[_Object]] | None]],
    label_of: dict[str, int],
    problems: Problems,
) -> dict[str, list[DetectionRecord]]:
    records: dict[str, list[DetectionRecord]] = {}
    image_id = 0
    for side, entries in found.items():
        records[side] = []
        for entry in entries:
            image_id += 1  # counted over what cannot be used too, so that a repair changes no other number
            if entry is None:
                continue
            path, size, objects = entry
            annotations = []
            for one in objects:
                x1, y1, x2, y2 = one.box
                box = usable_box(from_inclusive((x1, y1, x2, y2)), size, problems, one.where)
                if box is not None:
                    annotations.append(Annotation(box, label_of[one.name], difficult=one.difficult))
            records[side].append(make_record(image_id, path, size, annotations))
    return records
