"""How many classes and input channels the network has of which a file holds the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cbam.checkpoints.reading import look_at
from cbam.checkpoints.unpacking import unpack
from cbam.models import build_model, made_for
from cbam.models.classifier import last_layer
from cbam.models.files import first_convolution
from cbam.models.own import build_own, is_own


def widths_in(weights: Path, name: str) -> tuple[int, int]:
    """Return classes and input channels of the weights in a file, as far as its names are the network's.

    Args:
        weights: the file.
        name: of the network, for `cbam.models.build_model`.

    Raises:
        CBAMError: no such network, or a file that cannot be read.
    """
    outputs, (channels, *_) = made_for(name)
    if is_own(name):
        form: nn.Module = build_own(name)
    else:
        with torch.device("meta"):
            form = build_model(name, outputs)
    shapes = unpack(look_at(weights), wanted=form.state_dict()).shapes
    head, first = last_layer(form), first_convolution(form)
    if head is not None and f"{head[0]}.weight" in shapes:
        outputs = shapes[f"{head[0]}.weight"].shape[0]
    if first is not None and f"{first[0]}.weight" in shapes:
        channels = shapes[f"{first[0]}.weight"].shape[1]
    return outputs, channels
