"""The kinds of attention by name.

`register_attention` adds one. `cbam.attach`, saved models, the model card, `cbam compare` and the other commands look
names up here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from cbam.errors import CBAMError, unknown_name
from cbam.nn.base import AttentionModule
from cbam.nn.foreign import ForeignAttention
from cbam.nn.kind import AttentionKind, Builder, builder_options

_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
_RESERVED = ("none", "control")  # variants of `cbam compare` that are not kinds


class Library(NamedTuple):
    """Kinds from another library, named "LIBRARY:NAME".

    Args:
        find: NAME -> kind; raises `CBAMError` for an unknown name or a library that is not installed.
        names: function () -> names, empty where the library is not installed.
    """

    find: Callable[[str], AttentionKind]
    names: Callable[[], list[str]]


_KINDS: dict[str, AttentionKind] = {}
_LIBRARIES: dict[str, Library] = {}


def register_attention(
    name: str,
    builder: Builder | None = None,
    *,
    label: str = "",
    title: str = "",
    citation: str = "",
    identity: Callable[[Any], object] | None = None,
    gates: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Make a kind of attention known by name: to `cbam.attach`, to saved models and to the command line.

    Call it with a class or a function, or put it above one as a decorator. The builder takes the number of channels
    first, and returns a `torch.nn.Module` that turns a map (N, C, H, W) into one of the same shape and dtype. A
    parameter `dims` gets 1 for maps (N, C, L), 2, or 3 for (N, C, D, H, W). Its further parameters become options of
    `cbam.attach`; give them values that JSON can hold, so that a saved model can be built again.

    Args:
        name: lower-case letters, digits and underscores, such as "my_gate".
        builder: class or function (channels, **options) -> module.
        label: in tables and plots; by default the name.
        title: on a model card; by default the label.
        citation: a BibTeX entry for the model card.
        identity: function (module) that changes a new module so that it returns its input; by default its method
            `set_identity`, if it has one.
        gates: function (module, map) -> the factors of each channel, (N, C) or (N, C, 1, 1), or of each location,
            (N, 1, H, W), or both as a tuple, for `cbam.attention_maps` and `cbam explain`. It runs beside the
            forward pass and must change nothing.

    Returns:
        The builder, unchanged.

    Raises:
        CBAMError: a name that is taken or not of this form.

    >>> @register_attention("scale_only", label="Scale")
    ... class ScaleOnly(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.scale = nn.Parameter(torch.ones(channels, 1, 1))
    ...     def forward(self, x):
    ...         return x * self.scale
    >>> attention_kind("scale_only").label
    'Scale'
    """
    if builder is None:
        return lambda given: register_attention(
            name, given, label=label, title=title, citation=citation, identity=identity, gates=gates
        )
    _check_name(name)
    _check_builder(builder)
    if name in _KINDS and not _is_same(_KINDS[name].builder, builder):
        raise CBAMError(f"attention {name!r} is registered already, for {_shown(_KINDS[name].builder)}.")
    add_kind(
        AttentionKind(
            name, builder, builder_options(builder), label=label or name, title=title or label or name,
            citation=citation, identity=identity, gates=gates,
        )
    )  # fmt: skip
    return builder


def add_kind(kind: AttentionKind) -> None:
    """Register a kind with more fields than `register_attention` has."""
    _KINDS[kind.name] = kind


def add_library(name: str, library: Library) -> None:
    """Register a library of kinds."""
    _LIBRARIES[name] = library


def kind_names() -> tuple[str, ...]:
    """Return the names of all registered kinds, those of libraries left out."""
    return tuple(_KINDS)


def kinds_with(option: str) -> tuple[str, ...]:
    """Return the names of the registered kinds on which an option has an effect.

    >>> kinds_with("kernel_size")[:2]
    ('cbam', 'spatial')
    """
    return tuple(name for name, kind in _KINDS.items() if option in kind.options)


def library_of(name: str) -> str | None:
    """Return the library that a name such as "timm:gc" begins with; None if it names none."""
    library, colon, _ = name.partition(":")
    return library if colon and library in _LIBRARIES else None


def attention_kind(given: str | Builder) -> AttentionKind:
    """Return the kind for a name, or for a class or function channels -> module.

    Raises:
        CBAMError: an unknown name, or something else.

    >>> attention_kind("se").title
    'Squeeze-and-excitation'
    >>> attention_kind(nn.BatchNorm2d).name
    'BatchNorm2d'
    """
    if isinstance(given, str):
        library = library_of(given)
        if library is not None:
            return _LIBRARIES[library].find(given.partition(":")[2])
        if given in _KINDS:
            return _KINDS[given]
        raise unknown_name("attention", given, [*_KINDS, *(f"{name}:NAME" for name in _LIBRARIES)])
    if isinstance(given, nn.Module):
        raise CBAMError(
            f"attention expects a name, a class or a function channels -> torch.nn.Module, given a"
            f" {type(given).__name__} itself: every site needs one of its own. Write: lambda channels: ..."
        )
    _check_builder(given)
    for kind in _KINDS.values():
        if given in (kind.builder, kind.module_type):
            return kind
    name = _shown(given).rpartition(".")[2]
    return AttentionKind(name, given, builder_options(given), label=name, title=name)


