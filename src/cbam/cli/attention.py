"""The kinds of attention in the help of the commands."""

from __future__ import annotations

from cbam.nn.registry import kind_names


def with_kinds(description: str) -> str:
    """Return a command's description followed by the names for `--attention`."""
    return (
        f"{description}\n\nKinds of attention: {', '.join(kind_names())}; timm:NAME for those of timm's factory, such"
        " as timm:gc; and your own, with --import my_package.my_gate (docs/your-own-attention.md)."
    )
