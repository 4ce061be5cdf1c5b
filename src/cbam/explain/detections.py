"""Draw found and true objects on pictures of any size: boxes, masks, names and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# Okabe and Ito's colours, which colour-blind readers can tell apart; the eighth, black, is the edge of all boxes.
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
_SHOWN_SIDE = 480  # a smaller picture is enlarged, so that names can be read
_FILL = 0.4
_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Objects:
    """K objects to draw.

    Attributes:
        boxes: (K, 4), x1, y1, x2, y2 in pixels of the picture.
        labels: (K,), 1..classes.
        scores: (K,) in 0..1; None for true objects.
        masks: bool (K, H, W), or None.
        notes: a word for each, such as "crowd", behind its name; empty for none.
    """

    boxes: NDArray[np.floating]
    labels: NDArray[np.integer]
    scores: NDArray[np.floating] | None = None
    masks: NDArray[np.bool_] | None = None
    notes: Sequence[str] = ()

    @classmethod
    def found(cls, detections: Mapping[str, Any], least_score: float = 0.5) -> Objects:
        """Return a detector's output for one image, without what scores below `least_score`, best first."""
        scores = detections["scores"].detach().cpu().numpy()
        chosen = np.flatnonzero(scores >= least_score)
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        boxes, labels = (detections[name].detach().cpu().numpy()[chosen] for name in ("boxes", "labels"))
        masks = None
        if "masks" in detections:
            masks = np.array(
                [detections["masks"][int(i), 0].gt(0.5).cpu().numpy() for i in chosen], dtype=bool
            )
        return cls(boxes, labels, scores[chosen], masks if masks is not None and len(masks) else None)

    @classmethod
    def true(cls, target: Mapping[str, Any]) -> Objects:
        """Return the objects of a detection set's target; crowds and difficult ones are marked."""
        notes = [
            " ".join(word for word, mark in (("crowd", crowd), ("difficult", hard)) if mark)
            for crowd, hard in zip(target["iscrowd"].tolist(), target["difficult"].tolist(), strict=True)
        ]
        masks = target["masks"].numpy().astype(bool) if "masks" in target and len(target["masks"]) else None
        return cls(target["boxes"].numpy(), target["labels"].numpy(), None, masks, notes)


def class_colour(label: int) -> tuple[int, int, int]:
    """Return the colour of a class, one of seven: names are always written too.

    >>> class_colour(1), class_colour(8) == class_colour(1)
    ((230, 159, 0), True)
    """
    return COLOURS[(label - 1) % len(COLOURS)]


