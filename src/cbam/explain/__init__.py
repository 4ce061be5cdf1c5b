"""Where a network looks: `cbam.explain(model, image)`, class activation maps, scores, and pictures of them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from cbam.explain.cams import METHODS, ClassActivationMaps, class_activation_maps
from cbam.explain.explaining import explain
from cbam.explain.explanation import Explanation
from cbam.explain.pictures import gradcam_pictures

__all__ = [
    "METHODS",
    "ClassActivationMaps",
    "Explanation",
    "class_activation_maps",
    "explain",
    "gradcam_pictures",
]


class _Explain(ModuleType):
    """This package, which can be called: `cbam.explain(...)` is `cbam.explain.explain(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Explanation:
        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _Explain
