"""The names of `--attention`: each stands for one network of a grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cbam.errors import CBAMError, unknown_name
from cbam.nn.kind import AttentionKind
from cbam.nn.registry import attention_kind, kind_names, kinds_with, library_of


@dataclass(frozen=True)
class Variant:
    """What distinguishes one network of a grid from the others.

    Args:
        name: as typed, e.g. "cbam:official:k3".
        label: for tables and plots.
        attention: kind for `cbam.attach`; None: no attention.
        init: "identity" or "paper"; None: identity where training starts from weights, else the paper's.
        options: further keywords of `cbam.attach`.
    """

    name: str
    label: str
    attention: str | None = None
    init: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def attach_arguments(self, *, fine_tuning: bool) -> dict[str, Any]:
        """Return the keywords for `cbam.attach` that this variant decides.

        >>> parse_variant("cbam:official:fresh").attach_arguments(fine_tuning=True)
        {'attention': 'cbam', 'init': 'paper', 'preset': 'official'}
        """
        init = self.init or ("identity" if fine_tuning else "paper")
        return {"attention": self.attention, "init": init, **dict(self.options)}

    def same_network(self, other: Variant) -> bool:
        """Whether the two are one network under two names."""
        return self == replace(other, name=self.name, label=self.label)


@dataclass(frozen=True)
class _Word:
    """A word after a colon: it sets a keyword of `cbam.attach`."""

    shown: str
    option: tuple[str, Any]

    def fits(self, kind: AttentionKind) -> bool:
        """Whether it changes a kind of attention."""
        return self.option[0] == "init" or self.option[0] in kind.options

    @property
    def of(self) -> tuple[str, ...]:
        """The kinds that it changes."""
        return kind_names() if self.option[0] == "init" else kinds_with(self.option[0])


WORDS: dict[str, _Word] = {
    "official": _Word("official", ("preset", "official")),
    "timm": _Word("timm", ("preset", "timm")),
    "fresh": _Word("fresh gates", ("init", "paper")),
    "identity": _Word("identity", ("init", "identity")),
    "avg": _Word("avg", ("channel_pooling", "avg")),
    "max": _Word("max", ("channel_pooling", "max")),
    "conv": _Word("1×1 conv", ("spatial_descriptor", "conv")),
    "map-avg": _Word("avg map", ("spatial_descriptor", "avg")),
    "map-max": _Word("max map", ("spatial_descriptor", "max")),
    "spatial-channel": _Word("spatial → channel", ("arrangement", "spatial-channel")),
    "parallel": _Word("parallel", ("arrangement", "parallel")),
}
# `k3` is a kernel of 3 x 3, `r8` a reduction ratio of 8.
_NUMBERED = {"k": "kernel_size", "r": "reduction_ratio"}
CONTROL = "control"
ALONE = {"none": "plain", CONTROL: "control"}


def variant_names() -> tuple[str, ...]:
    """Return the names that messages list; the words of `WORDS`, `k3` and `r8` make more.

    >>> variant_names()[:2], variant_names()[-1]
    (('none', 'cbam'), 'control')
    """
    return ("none", *kind_names(), "cbam:official", "cbam:timm", "cbam:fresh", "control")


def parse_variant(name: str) -> Variant:
    """Read one name: `none`, `control`, or a kind of attention and what changes it, with colons.

    In a name that begins with a library, such as `timm:gc`, the kind follows the first colon.

    Raises:
        CBAMError: a name or a word that does not exist, does not fit the attention, or sets an option twice.

    >>> variant = parse_variant("cbam:official:k3")
    >>> variant.label, variant.attach_arguments(fine_tuning=False)["kernel_size"]
    ('CBAM (official, k = 3)', 3)
    >>> parse_variant("timm:gc:identity").label
    'timm gc (identity)'
    """
    base, *words = (word.strip() for word in name.split(":"))
    if base in ALONE and not words:
        return Variant(name, ALONE[base])
    if words and library_of(f"{base}:"):
        base = f"{base}:{words.pop(0)}"
    elif base not in kind_names():
        raise unknown_name("attention", name, variant_names())
    kind, options, shown = attention_kind(base), dict[str, Any](), list[str]()
    for text in words:
        word = _word(name, kind, text)
        shown.append(word.shown)
        option, value = word.option
        if option in options:
            both = f": {options[option]} and {value}" if option in ("preset", "init") else ""
            raise CBAMError(f"attention {name!r} sets the {option} twice{both}")
        options[option] = value
    init = options.pop("init", None)
    label = f"{kind.label} ({', '.join(shown)})" if shown else kind.label
    return Variant(name, label, base, init, tuple(sorted(options.items())))


def _word(name: str, kind: AttentionKind, text: str) -> _Word:
    word = WORDS.get(text)
    if word is None and (number := re.fullmatch(r"([kr])([1-9]\d*)", text)):
        letter, value = number[1], int(number[2])
        word = _Word(f"{letter} = {value}", (_NUMBERED[letter], value))
    if word is None:
        raise unknown_name(f"word in the attention {name!r}:", text, [*WORDS, "k3", "r8"])
    if not word.fits(kind):
        raise CBAMError(f"attention {name!r}: {text!r} works with {', '.join(word.of)}, not with {kind.name}")
    return word


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
    if CONTROL in names and not attentions:
        raise CBAMError(
            "the control has as many parameters as a model with attention: name one, "
            "for example --attention none,cbam,control"
        )
    return names


def matched_by_control(variants: Sequence[str]) -> str:
    """Return the variant whose parameter count the control has: cbam, or the first with attention.

    >>> matched_by_control(("none", "se", "cbam", "control")), matched_by_control(("none", "se", "channel"))
    ('cbam', 'se')
    """
    return "cbam" if "cbam" in variants else next(name for name in variants if parse_variant(name).attention)


def check_widening(widened_to: int | None, attention: str) -> None:
    """Refuse a size for a network that is no control, or one that no network has.

    Raises:
        CBAMError: what to type.

    >>> check_widening(9999, "control")
    """
    if widened_to is None:
        return
    if attention != CONTROL:
        raise CBAMError(
            f"--widened-to {widened_to} has no effect with --attention {attention}. Leave it out, or use --attention"
            " control"
        )
    if widened_to < 1:
        raise CBAMError(f"--widened-to {widened_to} must be at least 1: the parameters of the control")


def label(variant: str) -> str:
    """Return the name of a variant for tables and plots; an unknown name is returned unchanged.

    >>> label("none"), label("cbam:official"), label("of another version")
    ('plain', 'CBAM (official)', 'of another version')
    """
    try:
        return parse_variant(variant).label
    except CBAMError:
        return variant
