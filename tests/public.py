"""What others may rely on: public names with their parameters, and the options of every command.

`python -m tests.public > tests/public.txt` writes the list again; its change is then part of the review.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import tyro

import cbam
from cbam.cli import detect
from cbam.cli.main import COMMANDS, main

INNER = ("cbam.cli", "cbam.page", "cbam.__main__", "cbam.ops", "cbam.runs", "cbam.demo")


class Found(BaseException):
    """Carries the form of a command's options."""

    def __init__(self, form: Any, default: Any):
        super().__init__()
        self.form, self.default = form, default


def names() -> Iterator[str]:
    """Yield every name in an `__all__`, with the parameters of functions and classes."""
    modules = [m.name for m in pkgutil.walk_packages(cbam.__path__, "cbam.") if not m.name.startswith(INNER)]
    for name in ["cbam", *sorted(name for name in modules if "._" not in name)]:
        module = importlib.import_module(name)
        for public in sorted(getattr(module, "__all__", ())):
            yield f"{name}.{public}{parameters(getattr(module, public))}"


def parameters(thing: Any) -> str:
    """Return the parameters as they may be given; nothing for what is not called."""
    if not callable(thing):
        return ""
    try:
        found = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return "(...)"
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    shown, keyword = [], False
    for parameter in found:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            shown.append("*")
        keyword = keyword or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        needed = "" if parameter.default is parameter.empty else "="
        shown.append(f"{marks.get(parameter.kind, '')}{parameter.name}{needed}")
    return f"({', '.join(shown)})"


def options(command: list[str]) -> list[str]:
    """Return the options of a command as its parser knows them."""

    def catch(form: Any, default: Any = None, **_: Any) -> None:
        raise Found(form, default)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", catch)
        try:
            main([*command, "--help"])
        except Found as found:
            default = {} if found.default is None else {"default": found.default}
            parser = tyro.extras.get_parser(found.form, **default)
            return sorted(
                {o for action in parser._actions for o in action.option_strings if o.startswith("--")}
            )
    return []


def flags() -> Iterator[str]:
    """Yield every command with its options."""
    commands = [[name] for name in COMMANDS if name not in ("detect", "doctor")]
    commands += [["detect", name] for name in detect.VERBS]
    for command in commands:
        yield " ".join(["cbam", *command, *(o for o in options(command) if o not in ("--help",))])
    yield "cbam doctor"


def lines() -> list[str]:
    """Return the list."""
    with contextlib.redirect_stdout(None):
        return [*names(), *sorted(flags())]


if __name__ == "__main__":
    sys.stdout.write("\n".join([*lines(), ""]))
