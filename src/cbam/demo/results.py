"""What the page shows of an explanation: pictures, probabilities and gates as HTML."""

from __future__ import annotations

import functools
from typing import Any

import jinja2
import numpy as np

from cbam.explain.cams import METHODS
from cbam.explain.explanation import Explanation, between, likeliest, scales_by_size
from cbam.explain.overlay import enlarged, overlay, painted
from cbam.page import environment, png_uri

_STRIP = 20  # pixels: height of the channel gates


def render(explanation: Explanation, site: str | None, *, attention: bool) -> str:
    """Return the HTML for one picture and one network.

    Args:
        explanation: of one picture by one network.
        site: whose gates are shown; None, or one that did not run: none.
        attention: whether it was on.
    """
    ((title, (view,)),) = explanation.views.items()
    crop, label = explanation.crops[0], explanation.labels[0]
    top = likeliest(view, explanation.class_names)
    rows = [row for row in top if row["label"] != label]
    shown = {
        "label": label,
        "class": explanation.class_names[label],
        "probability": view.probabilities[label],
    }
    rows = sorted([*rows, shown], key=lambda row: -row["probability"])
    return _template().render(
        title=title,
        attention=attention,
        name=explanation.names[0],
        says=top[0],
        rows=rows,
        explained=shown,
        size=crop.size,
        method=METHODS[explanation.method].title,
        layer=view.layer,
        flat=view.flat,
        input=png_uri(enlarged(crop.convert("RGB"))),
        cam=png_uri(overlay(crop, view.heat)),
        gates=_gates(explanation, site),
    )


def message(text: str, *, alert: bool = False) -> str:
    """Return a sentence in place of results; `alert` if something is wrong."""
    return _template().render(message=text, alert=alert)


def _gates(explanation: Explanation, site: str | None) -> dict[str, Any] | None:
    """Return the pictures and numbers of a site's gates; masks of one size share one scale, as on explain's page."""
    ((title, (view,)),) = explanation.views.items()
    if site is None or site not in view.gates:
        return None
    gates, size = view.gates[site], enlarged(explanation.crops[0]).size
    found: dict[str, Any] = {"site": site or "the network", "mask": None, "channel": None}
    if gates.spatial is not None:
        scale = scales_by_size({title: view})[gates.spatial.shape]
        found["mask"] = {
            "uri": png_uri(painted(between(gates.spatial, *scale), size)),
            "shape": gates.spatial.shape,
            "scale": scale,
            **_span(gates.spatial),
        }
    if gates.channel is not None:
        span = _span(gates.channel)
        strip = painted(between(gates.channel, span["low"], span["high"])[None], (size[0], _STRIP))
        found["channel"] = {"uri": png_uri(strip), "count": len(gates.channel), **span}
    return found


def _span(gate: np.ndarray) -> dict[str, float]:
    return {"low": float(gate.min()), "high": float(gate.max()), "mean": float(gate.mean())}


@functools.cache
def _template() -> jinja2.Template:
    return environment("cbam.demo").get_template("results.html.j2")
