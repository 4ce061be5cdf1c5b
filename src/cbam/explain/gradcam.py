"""Grad-CAM through torchcam, leaving the model as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchcam.methods import GradCAM

from cbam.errors import CBAMError, unknown_name
from cbam.preserve_state import preserve_state

# A sum over channels in float32 is uncertain by about this share of the terms' absolute sum.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class ClassActivationMaps:
    """Grad-CAM of a batch of N images.

    Attributes:
        heat: (N, h, w) float32 on the CPU, each map divided by its own maximum: 1 is the location with the most
            evidence for the class, 0 means none. A flat map is all zero.
        flat: whether a map is constant up to rounding (zero everywhere, or one value everywhere).
        probabilities: softmax of the scores at the given labels.
        predicted: the class with the highest score.
    """

    heat: Tensor
    flat: tuple[bool, ...]
    probabilities: tuple[float, ...]
    predicted: tuple[int, ...]


def class_activation_maps(
    model: nn.Module, layer: str, images: Tensor, labels: Sequence[int]
) -> ClassActivationMaps:
    """Compute Grad-CAM (Selvaraju et al. 2017): relu(sum over k of w_k A_k), w_k = mean over locations of dscore/dA_k.

    Works on networks with in-place operations and frozen parameters, and inside `torch.no_grad()`. Training flags,
    `requires_grad`, `.grad` and hooks are restored, even if the network raises. One difference from torchcam's
    normalised maps: the minimum is not subtracted, so a nearly constant map is not stretched into a pattern.

    Args:
        model: a classifier: (N, C, H, W) -> scores (N, K).
        layer: name of the module whose output is used; it must be a feature map (N, C, h, w).
        images: (N, C, H, W), normalised as for training; moved to the model's device and dtype.
        labels: N class indices.

    Raises:
        CBAMError: the layer does not exist, its output is not a feature map, or the score does not depend on it; wrong
            shapes; activations, scores or gradients that are not finite (the message says which).

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 3))
    >>> maps = class_activation_maps(net, "1", torch.rand(2, 1, 8, 8), [0, 2])
    >>> maps.heat.shape, net.training, net[0].weight.grad
    (torch.Size([2, 6, 6]), True, None)
    """
    module = _checked_layer(model, layer, images, labels)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        preserve_state(model),
        _gradients_kept(model),
        GradCAM(model, layer) as extractor,
        module.register_forward_hook(_checked_copy(layer)),
    ):
        scores = model(_differentiable(images, model))
        _check_scores(scores, labels)
        _check_finite(f"the output of layer {layer!r}", _recorded(extractor.hook_a, layer))
        _check_finite("the scores", scores)
        try:
            raw = extractor([int(label) for label in labels], scores, normalized=False)[0]
        except (RuntimeError, AttributeError) as error:  # the latter from torchcam 0.4
            if extractor.hook_g[0] is not None:
                raise
            raise CBAMError(
                f"the score does not depend on the output of layer {layer!r}: choose another layer"
            ) from error
        _check_finite(f"the gradient at layer {layer!r}", extractor.hook_g[0])
        heat, flat = _scaled(raw, extractor.hook_a[0], extractor.hook_g[0])
        probabilities = scores.detach().float().softmax(dim=1).cpu()
    return ClassActivationMaps(
        heat=heat.cpu(),
        flat=tuple(flat.tolist()),
        probabilities=tuple(probabilities[range(len(probabilities)), list(labels)].tolist()),
        predicted=tuple(probabilities.argmax(dim=1).tolist()),
    )


def _checked_layer(model: nn.Module, layer: str, images: Tensor, labels: Sequence[int]) -> nn.Module:
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise unknown_name("layer", layer, [name for name in modules if name])
    if images.ndim != 4 or len(labels) != len(images):
        raise CBAMError(
            f"expected images (N, C, H, W) and N labels; got images {tuple(images.shape)} and {len(labels)} labels"
        )
    return modules[layer]


def _scaled(raw: Tensor, activation: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each map by its maximum; return the maps, and which of them hold only rounding errors."""
    weights = gradient.float().flatten(2).mean(-1)[:, :, None, None]
    terms = (weights.abs() * activation.float().abs()).sum(1).amax((1, 2))
    raw = raw.float()
    highest = raw.amax((1, 2))
    flat = highest - raw.amin((1, 2)) <= _ROUNDING * terms
    divisor = torch.where(flat, torch.ones_like(highest), highest)[:, None, None]
    return torch.where(flat[:, None, None], torch.zeros_like(raw), raw / divisor), flat


@contextlib.contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """Restore the parameters' gradients afterwards: torchcam 0.4 (Python 3.10) zeroes and fills them."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _differentiable(images: Tensor, model: nn.Module) -> Tensor:
    """Return images that require a gradient, so that a frozen network has a graph too."""
    parameter = next(model.parameters(), None)
    copy = images.detach().clone()
    if parameter is not None:
        copy = copy.to(device=parameter.device, dtype=parameter.dtype)
    # Not a leaf: autograd would reject an in-place first operation on one.
    return copy.requires_grad_(True).clone()


def _checked_copy(layer: str) -> Callable[[nn.Module, Any, Any], Tensor]:
    """Make a hook that returns a copy of the output: torchcam 0.4 keeps the tensor, which may be overwritten later."""

    def check(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise CBAMError(
                f"layer {layer!r} must return a feature map (N, C, h, w) for Grad-CAM; it returns {found}"
            )
        return output.clone()

    return check


def _recorded(activations: Sequence[Tensor | None], layer: str) -> Tensor:
    activation = activations[0]
    if activation is None:
        raise CBAMError(f"layer {layer!r} did not run in the forward pass: choose another layer")
    return activation


def _check_scores(scores: Any, labels: Sequence[int]) -> None:
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(labels):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise CBAMError(f"expected the model to return scores ({len(labels)}, classes); it returns {found}")
    wrong = [label for label in labels if not 0 <= label < scores.shape[1]]
    if wrong:
        raise CBAMError(f"label {wrong[0]} is not one of the model's {scores.shape[1]} classes")


def _check_finite(what: str, values: Tensor) -> None:
    broken = ~torch.isfinite(values).flatten(1).all(dim=1)
    if broken.any():
        images = ", ".join(str(image) for image in broken.nonzero().flatten().tolist())
        raise CBAMError(
            f"{what}: values that are not finite (NaN or infinity) for image {images} of the batch"
        )
