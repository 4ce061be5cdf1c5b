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
        picture = opened.convert("RGB")
    small = max(picture.size) <= _SMALL_SIDE
    stream = io.BytesIO()
    if small:
        picture.save(stream, "PNG", optimize=True)
    else:
        picture.thumbnail((largest, largest))
        picture.save(stream, "WEBP", quality=84)
    data = base64.b64encode(stream.getvalue()).decode()
    return {"uri": f"data:image/{'png' if small else 'webp'};base64,{data}", "pixelated": small}


def shell_lines(command: Sequence[str]) -> str:
    """Write a command for a shell, one option per line."""
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("--") and lines[0]:
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines)
