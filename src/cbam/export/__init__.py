"""Networks with attention as files for other runtimes: torch.export, AOTInductor and ONNX, checked against eager."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from cbam.export.exporting import Exported, export
from cbam.export.loading import Loaded, load

__all__ = ["Exported", "Loaded", "export", "load"]


class _Export(ModuleType):
    """This package, which can be called: `cbam.export(...)` is `cbam.export.export(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Exported:
        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Export
