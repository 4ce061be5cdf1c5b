"""An explanation, and its files: pictures, float maps, a manifest, and a page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cbam.explain.explain_page import render
from cbam.explain.overlay import check_colour_map, enlarged, overlay, painted
from cbam.explain.site_figures import scale_of
from cbam.explain.views import SiteGates, View
from cbam.files import write_atomically
from cbam.version import __version__

MANIFEST = "manifest.json"
PAGE = "explain.html"
_TOP = 5


@dataclass(frozen=True)
class Explanation:
    """How networks see images: `views[title][i]` is how the network of that title sees image i.

    Attributes:
        names: of the images.
        crops: the part of each image that the networks see, before it is normalised.
        labels: the class of each image that the maps are for.
        class_names: of the networks' outputs.
        method: of the class activation maps, a key of `cbam.explain.cams.METHODS`.
        prepared: how the images were prepared, in words.
        views: by title of the network.
    """

    names: tuple[str, ...]
    crops: tuple[Image.Image, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    method: str
    prepared: str
    views: Mapping[str, Sequence[View]]

    def save(self, folder: str | Path, *, cmap: str = "inferno", command: Sequence[str] = ()) -> Path:
        """Write a page, `explain.html`, its pictures as PNG, the maps as .npz, and `manifest.json`.

        Args:
            folder: made if it is not there; files of the same names are replaced.
            cmap: matplotlib's name of the colours; "jet" looks like the paper's figures.
            command: that made it, for the page.

        Returns:
            The page.

        Raises:
            CBAMError: an unknown colour map.
        """
        return _save(self, Path(folder), cmap, command)


def _save(explanation: Explanation, folder: Path, cmap: str, command: Sequence[str]) -> Path:
    """Write all files; return the page. See `Explanation.save`."""
    check_colour_map(cmap)
    images = [_write_image(explanation, index, folder, cmap) for index in range(len(explanation.names))]
    manifest = {
        "method": explanation.method,
        "colours": cmap,
        "prepared": explanation.prepared,
        "classes": len(explanation.class_names),
        "versions": {"torch-cbam": __version__, "torch": str(torch.__version__)},
        "images": images,
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return write_atomically(folder / PAGE, render(manifest, explanation.views, folder, command))


def _write_image(explanation: Explanation, index: int, folder: Path, cmap: str) -> dict[str, Any]:
    """Write the pictures and maps of one image; return its entry in the manifest."""
    crop = explanation.crops[index]
    stem = f"{index + 1}-{_file_name(Path(explanation.names[index]).stem)}"
    picture = enlarged(crop.convert("RGB"))
    _write_picture(folder / f"{stem}.png", picture)
    views = {title: views[index] for title, views in explanation.views.items()}
    scales = _scales(views)
    models = {}
    for number, (title, view) in enumerate(views.items(), 1):
        name = f"{stem}-{number}-{_file_name(title)}"
        _write_picture(folder / f"{name}-cam.png", overlay(crop, view.heat, cmap))
        sites = {}
        for site, gates in view.gates.items():
            entry = _numbers(gates)
            if gates.spatial is not None:
                entry["picture"] = f"{name}-{_file_name(site or 'network')}.png"
                low, high = scales[gates.spatial.shape]
                shown = _between(gates.spatial, low, high)
                _write_picture(folder / entry["picture"], painted(shown, picture.size, cmap))
            sites[site] = entry
        write_atomically(folder / f"{name}.npz", _packed(view))
        models[title] = {
            "cam": f"{name}-cam.png",
            "maps": f"{name}.npz",
            "layer": view.layer,
            "map_size": list(view.heat.shape),
            "flat": view.flat,
            "probability": float(view.probabilities[explanation.labels[index]]),
            "top": _top(view, explanation.class_names),
            "sites": sites,
        }
    return {
        "name": explanation.names[index],
        "picture": f"{stem}.png",
        "label": explanation.labels[index],
        "class": explanation.class_names[explanation.labels[index]],
        "scales": {f"{height} x {width}": list(scale) for (height, width), scale in scales.items()},
        "models": models,
    }


def _scales(views: Mapping[str, View]) -> dict[tuple[int, ...], tuple[float, float]]:
    """Return the least and the greatest spatial gate of all networks, for each size of map."""
    found: dict[tuple[int, ...], list[Any]] = {}
    for view in views.values():
        for gates in view.gates.values():
            if gates.spatial is not None:
                found.setdefault(gates.spatial.shape, []).append(gates.spatial)
    return {size: scale_of(maps) for size, maps in found.items()}


def _between(values: Any, low: float, high: float) -> Any:
    """Scale to 0..1; a map without contrast is in the middle."""
    return np.full_like(values, 0.5) if high <= low else (values - low) / (high - low)


def _numbers(gates: SiteGates) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name, gate in (("channel", gates.channel), ("spatial", gates.spatial)):
        if gate is not None:
            entry[name] = {
                "shape": list(gate.shape),
                "mean": float(gate.mean()),
                "min": float(gate.min()),
                "max": float(gate.max()),
            }
    return entry


def _packed(view: View) -> bytes:
    """Return the float maps as a NumPy archive: cam, probabilities, channel/SITE and spatial/SITE."""
    arrays = {"cam": view.heat, "probabilities": view.probabilities}
    for site, gates in view.gates.items():
        for name, gate in (("channel", gates.channel), ("spatial", gates.spatial)):
            if gate is not None:
                arrays[f"{name}/{site}"] = gate
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _top(view: View, names: Sequence[str]) -> list[dict[str, Any]]:
    order = np.argsort(-view.probabilities, kind="stable")[:_TOP].tolist()
    return [{"label": i, "class": names[i], "probability": float(view.probabilities[i])} for i in order]


def _write_picture(path: Path, picture: Image.Image) -> None:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    write_atomically(path, stream.getvalue())


def _file_name(text: str) -> str:
    """Return text as part of a file's name: letters, digits, dots, hyphens and underscores.

    >>> _file_name("my cat/../é"), _file_name("???")
    ('my-cat-..-é', 'image')
    """
    return re.sub(r"[^\w.-]+", "-", text).strip("-. ")[:60] or "image"
