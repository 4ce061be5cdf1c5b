"""What the commands say of the kinds of attention."""

from __future__ import annotations

from cbam.nn.registry import kind_names


def with_kinds(description: str) -> str:
    """Return a command's description and behind it the names that `--attention` takes."""
    return (
        f"{description}\n\nKinds of attention: {', '.join(kind_names())}; timm:NAME for those of timm's factory, such"
        " as timm:gc; and your own, with --import my_package.my_gate (docs/your-own-attention.md)."
    )
