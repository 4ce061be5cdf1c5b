"""The kinds of attention by name: how each is built, what it is called, and how a file describes it.

`register_attention` adds one. Everything that takes the name of a kind asks here: `cbam.attach`, saved models, the
model card, `cbam compare` and the other commands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import nn

from cbam.errors import CBAMError, unknown_name
from cbam.nn.base import AttentionModule
from cbam.nn.foreign import ForeignAttention

Builder: TypeAlias = Callable[..., nn.Module]
Given = TypeVar("Given", bound=Builder)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
_RESERVED = ("none", "control")  # variants of `cbam compare` that are not kinds
_CHANNELS = ("in_channels", "channels")
_NOT_OPTIONS = (*_CHANNELS, "device", "dtype")
_SHORT = {"preset": "preset {}", "reduction_ratio": "r={}", "kernel_size": "k={}"}


@dataclass(frozen=True)
class AttentionKind:
    """A kind of attention.

    Args:
        name: as users type it.
        builder: (channels, **options) -> module; it gets `device` and `dtype` if it has parameters of these names.
        options: the builder's keywords and their defaults.
        ignored: further keywords that the builder accepts and that change nothing, so that one call serves several
            kinds.
        shown: options that a plan always shows.
        label: in tables and plots.
        title: on a model card.
        headline: the option that the card's first sentence shows.
        citation: a BibTeX entry.
        identity: changes a built module so that it returns its input.
        describe: module -> all options with which it is built again; without it, the options given to `build` are
            saved. With it, every module of class `module_type` is of this kind.
        rebuild: a builder for what `describe` returned; by default `builder`.
        has_operator: whether the fused operator computes it.
    """

    name: str
    builder: Builder
    options: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    label: str = ""
    title: str = ""
    headline: str = ""
    citation: str = ""
    identity: Callable[[Any], object] | None = None
    module_type: type[nn.Module] | None = None
    describe: Callable[[Any], dict[str, Any]] | None = None
    rebuild: Builder | None = None
    has_operator: bool = False

    def takes(self, option: str) -> bool:
        """Return whether `build` accepts an option."""
        return option in self.options or option in self.ignored

    def check(self, options: Mapping[str, Any], also: Sequence[str] = ()) -> None:
        """Refuse options that this kind does not have, or, where no map is needed to see that, wrong values.

        Args:
            options: by name.
            also: further names that are valid where these were written, for the message.

        Raises:
            CBAMError: names the nearest option, or the kinds that have one of that name.
        """
        for option in options:
            if not self.takes(option):
                raise self._no_such_option(option, also)
        if self.has_operator:
            self.build(16, options, device="meta")

    def _no_such_option(self, option: str, also: Sequence[str]) -> CBAMError:
        others = kinds_with(option)
        if others:
            have = f"{', '.join(others)} {'has' if len(others) == 1 else 'have'}"
            return CBAMError(
                f"{self.name} has no option {option!r}; {have}. Leave it out, or take attention={others[0]!r}."
            )
        if not self.options and not also:
            return CBAMError(f"{self.name} has no options, given {option!r}.")
        return unknown_name(f"option of {self.name}", option, [*also, *self.options])

    def build(
        self,
        channels: int,
        options: Mapping[str, Any],
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> AttentionModule:
        """Return a new module for maps of `channels` channels.

        Raises:
            CBAMError: the builder fails, or returns something that is not a module.
        """
        return self._build(self.builder, channels, options, device, dtype)

    def build_again(
        self,
        channels: int,
        options: Mapping[str, Any],
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> AttentionModule:
        """Return a module from what `describe` said of one.

        Raises:
            CBAMError: as `build`; options that this kind does not have.
        """
        for option in options:
            if option not in self.options:
                raise self._no_such_option(option, ())
        return self._build(self.rebuild or self.builder, channels, options, device, dtype)

    def _build(
        self,
        builder: Builder,
        channels: int,
        options: Mapping[str, Any],
        device: Any,
        dtype: torch.dtype | None,
    ) -> AttentionModule:
        known = _parameters(builder)
        factory = {key: value for key, value in (("device", device), ("dtype", dtype)) if key in known}
        given: dict[str, Any] = {**options, **factory}
        named = next((name for name in _CHANNELS if name in known and _by_keyword(known[name])), None)
        try:
            with nullcontext() if device is None or "device" in known else torch.device(device):
                module = (
                    builder(channels, **given) if named is None else builder(**{named: channels}, **given)
                )
        except CBAMError:
            raise
        except Exception as error:  # of whoever wrote the builder
            raise CBAMError(
                f"attention {self.name!r} cannot be built for {channels} channels"
                f" ({type(error).__name__}: {error})."
            ) from error
        if not isinstance(module, nn.Module):
            raise CBAMError(
                f"attention {self.name!r} expects a class or a function channels -> torch.nn.Module; it returned"
                f" {type(module).__name__}."
            )
        if len(factory) < 2:
            module.to(device=device, dtype=dtype)
        block = module if isinstance(module, AttentionModule) else ForeignAttention(module, channels)
        if block.in_channels is None:
            block.in_channels = channels
        if not self.has_operator:
            block.built_as = (self.name, dict(options))
        return block

    def set_identity(self, block: AttentionModule) -> None:
        """Let a built module return its input where that is possible; elsewhere leave it as it is."""
        module: Any = block.module if isinstance(block, ForeignAttention) else block
        if self.identity is not None:
            self.identity(module)
        elif callable(getattr(module, "set_identity", None)):
            try:
                module.set_identity()
            except NotImplementedError:  # of AttentionModule itself
                return

    def description(self, options: Mapping[str, Any]) -> str:
        """Return kind and options in short, such as "cbam (preset paper, r=16, k=7)"."""
        values = {name: self.options[name] for name in self.shown} | {
            name: value for name, value in options.items() if name not in self.ignored
        }
        parts = [
            _SHORT.get(name, f"{name}={{}}").format(value if _is_plain(value) else "custom")
            for name, value in values.items()
        ]
        return f"{self.name} ({', '.join(parts)})" if parts else self.name


class Library(NamedTuple):
    """Kinds that a library of others builds, named "LIBRARY:NAME".

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
) -> Any:
    """Make a kind of attention known by name: to `cbam.attach`, to saved models and to the command line.

    Call it with a class or a function, or put it above one as a decorator. The builder takes the number of channels
    first, and returns a `torch.nn.Module` that turns a map (N, C, H, W) into one of the same shape and dtype. Its
    further parameters become options of `cbam.attach`; give them values that JSON can hold, so that a saved model can
    be built again.

    Args:
        name: lower-case letters, digits and underscores, such as "my_gate".
        builder: class or function (channels, **options) -> module.
        label: in tables and plots; by default the name.
        title: on a model card; by default the label.
        citation: a BibTeX entry for the model card.
        identity: function (module) that changes a new module so that it returns its input; by default its method
            `set_identity`, if it has one.

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
            name, given, label=label, title=title, citation=citation, identity=identity
        )
    _check_name(name)
    _check_builder(builder)
    if name in _KINDS and not _is_same(_KINDS[name].builder, builder):
        raise CBAMError(f"attention {name!r} is registered already, for {_shown(_KINDS[name].builder)}.")
    add_kind(
        AttentionKind(
            name, builder, builder_options(builder), label=label or name, title=title or label or name,
            citation=citation, identity=identity,
        )
    )  # fmt: skip
    return builder


def add_kind(kind: AttentionKind) -> None:
    """Register a kind that says more of itself than `register_attention` takes."""
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
    """Return the kind that is meant by a name, or by a class or function channels -> module.

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


