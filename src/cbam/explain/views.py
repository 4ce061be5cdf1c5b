"""How one network sees one image, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class SiteGates:
    """The gates of one site for one image: `channel` (C,) and `spatial` (H, W); None where the site has none."""

    channel: Floats | None
    spatial: Floats | None


@dataclass(frozen=True)
class View:
    """How one network sees one image.

    Attributes:
        heat: (h, w), the class activation map divided by its maximum; all zero where it is flat.
        flat: whether the map is constant up to rounding.
        layer: the module whose output the map reads.
        probabilities: (K,).
        gates: by site, in the order of the network.
    """

    heat: Floats
    flat: bool
    layer: str
    probabilities: Floats
    gates: dict[str, SiteGates]
