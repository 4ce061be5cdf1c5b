"""The check of Adebayo et al. (NeurIPS 2018): a map that survives random weights does not show the network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.explain.cams import class_activation_maps
from cbam.models.cam_layer import cam_layer


class Randomised(NamedTuple):
    """How alike the maps are once everything from the output down to `module` is random.

    Attributes:
        module: the last one that was made random.
        similarity: Spearman's rank correlation with the maps of the trained network, mean over the images; 0 where a
            map became flat.
    """

    module: str
    similarity: float


def randomisation_check(
    model: nn.Module,
    images: Tensor,
    labels: Sequence[int],
    *,
    layer: str | None = None,
    method: str = "gradcam",
    steps: int = 8,
    seed: int = 0,
) -> list[Randomised]:
    """Make the weights random from the output down, one part after the other, and compare the maps each time.

    The maps of a method that explains the network lose their likeness to the first ones. Departs from the paper: a
    parameter gets normal values of its own mean and standard deviation, so that activations keep their size and norms
    their statistics; the modules are taken in `steps` groups.

    Args:
        model: left as it is; a copy is made random.
        images: (N, C, H, W), normalised.
        labels: N classes.
        layer, method: of the maps, see `class_activation_maps`.
        steps: groups of modules.
        seed: of the random weights.

    Raises:
        CBAMError: the model has no parameters, or no map can be computed.

    >>> from cbam.models import build_model
    >>> found = randomisation_check(build_model("resnet20", 10), torch.rand(2, 3, 32, 32), [0, 1], steps=3)
    >>> [each.module for each in found][-1], len(found)
    ('conv1', 3)
    """
    layer = layer or cam_layer(model, tuple(images.shape[1:]))  # type: ignore[arg-type]
    trained = class_activation_maps(model, layer, images, labels, method).heat.flatten(1).numpy()
    changed = copy.deepcopy(model)
    own = {name: list(module.parameters(recurse=False)) for name, module in changed.named_modules()}
    parts = [(name, parameters) for name, parameters in own.items() if parameters][::-1]
    if not parts:
        raise CBAMError(f"{type(model).__name__} has no parameters that could be made random.")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for group in np.array_split(np.arange(len(parts)), min(steps, len(parts))):
        for index in group:
            for parameter in parts[index][1]:
                _randomise(parameter, generator)
        maps = class_activation_maps(changed, layer, images, labels, method).heat.flatten(1).numpy()
        alike = [_alike(one, other) for one, other in zip(trained, maps, strict=True)]
        found.append(Randomised(parts[group[-1]][0], float(np.mean(alike))))
    return found


def _randomise(parameter: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        mean = parameter.float().mean()
        spread = parameter.float().std(correction=0)
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values.to(parameter.device) * spread + mean)


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)
