"""What goes in at a site: which attention, with which options and which first weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from cbam.attach.sites.select import Selector, Selectors, as_list
from cbam.errors import CBAMError, unknown_name
from cbam.nn import CBAM, SqueezeExcitation
from cbam.nn.base import AttentionModule
from cbam.nn.presets import Preset, resolve_preset

Build: TypeAlias = Callable[..., AttentionModule]

ATTENTIONS: tuple[str, ...] = ("cbam", "se", "channel", "spatial")
INITS: tuple[str, ...] = ("identity", "paper")
_OPTIONS = ("reduction_ratio", "kernel_size", "preset", *(field.name for field in fields(Preset)))
# Of these, SE has no use for the preset: it may stand there, so that the same call serves all attentions.
_OF_SE = ("reduction_ratio", "mlp_bias", "gate", "preset")


@dataclass(frozen=True)
class Setting:
    """What goes in at a site.

    Args:
        description: such as "cbam (preset paper, r=16, k=7)".
        init: "identity" or "paper".
        build: function (channels, device=, dtype=) -> module.
    """

    description: str
    init: str
    build: Build


@dataclass(frozen=True)
class Settings:
    """What the call says for all sites; `at` changes it for some of them.

    Raises:
        CBAMError: an unknown attention, init, preset or switch.

    >>> Settings("cbam", "identity", {"preset": "official"}).at({"reduction_ratio": 8}).description
    'cbam (preset official, r=8, k=7)'
    """

    attention: str
    init: str
    options: Mapping[str, Any]

    def at(self, own: Mapping[str, Any]) -> Setting:
        """Return the setting of sites with options of their own.

        Args:
            own: options of `attach`, and `attention` and `init`. Another attention takes those options of the call
                that it knows.
        """
        own = dict(own)
        for name in own:
            if name not in ("attention", "init") and not _knows("cbam", name):
                raise unknown_name("option", name, ["attention", "init", *_OPTIONS])
        attention, init = own.pop("attention", self.attention), own.pop("init", self.init)
        if init not in INITS:
            raise unknown_name("init", init, INITS)
        inherited = dict(self.options)
        if attention != self.attention:
            inherited = {name: value for name, value in inherited.items() if _knows(attention, name)}
        build, described = attention_builder(attention, {**inherited, **own})
        return Setting(described, init, build)


def by_selector(sites: Any, settings: Settings) -> list[tuple[Selector, Setting]]:
    """Return each selector with what goes in at its sites.

    Args:
        sites: selectors, or a mapping {selector: options}.
        settings: what the call says for all.

    Raises:
        CBAMError: options that are no mapping or that the attention does not have; the message names the selector.
    """
    if not isinstance(sites, Mapping):
        chosen: Selectors = sites
        everywhere = settings.at({})
        return [(selector, everywhere) for selector in as_list(chosen)]
    found = []
    for selector, own in sites.items():
        shown = repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", str(selector))
        if not isinstance(own, Mapping) or not all(isinstance(name, str) for name in own):
            raise CBAMError(
                f"sites[{shown}] expects a dict of options, such as {{'reduction_ratio': 8}}, or {{}}; got {own!r}."
            )
        try:
            found.append((selector, settings.at(own)))
        except CBAMError as error:
            raise CBAMError(f"sites[{shown}]: {error}") from None
    return found


def attention_builder(attention: str, options: Mapping[str, Any]) -> tuple[Build, str]:
    """Return a function (channels, device=, dtype=) -> module for the named attention, and its description.

    Raises:
        CBAMError: an unknown attention, preset or switch.

    >>> attention_builder("se", {"reduction_ratio": 8})[1]
    'se (r=8)'
    """
    if attention not in ATTENTIONS:
        raise unknown_name("attention", attention, ATTENTIONS)
    settings: dict[str, Any] = dict(options)
    ratio = settings.pop("reduction_ratio", 16)
    if attention == "se":
        return _se_builder(ratio, settings)
    if attention in ("channel", "spatial"):
        settings["arrangement"] = attention
    kernel_size = settings.pop("kernel_size", 7)
    preset: str | Preset = settings.pop("preset", "paper")
    resolve_preset(preset, settings)
    CBAM(16, ratio, kernel_size, preset=preset, device="meta", **settings)  # raises on a bad ratio or kernel
    name = preset if isinstance(preset, str) else "custom"
    shown = {k: v for k, v in settings.items() if k != "arrangement" or attention == "cbam"}
    switches = "".join(f", {key}={value}" for key, value in shown.items())
    return (
        lambda channels, **f: CBAM(channels, ratio, kernel_size, preset=preset, **settings, **f),
        f"{attention} (preset {name}, r={ratio}, k={kernel_size}{switches})",
    )


def _se_builder(ratio: int, settings: dict[str, Any]) -> tuple[Build, str]:
    for name in settings:
        if name == "kernel_size":
            raise CBAMError(
                "se has no spatial gate, so no kernel_size. Leave it out, or take attention='cbam'."
            )
        if name not in _OF_SE:
            raise unknown_name("option of se", name, [known for known in _OF_SE if known != "preset"])
    resolve_preset(settings.pop("preset", "paper"), {})
    SqueezeExcitation(ratio, ratio, device="meta", **settings)  # raises on a bad option
    switches = "".join(f", {key}={value}" for key, value in settings.items())
    return (
        lambda channels, **f: SqueezeExcitation(channels, ratio, **settings, **f),
        f"se (r={ratio}{switches})",
    )


def _knows(attention: str, option: str) -> bool:
    if attention == "se":
        return option in _OF_SE
    return option in _OPTIONS and (attention == "cbam" or option != "arrangement")
