"""A detection set made of real pictures: garments of Fashion-MNIST, coloured and pasted on photographs and textures.

It is there so that training, tests and demonstrations run without a download. Every box and mask is exact: it is that
of the pixels which the finished picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from cbam.data import fashion_mnist
from cbam.data.detection.writers import WRITERS, Scene
from cbam.errors import CBAMError, unknown_name

PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "stereo_motorcycle",
    "retina",
    "immunohistochemistry",
)
TEXTURES = ("brick", "grass", "gravel")
_EMPTY = 0.05  # share of images without an object
_LEAST_VISIBLE = 0.5  # of an object under others
_TRIES = 20


@dataclass(frozen=True)
class _Materials:
    """Garments (N, 28, 28) of each class, and backgrounds (H, W, 3), all uint8."""

    garments: list[NDArray[np.uint8]]
    backgrounds: list[NDArray[np.uint8]]


def write_generated(
    root: str | Path,
    formats: Sequence[str] = ("coco", "voc", "yolo"),
    *,
    images: int = 1000,
    validation: int | None = None,
    size: int = 128,
    seed: int = 0,
    classes: Sequence[str] = fashion_mnist.CLASSES,
    most_objects: int = 4,
) -> dict[str, str]:
    """Write a generated detection set, the same files for the same arguments and versions of NumPy, SciPy and Pillow.

    Training images show garments of Fashion-MNIST's training images, validation ones those of its test images. A third
    of the images is square, a third wide, a third high; a twentieth is empty. The COCO form has masks.

    Args:
        root: the folder; each format gets a folder of its own inside.
        formats: any of "coco", "voc", "yolo".
        images: how many to train on.
        validation: how many to validate on; a fifth of `images` by default.
        size: the longer side in pixels, at least 32.
        seed: another seed gives other images.
        classes: some or all of Fashion-MNIST's; of similar ones (shirt, pullover, coat) fewer are easier.
        most_objects: on one image.

    Returns:
        For each format what `load_detection` takes, such as "coco:generated/coco".

    Raises:
        CBAMError: an unknown format or class, a number out of range, a folder with files in it, or Fashion-MNIST or
            scikit-image is missing.

    Example:
        >>> write_generated("generated", formats=("coco",), images=40, size=96)  # doctest: +SKIP
        {'coco': 'coco:generated/coco'}
    """
    root, validation = Path(root), max(1, images // 5) if validation is None else validation
    for name in formats:
        if name not in WRITERS:
            raise unknown_name("format", name, WRITERS)
    for name in classes:
        if name not in fashion_mnist.CLASSES:
            raise unknown_name("class", name, fashion_mnist.CLASSES)
    if min(images, validation, most_objects) < 1 or size < 32 or not formats or not classes:
        raise CBAMError(
            f"at least one image of each side, one object, one format, one class and 32 pixels are needed; given "
            f"images={images}, validation={validation}, most_objects={most_objects}, size={size}."
        )
    for name in formats:
        if (root / name).exists() and any((root / name).iterdir()):
            raise CBAMError(f"{root / name} holds files already. Give a new folder, or remove it.")
    parts = fashion_mnist.read_fashion_mnist(_fashion_mnist_folder())
    backgrounds = _backgrounds()
    writers = [WRITERS[name](root / name, tuple(classes)) for name in formats]
    for number, (side, part, count) in enumerate((("train", "train", images), ("val", "t10k", validation))):
        pixels, labels = (tensor.numpy() for tensor in parts[part])
        garments = [pixels[labels == fashion_mnist.CLASSES.index(name), 0] for name in classes]
        materials = _Materials(garments, backgrounds)
        for index in range(count):
            scene = _scene(materials, np.random.default_rng([seed, number, index]), size, most_objects)
            content = _jpeg(scene.pixels)
            for writer in writers:
                writer.add(side, index, scene, content)
    for writer in writers:
        writer.finish()
    return {name: f"{name}:{writer.folder}" for name, writer in zip(formats, writers, strict=True)}


def _fashion_mnist_folder() -> Path:
    found = fashion_mnist.find_fashion_mnist()
    if found.folder is None:
        raise CBAMError(
            f"the garments are Fashion-MNIST's. {' '.join(found.notices)} Type: apt-get install dataset-fashion-mnist"
        )
    return found.folder


def _backgrounds() -> list[NDArray[np.uint8]]:
    try:
        from skimage import data
    except ImportError as error:
        raise CBAMError(
            "the backgrounds are scikit-image's photographs, and it is not installed. Type: pip install scikit-image"
        ) from error

    def read(name: str) -> NDArray[np.uint8]:
        pixels: Any = getattr(data, name)()
        pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # the left one of a stereo pair
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]

    return [read(name) for name in (*PHOTOGRAPHS, *TEXTURES)]


def _scene(materials: _Materials, rng: np.random.Generator, size: int, most_objects: int) -> Scene:
    width, height = ((size, size), (size, size * 3 // 4), (size * 3 // 4, size))[rng.integers(3)]
    pixels = _background(materials.backgrounds, rng, width, height)
    masks: list[NDArray[np.bool_]] = []
    needed: list[float] = []  # of each mask, pixels that must stay visible
    labels: list[int] = []
    count = 0 if rng.random() < _EMPTY else int(rng.integers(1, most_objects + 1))
    for _ in range(count):
        label = int(rng.integers(len(materials.garments)))
        garment = materials.garments[label][rng.integers(len(materials.garments[label]))]
        colour, alpha = _coloured(garment, rng, min(width, height))
        placed = _place(alpha > 0.5, masks, needed, (height, width), rng)
        if placed is None:
            continue
        top, left = placed
        rows, columns = slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1])
        part = pixels[rows, columns]
        pixels[rows, columns] = part + (colour - part) * alpha[..., None]
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[rows, columns] = alpha > 0.5
        masks = [*(below & ~mask for below in masks), mask]
        needed.append(_LEAST_VISIBLE * mask.sum())
        labels.append(label)
    return Scene(np.rint(pixels).clip(0, 255).astype(np.uint8), tuple(masks), tuple(labels))


def _background(
    backgrounds: list[NDArray[np.uint8]], rng: np.random.Generator, width: int, height: int
) -> NDArray[np.float32]:
    source = backgrounds[rng.integers(len(backgrounds))]
    most = min(source.shape[1] / width, source.shape[0] / height)
    scale = rng.uniform(min(1.0, most), min(most, 4.0))
    cut_width, cut_height = int(width * scale), int(height * scale)
    left = int(rng.integers(source.shape[1] - cut_width + 1))
    top = int(rng.integers(source.shape[0] - cut_height + 1))
    cut = PILImage.fromarray(source[top : top + cut_height, left : left + cut_width])
    pixels = np.asarray(cut.resize((width, height), PILImage.Resampling.BILINEAR), dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels * np.float32(rng.uniform(0.6, 1.1))


def _coloured(
    garment: NDArray[np.uint8], rng: np.random.Generator, side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a garment scaled to a share of `side`, (h, w, 3), and how opaque each pixel is, (h, w) from 0 to 1."""
    solid = ndimage.binary_fill_holes(garment > 15)
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    cut = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    scale = rng.uniform(0.25, 0.6) * side / max(solid[cut].shape)
    to = tuple(max(4, round(length * scale)) for length in reversed(solid[cut].shape))

    def scaled(values: NDArray[Any]) -> NDArray[np.float32]:
        image = PILImage.fromarray(values.astype(np.float32))
        return np.asarray(image.resize(to, PILImage.Resampling.BICUBIC), dtype=np.float32)

    alpha = scaled(solid[cut]).clip(0, 1)
    tint = rng.uniform(0.35, 1.0, size=3).astype(np.float32)
    grey = 40 + scaled(garment[cut]) * np.float32(215 / 255)  # dark cloth still differs from a shadow
    return grey[..., None] * (tint / tint.max()), alpha


def _place(
    shape: NDArray[np.bool_],
    masks: Sequence[NDArray[np.bool_]],
    needed: Sequence[float],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Return (top, left) at which a new object leaves what is needed of every earlier one visible, None if none."""
    for _ in range(_TRIES):
        top = int(rng.integers(size[0] - shape.shape[0] + 1))
        left = int(rng.integers(size[1] - shape.shape[1] + 1))
        window = slice(top, top + shape.shape[0]), slice(left, left + shape.shape[1])
        if all(
            mask.sum() - (mask[window] & shape).sum() >= pixels
            for mask, pixels in zip(masks, needed, strict=True)
        ):
            return top, left
    return None


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    stream = BytesIO()
    PILImage.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()
