"""Read the options of a command: the fields of a dataclass, whose help is the text below each field."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import tyro

from cbam.errors import CBAMError

Form = TypeVar("Form")


def read_options(
    form: type[Form], command: str, description: str, arguments: Sequence[str], default: Form | None = None
) -> Form:
    """Return the options; exits with code 2 and an explanation if they are wrong.

    Args:
        form: A dataclass; the options of a dataclass inside it have no prefix.
        command: Such as "cbam plan".
        description: For its help.
        arguments: What follows the command.
        default: Values of options that are not given; by default those of the form.
    """
    _join_help_lines(form)
    if {"-h", "--help"} & set(arguments):  # what has to be typed stands first
        command = " ".join([command, *_required(form)])
    more: dict[str, Any] = {} if default is None else {"default": default}
    flat: Any = Annotated[form, tyro.conf.OmitArgPrefixes]
    try:
        with _own_words(form):
            found: Form = tyro.cli(
                flat, prog=command, description=_wrapped(description), args=list(arguments), **more
            )
    except _Refused as refused:
        print(f"cbam: {refused}", file=sys.stderr)
        raise SystemExit(2) from None
    return found


class _Refused(Exception):
    """An option outside its range; no `ValueError`, to whose message tyro would add the name of our class."""


@contextmanager
def _own_words(form: Any) -> Iterator[None]:
    """Let the errors of a dataclass and of those inside it reach the user in their own words."""
    found = (form, *(item.default_factory for item in dataclasses.fields(form)))
    forms: list[Any] = [each for each in found if dataclasses.is_dataclass(each)]
    before = {each: each.__init__ for each in forms}

    def guarded(init: Any) -> Any:
        @functools.wraps(init)
        def checked(self: Any, *args: Any, **given: Any) -> None:
            try:
                init(self, *args, **given)
            except CBAMError as error:
                raise _Refused(str(error)) from error

        return checked

    for each, init in before.items():
        each.__init__ = guarded(init)
    try:
        yield
    finally:
        for each, init in before.items():
            each.__init__ = init


def first_word_is(option: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the option's name in front, if the first one is a bare word.

    >>> first_word_is("model", ["resnet18", "--sites", "conv"])
    ['--model', 'resnet18', '--sites', 'conv']
    """
    bare = arguments and not arguments[0].startswith("-")
    return [f"--{option}", *arguments] if bare else list(arguments)


def _required(form: Any) -> Iterator[str]:
    """Yield the options without a default, as a usage line shows them; positional ones are shown anyway."""
    for item in dataclasses.fields(form):
        missing = item.default is item.default_factory is dataclasses.MISSING
        if missing and "Positional" not in str(item.type):
            yield f"--{item.name.replace('_', '-')} {item.name.upper()}"


def _wrapped(description: str) -> str:
    """Fill the paragraphs to the terminal's width; those with an indented line keep their lines.

    Lines after the first are indented: tyro would join them to the line before otherwise. Long examples are broken as
    a shell allows it, so that they can be copied.
    """
    width = shutil.get_terminal_size().columns
    filled = []
    for text in description.split("\n\n"):
        if text.startswith("Example"):
            lines = re.split(r"\n(?= )", text)
            filled.append("\n".join(_broken(line.replace("\n", " "), width) for line in lines))
        else:
            keep = "\n " in text
            filled.append(
                text if keep else textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False)
            )
    return "\n\n".join(filled)


def _broken(line: str, width: int) -> str:
    """Break a line of an example in front of an option or a word, with a backslash at its end.

    >>> print(_broken("Example: cbam train --data fashion-mnist --epochs 10", 40))
    Example: cbam train \\
        --data fashion-mnist --epochs 10
    """
    more = " " * (len(line) - len(line.lstrip()) + 4)
    whole = re.sub(r"(?<= )(--\S+) (?!-)", "\\1\0", line)  # an option stays with its value
    parts = textwrap.wrap(
        whole, width - 2, subsequent_indent=more, break_on_hyphens=False, break_long_words=False
    )
    return " \\\n".join(parts).replace("\0", " ")


def _join_help_lines(form: Any) -> None:
    """Give each option its help as one line: tyro keeps the line breaks of the source, and so prints ragged lines."""
    texts = dict(itertools.chain.from_iterable(_texts(each) for each in reversed(form.__mro__)))
    for item in dataclasses.fields(form):
        if dataclasses.is_dataclass(item.default_factory):
            _join_help_lines(item.default_factory)
        if item.name in texts:
            item.metadata = MappingProxyType({**item.metadata, "help": texts[item.name]})


def _texts(form: type) -> Iterator[tuple[str, str]]:
    """Yield name and text of every field that a dataclass itself defines."""
    if not dataclasses.is_dataclass(form):
        return
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(form))).body
    assert isinstance(definition, ast.ClassDef)
    for field, text in itertools.pairwise(definition.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as help)):
                yield name, " ".join(help.split())
