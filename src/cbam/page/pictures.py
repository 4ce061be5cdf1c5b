"""Pictures inside a page, and commands as a reader would type them."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

_LARGEST_SIDE = 224
_SMALL_SIDE = 64


def embedded(file: Path, largest: int = _LARGEST_SIDE) -> Mapping[str, Any] | None:
    """Return a picture as a data URI; small ones lossless, so that their pixels stay sharp. None: no such file.

    Args:
        file: any picture that Pillow reads.
        largest: longer side in the page, in pixels.
    """
    if not file.is_file():
        return None
    with Image.open(file) as opened:
        return embedded_picture(opened, largest)


def embedded_picture(picture: Image.Image, largest: int = _LARGEST_SIDE) -> Mapping[str, Any]:
    """Return a picture that is open as `embedded` does one in a file."""
    picture = picture.convert("RGB")
    small = max(picture.size) <= _SMALL_SIDE
    if not small:
        picture.thumbnail((largest, largest))
    return {"uri": png_uri(picture) if small else _uri(picture, "webp", quality=84), "pixelated": small}


def png_uri(picture: Image.Image) -> str:
    """Return a picture as a data URI, without loss.

    >>> png_uri(Image.new("RGB", (1, 1)))[:26]
    'data:image/png;base64,iVBO'
    """
    return _uri(picture, "png")


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def shell_lines(command: Sequence[str]) -> str:
    """Write a command for a shell, one option per line."""
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("--") and lines[0]:
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines)
