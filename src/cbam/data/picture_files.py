"""The image files that a user names, by themselves or by their folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbam.data.pictures import SUFFIXES
from cbam.data.scan import scan_side
from cbam.errors import CBAMError


def find_pictures(sources: Sequence[str | Path]) -> dict[Path, str]:
    """Return the image files of files and folders, each once, and a name for the drawing of each.

    Raises:
        CBAMError: a source is not there, or names no image.
    """
    found: dict[Path, str] = {}
    taken: set[str] = set()
    for source in map(Path, sources):
        if source.is_dir():
            side = scan_side(source)
            names = sorted([*side.loose, *(name for files in side.images.values() for name in files)])
            paths = {source / name: name for name in names}
        elif source.suffix.lower() in SUFFIXES:
            paths = {source: source.name}
        else:
            raise CBAMError(f"{source} is neither a folder nor an image file ({', '.join(SUFFIXES)})")
        for path, name in paths.items():
            if path not in found:
                found[path] = _free_name(name, taken)
    return found


def _free_name(name: str, taken: set[str]) -> str:
    """Return a name with .jpg for a photograph and .png otherwise; a second one of the same name gets a number."""
    stem, suffix = Path(name).with_suffix(""), Path(name).suffix.lower()
    kind = ".jpg" if suffix in (".jpg", ".jpeg") else ".png"
    chosen, number = f"{stem.as_posix()}{kind}", 1
    while chosen.lower() in taken:
        number += 1
        chosen = f"{stem.as_posix()}-{number}{kind}"
    taken.add(chosen.lower())
    return chosen