def draw_detections(picture: Image.Image, objects: Objects, classes: Sequence[str]) -> Image.Image:
    """Return a copy of a picture with boxes, masks, names and scores.

    Lines and letters grow with the picture; one below 480 pixels is first enlarged by a whole factor, without
    interpolation. Names are placed where they cover no other name, if there is room.

    Args:
        picture: any mode that Pillow converts to RGB.
        objects: what to draw; the first lie on top.
        classes: the names of the labels 1, 2, ...

    >>> cat = Objects(np.array([[8, 8, 40, 30]]), np.array([1]), np.array([0.9]))
    >>> draw_detections(Image.new("RGB", (64, 48)), cat, ["cat"]).size
    (512, 384)
    """
    factor = max(1, math.ceil(_SHOWN_SIDE / max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    drawn = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    if objects.masks is not None:
        drawn = _with_masks(drawn, objects)
    canvas = ImageDraw.Draw(drawn)
    line = max(2, round(max(size) / 320))
    boxes: list[_Box] = [(x1, y1, x2, y2) for x1, y1, x2, y2 in (objects.boxes * factor).tolist()]
    for box, label in reversed(list(zip(boxes, objects.labels.tolist(), strict=True))):
        _outline(canvas, box, class_colour(label), line)
    font = _font(max(13, round(max(size) / 45)))
    placed: list[_Box] = []
    for index, (box, label) in enumerate(zip(boxes, objects.labels.tolist(), strict=True)):
        place = _tag(canvas, box, _caption(objects, index, classes), class_colour(label), font, size, placed)
        placed.append(place)
    return drawn


def side_by_side(panels: Mapping[str, Image.Image], columns: int = 4) -> Image.Image:
    """Return pictures of one size in rows, each below its title.

    Args:
        panels: title -> picture.
        columns: the most in a row.

    >>> side_by_side({"true": Image.new("RGB", (100, 80)), "none": Image.new("RGB", (100, 80))}).width
    204
    """
    pictures = list(panels.values())
    width, height = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    gap, font = max(4, width // 60), _font(max(12, width // 24))
    head = round(font.size * 1.6)
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new(
        "RGB", (columns * (width + gap) - gap, rows * (height + head + gap) - gap), (255, 255, 255)
    )
    canvas = ImageDraw.Draw(sheet)
    for index, (title, picture) in enumerate(panels.items()):
        x, y = index % columns * (width + gap), index // columns * (height + head + gap)
        canvas.text((x + 2, y + head / 2), _fitting(title, font, width), (20, 20, 20), font, anchor="lm")
        sheet.paste(picture, (x, y + head))
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib's own font knows Latin, Greek and Cyrillic letters and many signs; Pillow's knows Latin.
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _caption(objects: Objects, index: int, classes: Sequence[str]) -> str:
    name = classes[int(objects.labels[index]) - 1]
    words = ["".join(letter if letter.isprintable() else "?" for letter in name)]
    if objects.notes and objects.notes[index]:
        words.append(f"({objects.notes[index]})")
    if objects.scores is not None:
        words.append(f"{float(objects.scores[index]):.2f}")
    return " ".join(words)


def _outline(canvas: ImageDraw.ImageDraw, box: _Box, colour: tuple[int, int, int], line: int) -> None:
    x1, y1, x2, y2 = box
    edge = max(1, line // 3)
    corners = (round(x1), round(y1), max(round(x1), round(x2) - 1), max(round(y1), round(y2) - 1))
    outer = (corners[0] - edge, corners[1] - edge, corners[2] + edge, corners[3] + edge)
    canvas.rectangle(outer, outline=(0, 0, 0), width=line + 2 * edge)  # seen on any background
    canvas.rectangle(corners, outline=colour, width=line)


def _tag(
    canvas: ImageDraw.ImageDraw,
    box: _Box,
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    placed: Sequence[_Box],
) -> _Box:
    pad = max(2, round(font.size / 5))
    text = _fitting(text, font, min(size[0] - 2 * pad, max(box[2] - box[0], size[0] / 2)))
    width, height = font.getlength(text) + 2 * pad, font.size * 1.2 + pad
    places = [_inside(x, y, width, height, size) for x, y in _corners(box, width, height)]
    free = [place for place in places if not any(_overlap(place, other) for other in placed)]
    place = free[0] if free else min(places, key=lambda p: sum(_overlap(p, other) for other in placed))
    canvas.rectangle(place, fill=colour, outline=(0, 0, 0))
    canvas.text((place[0] + pad, (place[1] + place[3]) / 2), text, _ink(colour), font, anchor="lm")
    return place


def _ink(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever has the higher contrast (WCAG 2) on a colour: at least 4.5 on all of ours."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _corners(box: _Box, width: float, height: float) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = box
    outside = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2)]
    inside = [(x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)]
    return [*outside[:2], *inside[:2], *outside[2:], *inside[2:], (x1, (y1 + y2) / 2)]


def _inside(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> _Box:
    x, y = max(0, min(x, size[0] - 1 - width)), max(0, min(y, size[1] - 1 - height))
    return x, y, x + width, y + height


def _overlap(a: _Box, b: _Box) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Shorten the beginning of a text, its name, until the text fits; its end holds the score."""
    if font.getlength(text) <= width:
        return text
    name, _, rest = text.rpartition(" ")
    rest = f" {rest}" if name else ""
    name = name or text
    while name and font.getlength(f"{name}…{rest}") > width:
        name = name[:-1]
    return f"{name}…{rest}"


def _with_masks(picture: Image.Image, objects: Objects) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32).copy()
    assert objects.masks is not None
    edge = 2 * max(1, round(max(picture.size) / 640)) + 1
    for mask, label in reversed(list(zip(objects.masks, objects.labels.tolist(), strict=True))):
        shape = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
        inside = np.asarray(shape) > 0
        border = inside & (np.asarray(shape.filter(ImageFilter.MinFilter(edge))) == 0)
        colour = np.array(class_colour(label), dtype=np.float32)
        pixels[inside] = (1 - _FILL) * pixels[inside] + _FILL * colour
        pixels[border] = colour
    return Image.fromarray(pixels.round().astype(np.uint8))
