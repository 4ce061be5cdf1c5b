"""Find the training and validation shards: in folders, at URLs, by brace ranges and file patterns."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from cbam.data.scan import some
from cbam.data.shards.storage import filesystem, is_remote, local_path, reason_of
from cbam.errors import CBAMError
from cbam.files import checked_path

_MOST_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SIDES = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


@dataclass(frozen=True)
class ShardNames:
    """The shards of both sides, relative to `base`, with slashes; `val` is empty if the training side is split."""

    base: str
    train: tuple[str, ...]
    val: tuple[str, ...]

    def location(self, name: str) -> str:
        """Return the path or URL of one shard."""
        return f"{self.base.rstrip('/')}/{name}"


def expand_braces(pattern: str) -> list[str]:
    """Expand a pattern with the shell's brace ranges and lists.

    Raises:
        CBAMError: a range that runs backwards, or more than a million names.

    >>> expand_braces("train-{008..010}.tar")
    ['train-008.tar', 'train-009.tar', 'train-010.tar']
    >>> expand_braces("{a,b}-{0..1}")
    ['a-0', 'a-1', 'b-0', 'b-1']
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    options = found[1].split(",")
    if span := _RANGE.fullmatch(found[1]):
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < _MOST_SHARDS:
            raise CBAMError(
                f"the range {{{found[1]}}} must run upward, over at most {_MOST_SHARDS:,} numbers."
            )
        options = [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]
    rests = expand_braces(pattern[found.end() :])
    if len(options) * len(rests) > _MOST_SHARDS:
        raise CBAMError(f"{pattern!r} expands to more than {_MOST_SHARDS:,} files.")
    return [pattern[: found.start()] + option + rest for option in options for rest in rests]


def find_shards(location: str, train: str | None = None, val: str | None = None) -> ShardNames:
    """Find the shards at a folder, URL or pattern.

    Args:
        location: a folder (by path or URL) whose .tar files have train and val in their names or folders, or a pattern
            with brace ranges or *, which selects the training shards.
        train: a pattern below the folder that selects the training shards.
        val: likewise for validation.

    Raises:
        CBAMError: no file, no training shards, or a shard on both sides.
    """
    base, pattern = (location, None)
    if location.endswith(".tar") or _BRACES.search(location) or "*" in location:
        head = re.split(r"[{*]", location)[0]
        base = head.rpartition("/")[0] or ("/" if head.startswith("/") else ".")
        pattern = location.removeprefix(base).lstrip("/") if base != "." else location.removeprefix("./")
    train = train or pattern
    listed: list[str] = []
    if any(one is None or "*" in one for one in (train, val)):
        listed = _list_tars(base, required=train is None or "*" in train)
    sides = {
        "train": _matching(listed, train, base) if train else _named(listed, "train"),
        "val": _matching(listed, val, base) if val else _named(listed, "val"),
    }
    both = set(sides["train"]) & set(sides["val"])
    if both and val:
        raise CBAMError(
            f"{len(both):,} shards would train and validate: {some(sorted(both))}. Use patterns that do not overlap."
        )
    sides["val"] = [name for name in sides["val"] if name not in both]
    if not sides["train"]:
        raise CBAMError(
            f"no training shards at {base}: expected names such as train-000000.tar, "
            f"found {some(listed) or 'no .tar'}. "
            "Or name them: --data 'shards:FOLDER?train=a-{000..099}.tar&val=b-{00..09}.tar'"
        )
    return ShardNames(base, tuple(sides["train"]), tuple(sides["val"]))


def _matching(listed: list[str], pattern: str, base: str) -> list[str]:
    names: list[str] = []
    for one in expand_braces(pattern):
        found = fnmatch.filter(listed, one) if "*" in one else [one]
        if not found:
            raise CBAMError(f"no file at {base} matches {one!r}; found {some(listed) or 'no .tar files'}.")
        names += found
    if bad := [name for name in names if name.startswith("/") or ".." in name.split("/")]:
        raise CBAMError(f"shard names must be relative to {base}, without '..'; given {some(bad)}.")
    return list(dict.fromkeys(names))


def _named(listed: list[str], side: str) -> list[str]:
    for word in _SIDES[side]:
        if found := [name for name in listed if word in re.split(r"[^a-z]+", name.lower())]:
            return found
    return []


def _list_tars(base: str, *, required: bool) -> list[str]:
    if is_remote(base):
        return _list_remote(base, required=required)
    folder = checked_path(local_path(base))
    if not folder.is_dir():
        raise CBAMError(f"there is no folder {base!r}. Give the folder that holds the shards.")
    found = [*folder.glob("*.tar"), *folder.glob("*/*.tar")]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _list_remote(base: str, *, required: bool) -> list[str]:
    files = filesystem(base)
    root = files._strip_protocol(base).rstrip("/")
    try:
        found = files.find(base, maxdepth=2)
        if not found:  # it leaves out folders that cannot be read, also the first one
            files.ls(base)
    except Exception as error:  # every protocol has its own errors
        if not required:
            return []
        raise CBAMError(
            f"{base} cannot be listed ({reason_of(error)}). Name the shards: "
            "--data 'shards:URL/train-{0000..0099}.tar?val=val-{00..09}.tar'"
        ) from error
    return sorted(name.removeprefix(root).lstrip("/") for name in found if name.endswith(".tar"))