def describe(block: AttentionModule) -> tuple[AttentionKind, dict[str, Any]]:
    """Return the kind of a module and the options with which `build_again` makes one like it.

    Raises:
        CBAMError: it is of no registered kind; the message says how to register it.

    >>> from cbam import SqueezeExcitation
    >>> kind, options = describe(SqueezeExcitation(32))
    >>> kind.name, options
    ('se', {'reduction_ratio': 16, 'mlp_bias': True, 'gate': 'sigmoid'})
    """
    for kind in _KINDS.values():
        if kind.describe is not None and type(block) is kind.module_type:
            return kind, kind.describe(block)
    name, options = block.built_as or ("", {})
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


def _parameters(builder: Builder) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _by_keyword(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def builder_options(builder: Builder) -> dict[str, Any]:
    """Return a builder's parameters and their defaults, without the channels, device and dtype."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in _parameters(builder).values() if p.kind not in variable]
    if not any(p.name in _CHANNELS for p in parameters):
        parameters = parameters[1:]  # the channels by another name
    return {p.name: p.default for p in parameters if p.name not in _NOT_OPTIONS}


def _is_same(one: Builder, other: Builder) -> bool:
    """Return whether two builders come from one definition that ran twice, as a cell of a notebook does."""
    places = [(getattr(b, "__module__", None), getattr(b, "__qualname__", "<lambda>")) for b in (one, other)]
    return one is other or (places[0] == places[1] and "<lambda>" not in places[0][1])


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool, list, tuple))


def _shown(builder: Any) -> str:
    inner = getattr(builder, "func", builder)  # of a functools.partial
    return f"{inner.__module__}.{inner.__qualname__}" if hasattr(inner, "__qualname__") else repr(builder)
