"""Open untrusted image files: restricted formats, a limit on pixels, one conversion to RGB."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from cbam.errors import CBAMError

# The usual formats of photographs; every other Pillow plugin is one more parser exposed to hostile files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
DEFAULT_MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte at three bytes a pixel
MOST_PIXELS = 2 * DEFAULT_MAX_PIXELS  # Pillow refuses more
MAX_ELONGATION = 100  # resizing the short side of a 1 x 1,000,000 image would fill the memory

_PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # whose conversion to RGB cannot fail
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}


class BadImage(CBAMError):
    """A file that cannot be used as an image: the `kind` of problem, by which messages group it, and a `detail`."""

    def __init__(self, path: Path | str, kind: str, detail: str):
        super().__init__(f"{path}: {kind} ({detail})")
        self.kind = kind
        self.detail = detail


def open_image(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> PILImage.Image:
    """Return the image in `path` upright, in RGB, with transparent parts on white.

    16-bit grey values keep their upper 8 bits; of an animation the first frame is taken.

    Raises:
        BadImage: the file is missing, no image of a known format, truncated, or larger than `max_pixels`.
    """
    _require_file(path)
    with _header(path, path, max_pixels) as image:
        return upright_rgb(image, path)


def decode_image(content: bytes, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> PILImage.Image:
    """Return the image in `content` like `open_image`; `name` is for errors.

    Raises:
        BadImage: no image of a known format, truncated, or larger than `max_pixels`.

    >>> decode_image(b"", "cat.jpg")
    Traceback (most recent call last):
    cbam.data.pictures.BadImage: cat.jpg: empty file (0 bytes)
    """
    if not content:
        raise BadImage(name, "empty file", "0 bytes")
    with _header(BytesIO(content), name, max_pixels) as image:
        return upright_rgb(image, name)


def check_image(source: Path | bytes, max_pixels: int = DEFAULT_MAX_PIXELS, name: str = "") -> None:
    """Decode the image in a file or in bytes like `open_image`, but faster if the format allows it.

    Raises:
        BadImage: `open_image` or `decode_image` would fail; `name` is what it calls bytes.
    """
    path: Path | str = name
    if isinstance(source, Path):
        path = source
        _require_file(source)
    elif not source:
        raise BadImage(name, "empty file", "0 bytes")
    with _header(BytesIO(source) if isinstance(source, bytes) else source, path, max_pixels) as image:
        _decode_small(image, path)


def image_size(path: Path, *, upright: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Return (width, height) of the image in `path`, from its header where the format allows it.

    Args:
        path: the file.
        upright: as its EXIF data turn it; otherwise as it is stored.
        max_pixels: of a larger image nothing is read.

    Raises:
        BadImage: the file is missing, no image of a known format, or larger than `max_pixels`.
    """
    _require_file(path)
    with _header(path, path, max_pixels) as image:
        width, height = image.size
        return (height, width) if upright and _orientation(image) >= 5 else (width, height)


def open_annotated(
    path: Path, size: tuple[int, int], *, upright: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS
) -> PILImage.Image:
    """Return the image in `path` in RGB, turned as it was when it was annotated.

    Args:
        path: the file.
        size: (width, height) that the annotations give. COCO's are of images as they are stored, other tools' of images
            as they are shown: an image that has this size as it is stored stays so, another is turned by its EXIF data.
        upright: turn it in any case.
        max_pixels: a larger image is refused.

    Raises:
        BadImage: see `open_image`; or the image has another size.
    """
    _require_file(path)
    with _header(path, path, max_pixels) as image:
        as_stored = _annotated_as_stored(image, path, size, upright)
        return upright_rgb(image, path, turn=not as_stored)


def check_annotated(
    path: Path, size: tuple[int, int], *, upright: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS
) -> None:
    """Decode the image in `path` like `open_annotated`, but faster if the format allows it.

    Raises:
        BadImage: `open_annotated` would fail.
    """
    _require_file(path)
    with _header(path, path, max_pixels) as image:
        _annotated_as_stored(image, path, size, upright)
        _decode_small(image, path)


def _annotated_as_stored(image: PILImage.Image, path: Path, size: tuple[int, int], upright: bool) -> bool:
    if image.size == size and not upright:
        return True
    width, height = image.size
    shown = (height, width) if _orientation(image) >= 5 else (width, height)
    if shown != size:
        raise BadImage(
            path, "another size than annotated", f"{shown[0]} x {shown[1]}, annotated {size[0]} x {size[1]}"
        )
    return False


def _decode_small(image: PILImage.Image, path: Path | str) -> None:
    # Decoding a JPEG at an eighth of its size reads the whole file with a fraction of the arithmetic.
    image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
    _decode(image, path)
    if image.mode not in _PLAIN_MODES:
        _to_rgb(image, path)


def upright_rgb(image: PILImage.Image, path: Path | str, *, turn: bool = True) -> PILImage.Image:
    """Return an opened image like `open_image`; `path` is for errors, `turn` whether its EXIF data turn it.

    Raises:
        BadImage: its pixels cannot be decoded or shown.

    >>> upright_rgb(PILImage.new("L", (4, 3)), "grey").mode
    'RGB'
    """
    _decode(image, path)
    turned = _UPRIGHT.get(_orientation(image)) if turn else None
    return _to_rgb(image if turned is None else image.transpose(turned), path)


def _require_file(path: Path) -> None:
    if not path.exists():
        raise BadImage(path, "broken link" if path.is_symlink() else "missing file", "nothing is there")
    if not path.is_file():
        raise BadImage(path, "not a regular file", "a folder, pipe or device")
    if path.stat().st_size == 0:
        raise BadImage(path, "empty file", "0 bytes")


def _header(source: Path | IO[bytes], path: Path | str, max_pixels: int) -> PILImage.Image:
    try:
        image = PILImage.open(source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(path, "not a readable image", f"none of {', '.join(FORMATS)}") from error
    except PILImage.DecompressionBombError as error:
        raise BadImage(path, "too many pixels", f"more than {MOST_PIXELS:,}") from error
    except Exception as error:  # a broken header makes Pillow's parsers raise errors of any type
        # ultralytics puts a function in the place of Pillow's that then asks for a package.
        unknown = isinstance(error.__context__, UnidentifiedImageError)
        why = f"none of {', '.join(FORMATS)}" if unknown else str(error) or type(error).__name__
        raise BadImage(path, "not a readable image", why) from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise BadImage(path, "too many pixels", f"{width} x {height} is more than {max_pixels:,}")
    if max(width, height) > MAX_ELONGATION * min(width, height):
        image.close()
        raise BadImage(path, "too long and thin", f"{width} x {height}")
    return image


def _decode(image: PILImage.Image, path: Path | str) -> None:
    try:
        image.load()
    except (
        Exception
    ) as error:  # as above: OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError ...
        raise BadImage(path, "truncated or damaged", str(error) or type(error).__name__) from error


def _orientation(image: PILImage.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # an image with damaged EXIF data is still usable
        return 1


def _to_rgb(image: PILImage.Image, path: Path | str) -> PILImage.Image:
    if image.mode == "F":
        raise BadImage(path, "unknown brightness scale", "floating-point pixels")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise BadImage(path, "unknown brightness scale", "32-bit pixels outside 0..65535")
        return PILImage.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            return PILImage.alpha_composite(PILImage.new("RGBA", layer.size, "white"), layer).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise BadImage(path, "unknown kind of pixels", image.mode) from error
