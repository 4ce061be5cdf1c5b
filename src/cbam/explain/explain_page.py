"""The page of an explanation: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cbam.explain.cams import METHODS
from cbam.explain.overlay import colour_stops
from cbam.explain.scores import MapScores
from cbam.explain.site_figures import gates_figure, scale_of
from cbam.explain.views import View
from cbam.page import embedded, environment, shell_lines
from cbam.version import __version__

_IN_PAGE = 320


def render(
    manifest: Mapping[str, Any],
    views: Mapping[str, Sequence[View]],
    folder: Path,
    command: Sequence[str] = (),
    scores: MapScores | None = None,
) -> str:
    """Return the text of the page.

    Args:
        manifest: of the files in the folder.
        views: by title of the network, for each image.
        folder: with the pictures.
        command: that made it; may be empty.
        scores: of the same networks.
    """
    titles, cmap = list(views), manifest["colours"]
    images = []
    for index, entry in enumerate(manifest["images"]):
        of_image = {title: of[index] for title, of in views.items()}
        images.append(
            {
                **entry,
                "shown": embedded(folder / entry["picture"], _IN_PAGE),
                "cams": {
                    title: embedded(folder / entry["models"][title]["cam"], _IN_PAGE) for title in titles
                },
                "masked": [
                    title
                    for title, view in of_image.items()
                    if any(g.spatial is not None for g in view.gates.values())
                ],
                "rows": [_row(size, entry, titles, folder) for size in entry["scales"]],
                "figures": {
                    title: gates_figure(
                        view.gates, f"gates-{index}-{number}", title, _channel_scale(of_image)
                    )
                    for number, (title, view) in enumerate(of_image.items())
                },
            }
        )
    template = environment("cbam.explain").get_template("explain.html.j2")
    return template.render(
        titles=titles,
        images=images,
        method=METHODS[manifest["method"]].title,
        prepared=manifest["prepared"],
        cam_stops=colour_stops(name=cmap),
        mask_stops=colour_stops(name=cmap, opaque=True),
        colours=cmap,
        command=shell_lines(command) if command else "",
        version=__version__,
        scores=scores,
    )


def _row(size: str, entry: Mapping[str, Any], titles: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return one row of masks: of each network the last site with maps of a size."""
    cells: dict[str, Any] = {}
    shape = [int(side) for side in size.split(" x ")]
    for title in titles:
        sites = entry["models"][title]["sites"]
        fitting = [site for site, each in sites.items() if each.get("spatial", {}).get("shape") == shape]
        if fitting:
            last = sites[fitting[-1]]
            cells[title] = {
                "site": fitting[-1] or "the network",
                "more": len(fitting) - 1,
                "spatial": last["spatial"],
                "shown": embedded(folder / last["picture"], _IN_PAGE),
            }
    low, high = entry["scales"][size]
    return {"size": size.replace("x", "×"), "cells": cells, "low": low, "high": high}


def _channel_scale(views: Mapping[str, View]) -> tuple[float, float]:
    gates = [g.channel for view in views.values() for g in view.gates.values() if g.channel is not None]
    return scale_of(gates)
