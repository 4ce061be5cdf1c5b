"""Import the user's own modules: `--import my_package.my_gate`, `--model my_package.my_net:build`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from cbam.errors import CBAMError


def import_modules(given: Iterable[str]) -> None:
    """Import modules by name for what they register, those in the current folder among them.

    Args:
        given: names, also several with commas.

    Raises:
        CBAMError: there is no such module, or its code fails.

    >>> import_modules(["json,math"])
    """
    for name in (name.strip() for text in given for name in text.split(",") if name.strip()):
        import_module(name, f"--import {name}")


def import_module(name: str, typed: str) -> ModuleType:
    """Return a module by name, also one in the current folder.

    Args:
        name: as in Python.
        typed: the option that names it, for the messages.

    Raises:
        CBAMError: there is no such module, or its code fails.

    >>> import_module("json", "--import json").__name__
    'json'
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # `python -m cbam` has it there, the command `cbam` has not
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise CBAMError(f"{typed} needs the package {error.name!r}, which is not installed.") from error
        as_name = name.removesuffix(".py").replace("/", ".").strip(".") or "my_package.my_module"
        like = "my_package.my_module" if as_name == name else as_name
        raise CBAMError(
            f"{typed}: no module {error.name!r} is installed or in {here}. Give a name as in Python,"
            f" such as {like} for {like.replace('.', '/')}.py."
        ) from error
    except Exception as error:  # of the user's own code
        raise CBAMError(f"{typed} failed ({type(error).__name__}: {error}).") from error