def check_options(kind: AttentionKind, options: Mapping[str, Any], also: Sequence[str] = ()) -> None:
    """Refuse options that a kind does not have, or, where no map is needed to see that, wrong values.

    Args:
        kind: of the attention.
        options: by name.
        also: further names that are valid where these were written, for the message.

    Raises:
        CBAMError: names the nearest option, or the kinds that have one of that name.

    >>> check_options(attention_kind("eca"), {"reduction_ratio": 8})
    Traceback (most recent call last):
    cbam.errors.CBAMError: eca has no option 'reduction_ratio'; cbam, se, channel have. Leave it out, or use \
attention='cbam'.
    """
    for option in options:
        if not kind.takes(option):
            raise no_such_option(kind, option, also)
    if kind.has_operator:
        kind.build(16, options, device="meta")


def no_such_option(kind: AttentionKind, option: str, also: Sequence[str] = ()) -> CBAMError:
    """Return the error for an option that a kind does not have; see `check_options`."""
    if option == "dims":
        return CBAMError(f"dims of {kind.name} follows from the map at each site. Leave it out.")
    others = kinds_with(option)
    if others:
        have = f"{', '.join(others)} {'has' if len(others) == 1 else 'have'}"
        return CBAMError(
            f"{kind.name} has no option {option!r}; {have}. Leave it out, or use attention={others[0]!r}."
        )
    if not kind.options and not also:
        return CBAMError(f"{kind.name} has no options, given {option!r}.")
    return unknown_name(f"option of {kind.name}", option, [*also, *kind.options])


def describe(block: AttentionModule) -> tuple[AttentionKind, dict[str, Any]]:
    """Return the kind of a module and the options, "dims" among them, with which `build_again` makes one like it.

    Raises:
        CBAMError: it is of no registered kind; the message says how to register it.

    >>> from cbam import SqueezeExcitation
    >>> kind, options = describe(SqueezeExcitation(32))
    >>> kind.name, options
    ('se', {'reduction_ratio': 16, 'mlp_bias': True, 'gate': 'sigmoid'})
    """
    dims = {} if block.dims == 2 else {"dims": block.dims}
    for kind in _KINDS.values():
        if kind.describe is not None and type(block) is kind.module_type:
            return kind, {**kind.describe(block), **dims}
    name, options = block.built_as or ("", {})
    options = {**options, **dims}
    if name in _KINDS or library_of(name) is not None:
        return attention_kind(name), options
    module = block.module if isinstance(block, ForeignAttention) else block
    for kind in _KINDS.values():
        if type(module) is kind.builder:  # registered after it was attached
            return kind, options
    shown = type(module).__name__
    raise CBAMError(
        f"{shown} is not a registered attention, so nothing can build it again from a file. Register the class, or the"
        f" function that builds it, and attach it by that name: cbam.register_attention('my_gate', {name or shown})"
    )


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CBAMError(
            f"a kind of attention is named by lower-case letters, digits and underscores, such as 'my_gate'; given"
            f" {name!r:.80}. Type: @cbam.register_attention('my_gate')"
        )
    if name in (*_RESERVED, *_LIBRARIES):
        raise CBAMError(f"the name {name!r} has another meaning for `cbam compare`. Choose another one.")


def _check_builder(builder: Any) -> None:
    is_module = isinstance(builder, type) and issubclass(builder, nn.Module)
    if (
        not callable(builder)
        or isinstance(builder, nn.Module)
        or (isinstance(builder, type) and not is_module)
    ):
        raise CBAMError(
            f"attention expects a name, a class or a function channels -> torch.nn.Module, given {builder!r:.80}."
        )


def _is_same(one: Builder, other: Builder) -> bool:
    """Return whether two builders come from one definition that was executed twice, as in a notebook."""
    names = [(getattr(b, "__module__", None), getattr(b, "__qualname__", "<lambda>")) for b in (one, other)]
    return one is other or (names[0] == names[1] and "<lambda>" not in names[0][1])


def _shown(builder: Any) -> str:
    inner = getattr(builder, "func", builder)  # of a functools.partial
    return f"{inner.__module__}.{inner.__qualname__}" if hasattr(inner, "__qualname__") else repr(builder)
