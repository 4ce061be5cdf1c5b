"""Miniatures of the folders in which people keep COCO, VOC and YOLO sets, with their oddities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]


def save_image(path: Path, size: tuple[int, int] = (60, 40), *, orientation: int | None = None) -> Path:
    """Save a picture whose pixels differ; `size` is (width, height) as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(ramp.astype(np.uint8)).save(path, exif=exif)
    return path


def coco_image(number: int, name: str, size: tuple[int, int] = (60, 40)) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}


def coco_object(number: int, image_id: int, category: int = 18, **more: Any) -> dict[str, Any]:
    entry = {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": [5, 6, 20, 10],
        "area": 150.0,
    }
    return {**entry, "iscrowd": 0, "segmentation": [[5, 6, 25, 6, 25, 16, 5, 16]], **more}


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco_file(path: Path, images: list[Any], annotations: list[Any], categories: Any = CATEGORIES) -> Path:
    content = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}
    return write_json(path, {**content, "categories": categories})


def coco_2017(root: Path, year: str = "2017") -> Path:
    """COCO as downloaded: other annotation files beside, a crowd as run lengths, an empty image, ids with gaps."""
    prefix = "COCO_{}2014_" if year == "2014" else ""
    for side, first in (("train", 9), ("val", 139)):
        names = [f"{prefix.format(side)}{number:012d}.jpg" for number in (first, first + 16)]
        for name in names:
            save_image(root / f"{side}{year}" / name)
        crowd = {"size": [40, 60], "counts": [240, 400, 1760]}
        coco_file(
            root / "annotations" / f"instances_{side}{year}.json",
            [coco_image(first + 16, names[1]), coco_image(first, names[0])],
            [
                coco_object(900100259 + first, first, 1, iscrowd=1, segmentation=crowd, bbox=[6, 0, 10, 40]),
                coco_object(1768, first, 90, bbox=[50.11, 30.02, 10.3, 9.98]),  # passes the edge by rounding
                coco_object(1769, first, 18),
            ],
        )
        write_json(root / "annotations" / f"captions_{side}{year}.json", {"images": [], "annotations": []})
        write_json(root / "annotations" / f"person_keypoints_{side}{year}.json", {"images": []})
    return root


def coco_folder(root: Path, annotations: list[Any], images: list[Any] | None = None, **more: Any) -> Path:
    """A folder with one JSON file and images beside it."""
    for number in (1, 2, 3):
        save_image(root / f"{number}.jpg")
    listed = [coco_image(number, f"{number}.jpg") for number in (1, 2, 3)] if images is None else images
    coco_file(root / "labels.json", listed, annotations, **more)
    return root


def voc_object(
    name: str = "dog", box: tuple[Any, ...] = (6, 7, 25, 16), difficult: str | None = "0", more=""
) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name><pose>Left</pose>{flag}{more}<bndbox>{sides}</bndbox></object>"


def voc_xml(objects: str = "", *, filename: str = "", size: tuple[Any, ...] | None = (60, 40)) -> str:
    sides = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><folder>VOC</folder><filename>{filename}</filename>{sides}{objects}</annotation>"


def voc_image(year: Path, name: str, xml: str) -> None:
    save_image(year / "JPEGImages" / f"{name}.jpg")
    (year / "Annotations").mkdir(parents=True, exist_ok=True)
    (year / "Annotations" / f"{name}.xml").write_text(xml)


def voc_list(year: Path, name: str, lines: list[str]) -> None:
    path = year / "ImageSets" / "Main" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def vocdevkit(root: Path) -> Path:
    """VOC2007 with its test images and VOC2012, with parts of a person, decimals, and lists of one class."""
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    y07, y12 = root / "VOC2007", root / "VOC2012"
    voc_image(y07, "000005", voc_xml(voc_object("chair") + voc_object("chair", (1, 1, 60, 40), "1")))
    voc_image(y07, "000007", voc_xml())  # no object
    voc_image(
        y07, "000001", voc_xml(voc_object("dog") + voc_object("person", more=head), filename="000001.jpg")
    )
    voc_image(y12, "2007_000027", voc_xml(voc_object("person", ("5.5", "6.25", "20.0", "30.75"), None)))
    voc_image(y12, "2008_000001", voc_xml(voc_object("cat"), filename="other.png"))
    for name, year, lines in (
        ("trainval", y07, ["000005", "000007"]),
        ("train", y07, ["000005"]),
        ("val", y07, ["000007"]),
        ("test", y07, ["000001"]),
        ("dog_trainval", y07, ["000005 -1", "000007 -1"]),
        ("person_test", y07, ["000001  1"]),
        ("trainval", y12, ["2007_000027", "2008_000001"]),
        ("train", y12, ["2007_000027"]),
        ("val", y12, ["2008_000001"]),
    ):
        voc_list(year, name, lines)
    (root / "VOC2007" / "SegmentationClass").mkdir()
    return root


def yolo_folder(root: Path, labels: dict[str, str | None], yaml: str | None = None) -> Path:
    """images/train and labels/train, one image for each entry; None is an image without a label file."""
    for name, text in labels.items():
        save_image(root / "images" / f"{name}.jpg")
        if text is not None:
            path = root / "labels" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root
