"""Options from a YAML file, checked like those of the command line; checks and names that all runs share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cbam.documents import read_yaml
from cbam.errors import CBAMError, nearest, unknown_name

TRACKERS = ("tensorboard", "wandb")
_TYPED = {"imports": "import"}  # fields that cannot have the option's name, which is a word of Python


def with_file(arguments: Sequence[str], forms: Sequence[type]) -> list[str]:
    """Return the arguments preceded by those of the `--config` file, so that the command line wins.

    Args:
        arguments: What follows the command's name.
        forms: The dataclasses whose fields are the options.

    Raises:
        CBAMError: See `file_arguments`.
    """
    arguments = list(arguments)
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--config" and (equals or position + 1 < len(arguments)):
            file = Path(value if equals else arguments[position + 1])
            return [*file_arguments(file, forms), *arguments]
    return arguments


def file_arguments(file: Path, forms: Sequence[type]) -> list[str]:
    """Turn a YAML file into command-line arguments.

    Args:
        file: One `name: value` per line; underscores and hyphens are the same; `null` means the default.
        forms: The dataclasses whose fields are the options.

    Raises:
        CBAMError: There is no such file, it is not YAML of that form, or it names an option that does not exist.
    """
    try:
        content = read_yaml(file)
    except CBAMError as error:
        raise CBAMError(f"--config {error}") from error
    if not isinstance(content, dict):
        raise CBAMError(f"--config {file} should hold one `name: value` per line, for example `epochs: 10`")
    fields = {item.name: item for form in forms for item in dataclasses.fields(form)}
    valid = {name for name, item in fields.items() if name != "config" and not _is_part(item, forms)}
    arguments = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in valid:
            close = nearest(name, sorted(valid), count=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise CBAMError(f"--config {file}: there is no option {key!r}.{hint}")
        arguments += _as_arguments(_TYPED.get(name, name).replace("_", "-"), value, fields[name])
    return arguments


def check_ranges(*rules: tuple[str, Any, bool, str]) -> None:
    """Refuse an option outside its range.

    Args:
        rules: An option, its value, whether that is valid, and what is expected.

    Raises:
        CBAMError: A value is not valid; the first one is named.
    """
    for option, given, valid, expected in rules:
        if not valid:
            raise CBAMError(f"--{option} must be {expected}, given {given}")


def tracker_names(track: str) -> tuple[str, ...]:
    """Return the trackers that the value of `--track` names.

    Raises:
        CBAMError: There is no such tracker.

    >>> tracker_names("tensorboard, wandb")
    ('tensorboard', 'wandb')
    """
    names = tuple(name.strip() for name in track.split(",") if name.strip())
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
    return names


def folder_name(*parts: str) -> str:
    """Return the name of a run's folder, made of its options; of a data set's path or URL only the last part is used.

    >>> folder_name("shards:/data/images?window=2", "timm/resnet50", "cbam")
    'images-timm-resnet50-cbam'
    """
    data, *rest = parts
    name = Path(data.partition("?")[0]).name or "data"
    return "-".join([name, *rest]).replace("/", "-").replace(":", "-")


def absolute_data(data: str) -> str:
    """Return a data set's name with the path in it absolute, so that the same name in two folders is not the same run.

    >>> absolute_data("digits")
    'digits'
    """
    kind, colon, path = data.rpartition(":")
    there = Path(path).expanduser()
    try:
        if "//" in data or not there.exists() or (not colon and not there.is_dir()):
            return data
    except OSError:  # with patterns behind it, it may be too long for a name
        return data
    return f"{kind}{colon}{there.resolve()}"


def _is_part(item: dataclasses.Field[Any], forms: Sequence[type]) -> bool:
    return str(item.type).rpartition(".")[2] in {form.__name__ for form in forms} or item.type in forms


def _as_arguments(option: str, value: Any, item: dataclasses.Field[Any]) -> list[str]:
    if value is None or value == []:
        return []
    if str(item.type) == "bool" or item.type is bool:
        if isinstance(value, bool):
            return [f"--{option}" if value else f"--no-{option}"]
        return [f"--{option}={value}"]
    if isinstance(value, list):
        return [f"--{option}={','.join(map(str, value))}"]
    # YAML reads a bare `no` as False: `precision: no` is what people write.
    return [f"--{option}={'no' if value is False else value}"]
