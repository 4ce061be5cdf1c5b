"""A figure of the channel gates of all sites of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cbam.explain.views import SiteGates
from cbam.page.drawing import INK, MUTED, canvas, inline_svg, look, shortened

_LINE = 15.0


def scale_of(gates: Sequence[Any]) -> tuple[float, float]:
    """Return the least and the greatest of all gates; 0 and 1 without any.

    >>> scale_of([np.array([0.2, 0.9]), np.array([[1.1]])])
    (0.2, 1.1)
    """
    if not gates:
        return 0.0, 1.0
    return min(float(gate.min()) for gate in gates), max(float(gate.max()) for gate in gates)


def gates_figure(
    gates: Mapping[str, SiteGates], name: str, title: str, scale: tuple[float, float]
) -> Markup | None:
    """Draw the channel gates of each site as a row of ticks, one for each channel, the mean as a bar.

    Args:
        gates: by site.
        name: short and unique in the page.
        title: of the network, for the text alternative.
        scale: least and greatest gate of all networks that are shown side by side.
    """
    rows = [(site or "network", each.channel) for site, each in gates.items() if each.channel is not None]
    if not rows:
        return None
    longest = min(max(len(site) for site, _ in rows), 24)
    with canvas(_LINE * len(rows) + 44, left=14 + 6.4 * longest, right=14) as axes:
        style = look("cbam")
        for y, (_, channel) in enumerate(rows):
            axes.plot(channel, np.full(len(channel), y), "|", color=style.colour, markersize=9, alpha=0.35)
            axes.plot([channel.mean()] * 2, [y - 0.38, y + 0.38], color=INK, linewidth=2)
        axes.set_yticks(range(len(rows)), [shortened(site, 24) for site, _ in rows], color=INK, fontsize=9.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        low, high = scale
        margin = 0.05 * (high - low) or 0.05
        axes.axvline(1, color=MUTED, linewidth=0.8)
        axes.set_xlim(min(low - margin, 1 - margin) if high <= 1 else low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("channel gate")
        values = "; ".join(
            f"{site} mean {channel.mean():.2f}, {channel.min():.2f} to {channel.max():.2f}"
            for site, channel in rows
        )
        return inline_svg(axes, name, f"Channel gates of {title} at each site: {values}.")
