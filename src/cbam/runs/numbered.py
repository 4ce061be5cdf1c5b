"""The folder of a run that was given none: the one of the same run, or the next free number."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cbam.runs.config import RunConfig
from cbam.runs.folder import RunFolder

Options = TypeVar("Options", bound=RunConfig)


def with_folder(config: Options) -> Options:
    """Return the options with the run's folder: as given, else the first of NAME, NAME-2, ... that fits.

    The folder of the same run comes first, whatever its number, so that the same command resumes it. Otherwise it is
    one more than the last number, or NAME itself. All processes of a run find the same one: what the first process
    writes meanwhile is either the same run or nothing yet.

    Args:
        config: With fields `output` and `overwrite`.
    """
    chosen: Any = config
    if chosen.output is not None:
        return config
    base = config.folder
    taken = _taken(base)
    for path in taken.values():
        before = RunFolder(path).settings()
        if not before or not set(config.essential) <= set(before):
            continue
        if not type(config).differences(before, config.as_started(before).resolved()):
            return replace(chosen, output=path)
    if not taken or chosen.overwrite:
        return replace(chosen, output=base)
    return replace(chosen, output=base.with_name(f"{base.name}-{max(taken) + 1}"))


def _taken(base: Path) -> dict[int, Path]:
    """Return the numbered folders that hold something, in order; NAME itself has number 1."""
    found = {}
    for path in base.parent.glob(f"{base.name}*") if base.parent.is_dir() else ():
        number = re.fullmatch(r"(?:-([1-9]\d*))?", path.name.removeprefix(base.name))
        if number and (not path.is_dir() or any(item.name[0] != "." for item in path.iterdir())):
            found[int(number[1] or 1)] = path
    return dict(sorted(found.items()))
