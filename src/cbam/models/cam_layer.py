"""Which module's output a class activation map should read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.preserve_state import preserve_state, probe_input


def cam_layer(model: nn.Module, input_size: tuple[int, int, int]) -> str:
    """Find the last module that puts out a feature map of more than one pixel, by one forward pass.

    That is the last stage of a ResNet ("layer4") unless its map is a single pixel. The outermost of modules that
    end together is taken, so attention inside a stage does not change the name. "As the paper does" (section
    4.3, Figure 5): the last convolutional outputs.

    Args:
        model: looked at only; it is left as it was.
        input_size: (C, H, W).

    Returns:
        A name for `model.get_submodule`.

    Raises:
        CBAMError: if the forward pass fails, or no module's output is a map larger than 1 x 1.

    >>> from cbam.models import build_model
    >>> cam_layer(build_model("resnet20", 10), (3, 32, 32))
    'layer3'
    """
    finished: list[str] = []
    hooks = []
    with preserve_state(model), torch.no_grad():
        try:
            for name, module in model.named_modules():
                if name:
                    hooks.append(module.register_forward_hook(_note_maps(name, finished)))
            model(probe_input(model, (1, *input_size)))
        except Exception as error:
            raise CBAMError(
                f"the forward pass of {type(model).__name__} failed for input_size={input_size}: {error}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
    if not finished:
        raise CBAMError(
            f"no module of {type(model).__name__} puts out a map (N, C, H, W) larger than 1 x 1 for "
            f"input_size={input_size}. Take larger images, or a convolutional network."
        )
    return finished[-1]


def _note_maps(name: str, finished: list[str]) -> Any:
    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            finished.append(name)

    return note
