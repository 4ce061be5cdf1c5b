"""The names that `--attention` takes, and what each stands for: a network that a grid trains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cbam.errors import CBAMError, unknown_name


@dataclass(frozen=True)
class Variant:
    """What distinguishes one network of a grid from the others.

    Args:
        name: as typed, e.g. "cbam:official:k3".
        label: as a reader sees it.
        attention: what `cbam.attach` puts in; None: nothing.
        preset: dialect of CBAM.
        init: "identity" or "paper"; None: identity where training starts from weights, else the paper's.
        options: further keywords of `cbam.attach`.
    """

    name: str
    label: str
    attention: str | None = None
    preset: str = "paper"
    init: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def attach_arguments(self, *, fine_tuning: bool) -> dict[str, Any]:
        """Return the keywords for `cbam.attach` that this variant decides.

        >>> parse_variant("cbam:fresh").attach_arguments(fine_tuning=True)
        {'attention': 'cbam', 'init': 'paper', 'preset': 'paper'}
        """
        init = self.init or ("identity" if fine_tuning else "paper")
        return {"attention": self.attention, "init": init, "preset": self.preset, **dict(self.options)}

    def same_network(self, other: Variant) -> bool:
        """Whether the two are one network under two names."""
        return self == replace(other, name=self.name, label=self.label)


@dataclass(frozen=True)
class _Part:
    """What one word behind a colon does: sets the preset, the init, or a keyword of `cbam.attach`."""

    shown: str
    preset: str | None = None
    init: str | None = None
    option: tuple[str, Any] | None = None
    of: tuple[str, ...] = ("cbam", "channel", "spatial")


_CHANNEL, _SPATIAL = ("cbam", "channel"), ("cbam", "spatial")
PARTS: dict[str, _Part] = {
    "official": _Part("official", preset="official"),
    "timm": _Part("timm", preset="timm"),
    "fresh": _Part("fresh gates", init="paper", of=("cbam", "channel", "spatial", "se")),
    "identity": _Part("identity", init="identity", of=("cbam", "channel", "spatial", "se")),
    "avg": _Part("avg", option=("channel_pooling", "avg"), of=_CHANNEL),
    "max": _Part("max", option=("channel_pooling", "max"), of=_CHANNEL),
    "conv": _Part("1×1 conv", option=("spatial_descriptor", "conv"), of=_SPATIAL),
    "map-avg": _Part("avg map", option=("spatial_descriptor", "avg"), of=_SPATIAL),
    "map-max": _Part("max map", option=("spatial_descriptor", "max"), of=_SPATIAL),
    "spatial-channel": _Part("spatial → channel", option=("arrangement", "spatial-channel"), of=("cbam",)),
    "parallel": _Part("parallel", option=("arrangement", "parallel"), of=("cbam",)),
}
# `k3` is a kernel of 3 x 3, `r8` a reduction ratio of 8.
_NUMBERED = {
    "k": _Part("k = {}", option=("kernel_size", int), of=_SPATIAL),
    "r": _Part("r = {}", option=("reduction_ratio", int), of=("cbam", "channel", "se")),
}
BASES = {"se": "SE", "cbam": "CBAM", "channel": "channel only", "spatial": "spatial only"}
ALONE = {"none": "plain", "control": "control"}
VARIANTS = ("none", "se", "cbam", "cbam:official", "cbam:timm", "cbam:fresh", "channel", "spatial", "control")
"""The names that `--help` lists; the words of `PARTS`, `k3` and `r8` make more."""


def parse_variant(name: str) -> Variant:
    """Read one name: `none`, `control`, or an attention and what changes it, with colons.

    Raises:
        CBAMError: a name or a word that does not exist, does not fit the attention, or says a thing twice.

    >>> variant = parse_variant("cbam:official:k3")
    >>> variant.label, variant.attach_arguments(fine_tuning=False)["kernel_size"]
    ('CBAM (official, k = 3)', 3)
    """
    base, *words = (word.strip() for word in name.split(":"))
    if base in ALONE and not words:
        return Variant(name, ALONE[base])
    if base not in BASES:
        raise unknown_name("attention", name, VARIANTS)
    made, shown = Variant(name, BASES[base], base), []
    for word in words:
        part = _part(name, base, word)
        shown.append(part.shown)
        for field_name, now in (("preset", part.preset), ("init", part.init)):
            if now is not None:
                before = getattr(made, field_name)
                if before not in (None, "paper"):
                    raise CBAMError(f"attention {name!r} sets the {field_name} twice: {before} and {now}")
                changed: dict[str, Any] = {field_name: now}
                made = replace(made, **changed)
        if part.option is not None:
            if part.option[0] in dict(made.options):
                raise CBAMError(f"attention {name!r} sets the {part.option[0]} twice")
            made = replace(made, options=(*made.options, part.option))
    label = f"{BASES[base]} ({', '.join(shown)})" if shown else BASES[base]
    return replace(made, label=label, options=tuple(sorted(made.options)))


def _part(name: str, base: str, word: str) -> _Part:
    part = PARTS.get(word)
    if part is None and (number := re.fullmatch(r"([kr])([1-9]\d*)", word)):
        form, value = _NUMBERED[number[1]], int(number[2])
        part = replace(form, shown=form.shown.format(value), option=(form.option[0], value))  # type: ignore[index]
    if part is None:
        raise unknown_name(f"word in the attention {name!r}:", word, [*PARTS, "k3", "r8"])
    if base not in part.of:
        raise CBAMError(f"attention {name!r}: {word!r} goes with {', '.join(part.of)}, not with {base}")
    return part


def parse_variants(text: str | Sequence[str]) -> tuple[str, ...]:
    """Split the value of `--attention` and check it.

    Raises:
        CBAMError: A name that does not exist, a network twice, or a control without anything to match.

    >>> parse_variants("none, cbam")
    ('none', 'cbam')
    """
    given = text.split(",") if isinstance(text, str) else text
    names = tuple(name.strip() for name in given if name.strip())
    if not names:
        raise CBAMError("--attention names no variant. Type for example: --attention none,se,cbam,control")
    parsed: list[Variant] = []
    for name in names:
        variant = parse_variant(name)
        for other in parsed:
            if name == other.name:
                raise CBAMError(f"--attention names {name!r} twice")
            if variant.attention and variant.same_network(other):
                raise CBAMError(f"--attention: {other.name!r} and {name!r} are the same network")
        parsed.append(variant)
    attentions = [variant.name for variant in parsed if variant.attention]
    if len(names) == 1 and attentions:
        raise CBAMError(
            f"--attention {names[0]} alone has nothing to be compared with. Type: --attention none,{names[0]}"
        )
    if "control" in names and not attentions:
        raise CBAMError(
            "the control has as many parameters as the model with attention: name that too, "
            "for example --attention none,cbam,control"
        )
    return names


def matched_by_control(variants: Sequence[str]) -> str:
    """Return the variant whose parameter count the control has: cbam, or the first with attention.

    >>> matched_by_control(("none", "se", "cbam", "control")), matched_by_control(("none", "se", "channel"))
    ('cbam', 'se')
    """
    return "cbam" if "cbam" in variants else next(name for name in variants if parse_variant(name).attention)


def label(variant: str) -> str:
    """Return the name of a variant as a reader sees it; an unknown name is shown as it is.

    >>> label("none"), label("cbam:official"), label("of another version")
    ('plain', 'CBAM (official)', 'of another version')
    """
    try:
        return parse_variant(variant).label
    except CBAMError:
        return variant
