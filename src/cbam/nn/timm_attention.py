"""The attention modules of timm's factory as kinds: "timm:se", "timm:gc", ... where timm is installed."""

from __future__ import annotations

from functools import cache

from cbam.errors import MissingExtra, unknown_name
from cbam.nn.kind import AttentionKind, Builder, builder_options
from cbam.nn.registry import Library, add_library


def find_kind(name: str) -> AttentionKind:
    """Return the kind "timm:NAME".

    Raises:
        CBAMError: timm's factory does not know the name.
        MissingExtra: timm is not installed.

    >>> find_kind("gc").name
    'timm:gc'
    """
    builder = _builder(name)
    if builder is None:
        raise unknown_name("timm attention", name, timm_names())
    options = builder_options(builder)
    return AttentionKind(f"timm:{name}", builder, options, label=f"timm {name}", title=f"timm's {name}")


@cache
def timm_names() -> list[str]:
    """Return the names that timm's factory knows, in its own order; none without timm.

    >>> timm_names()[:3]
    ['se', 'ese', 'eca']
    """
    try:
        from timm.layers import get_attn
    except ImportError:
        return []
    # timm has no list of them, only a function with a branch for each: its constants hold the names.
    words = [word for word in get_attn.__code__.co_consts if isinstance(word, str) and word.isidentifier()]
    return [word for word in dict.fromkeys(words) if _builder(word) is not None]


def _builder(name: str) -> Builder | None:
    try:
        from timm.layers import get_attn
    except ImportError:
        raise MissingExtra(f"attention 'timm:{name}'", "train", "timm") from None
    try:
        return get_attn(name) if name == name.lower() and name else None
    except AssertionError:  # what it raises for a name that it does not know
        return None


add_library("timm", Library(find_kind, timm_names))
