"""A kind of attention: how its modules are built, its names, and how files describe it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from cbam.errors import CBAMError
from cbam.nn.base import AttentionModule
from cbam.nn.foreign import ForeignAttention

Builder: TypeAlias = Callable[..., nn.Module]

_CHANNELS = ("in_channels", "channels")
_NOT_OPTIONS = (*_CHANNELS, "dims", "device", "dtype")
_SHORT = {"preset": "preset {}", "reduction_ratio": "r={}", "kernel_size": "k={}"}


@dataclass(frozen=True)
class AttentionKind:
    """A kind of attention.

    Args:
        name: as users type it.
        builder: (channels, **options) -> module; it gets `dims`, `device` and `dtype` if it has parameters of these
            names.
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
        gates: function (module, map) -> its gates for the map, for `cbam.attention_maps`, see `register_attention`; our
            own modules tell them themselves.
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
    gates: Callable[[Any, torch.Tensor], Any] | None = None
    has_operator: bool = False

    @property
    def has_dims(self) -> bool:
        """Whether it is built for signals and volumes too."""
        return "dims" in _parameters(self.builder)

    def takes(self, option: str) -> bool:
        """Return whether `build` accepts an option."""
        return option in self.options or option in self.ignored

    def build(
        self,
        channels: int,
        options: Mapping[str, Any],
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> AttentionModule:
        """Return a new module for maps of `channels` channels.

        Args:
            channels: C.
            options: of the kind; and "dims", which no user gives: how many sizes of a map follow its channels, 2 if
                not there.
            device, dtype: of the weights.

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
        """Return a module with the options that `describe` returned; otherwise as `build`."""
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
        dims = options.get("dims", 2)
        options = {name: value for name, value in options.items() if name != "dims"}
        if "dims" in known:
            options["dims"] = dims
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
        except Exception as error:  # the builder may be user code
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
        block = module if isinstance(module, AttentionModule) else ForeignAttention(module, channels, dims)
        if block.in_channels is None:
            block.in_channels = channels
        if not self.has_operator:
            block.built_as = (self.name, {name: value for name, value in options.items() if name != "dims"})
        return block

    def set_identity(self, block: AttentionModule) -> None:
        """Make a new module return its input, if it can; otherwise leave it unchanged."""
        module: Any = block.module if isinstance(block, ForeignAttention) else block
        if self.identity is not None:
            self.identity(module)
        elif callable(getattr(module, "set_identity", None)):
            try:
                module.set_identity()
            except NotImplementedError:  # the default of AttentionModule
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


def builder_options(builder: Builder) -> dict[str, Any]:
    """Return a builder's parameters and their defaults, without the channels, dims, device and dtype."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in _parameters(builder).values() if p.kind not in variable]
    if not any(p.name in _CHANNELS for p in parameters):
        parameters = parameters[1:]  # the channels by another name
    return {p.name: p.default for p in parameters if p.name not in _NOT_OPTIONS}


def _parameters(builder: Builder) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _by_keyword(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool, list, tuple))
