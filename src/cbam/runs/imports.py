"""Import the user's own modules for what they register: `--import my_package.my_gate`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from cbam.errors import CBAMError


def import_modules(given: Iterable[str]) -> None:
    """Import modules by name, those in the current folder among them.

    Args:
        given: names, also several with commas.

    Raises:
        CBAMError: there is no such module, or its code fails.

    >>> import_modules(["json,math"])
    """
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    here = str(Path.cwd())
    if names and here not in sys.path:
        sys.path.append(here)  # `python -m cbam` has it there, the command `cbam` has not
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise CBAMError(
                    f"--import {name} needs the package {error.name!r}, which is not installed."
                ) from error
            raise CBAMError(
                f"--import {name}: no module {error.name!r} is installed or in {here}. Give a name as in Python,"
                " such as my_package.my_gate for my_package/my_gate.py."
            ) from error
        except Exception as error:  # of the user's own code
            raise CBAMError(f"--import {name} failed ({type(error).__name__}: {error}).") from error
