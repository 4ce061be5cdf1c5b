"""Options after the name of a data set, as in `hf:beans?image=img&val=test`."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import unquote_plus

from cbam.errors import CBAMError, unknown_name


def split_options(text: str, known: Collection[str], *, url: bool = False) -> tuple[str, dict[str, str]]:
    """Split `text` at its last question mark into a name and options.

    Args:
        text: what the user typed.
        known: the names of the options.
        url: a query without any known name belongs to the URL itself, such as a signature.

    Raises:
        CBAMError: an unknown option, one given twice, or one without a value.

    >>> split_options("beans?image=img&val=test", ("image", "val"))
    ('beans', {'image': 'img', 'val': 'test'})
    >>> split_options("https://host/a.tar?sig=3", ("val",), url=True)
    ('https://host/a.tar?sig=3', {})
    """
    rest, mark, query = text.rpartition("?")
    if not mark:
        return text, {}
    pairs = [part.partition("=") for part in query.split("&") if part]
    if url and not any(name in known for name, _, _ in pairs):
        return text, {}
    options: dict[str, str] = {}
    for name, _, value in pairs:
        if name not in known:
            raise unknown_name("option", name, known)
        if name in options or not value:
            raise CBAMError(
                f"the option {name!r} in {text!r} {'is given twice' if value else 'has no value'}. "
                f"Type for example: {rest}?{name}=..."
            )
        options[name] = unquote_plus(value)
    return rest, options
