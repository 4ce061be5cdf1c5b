"""Class activation maps through torchcam, leaving the model as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchcam import methods

from cbam.errors import CBAMError, unknown_name
from cbam.models.cam_layer import cam_layer
from cbam.models.classifier import last_layer
from cbam.preserve_state import preserve_state

# A sum over channels in float32 is uncertain by about this share of the terms' absolute sum.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class CamMethod:
    """A kind of class activation map.

    Attributes:
        title: as in its paper.
        extractor: its class in `torchcam.methods`.
        gradient: whether it needs the gradient of the score; otherwise it runs the model many times, or reads the
            weights of the classifier.
    """

    title: str
    extractor: str
    gradient: bool = True


# Not here: LeGrad, which is for transformers, and RefineCAM, which needs several layers.
METHODS: dict[str, CamMethod] = {
    "gradcam": CamMethod("Grad-CAM", "GradCAM"),
    "gradcam++": CamMethod("Grad-CAM++", "GradCAMpp"),
    "smoothgradcam++": CamMethod("Smooth Grad-CAM++", "SmoothGradCAMpp"),
    "xgradcam": CamMethod("XGrad-CAM", "XGradCAM"),
    "layercam": CamMethod("LayerCAM", "LayerCAM"),
    "finercam": CamMethod("Finer-CAM", "FinerCAM"),
    "scorecam": CamMethod("Score-CAM", "ScoreCAM", gradient=False),
    "sscam": CamMethod("SS-CAM", "SSCAM", gradient=False),
    "iscam": CamMethod("IS-CAM", "ISCAM", gradient=False),
    "cam": CamMethod("CAM", "CAM", gradient=False),
}


@dataclass(frozen=True)
class ClassActivationMaps:
    """Class activation maps of a batch of N images.

    Attributes:
        heat: (N, h, w) float32 on the CPU, each map divided by its own maximum: 1 is the location with the most
            evidence for the class, 0 means none. A flat map is all zero.
        flat: whether a map is constant up to rounding (zero everywhere, or one value everywhere).
        scores: (N, K) float32 on the CPU: what the model returned.
        probabilities: softmax of the scores at the given labels.
        predicted: the class with the highest score.
        layer: the module whose output was used.
    """

    heat: Tensor
    flat: tuple[bool, ...]
    scores: Tensor
    probabilities: tuple[float, ...]
    predicted: tuple[int, ...]
    layer: str


def class_activation_maps(
    model: nn.Module,
    layer: str | None,
    images: Tensor,
    labels: Sequence[int] | None = None,
    method: str = "gradcam",
) -> ClassActivationMaps:
    """Compute where the evidence for a class is; Grad-CAM (Selvaraju et al. 2017) by default.

    Grad-CAM is relu(sum over k of w_k A_k), w_k = mean over locations of dscore/dA_k. Works on networks with in-place
    operations and frozen parameters, and inside `torch.no_grad()`. Training flags, `requires_grad`, `.grad` and hooks
    are restored, even if the network raises. One difference from torchcam's normalised maps: the minimum is not
    subtracted, so a nearly constant map is not stretched into a pattern.

    Args:
        model: a classifier: (N, C, H, W) -> scores (N, K), also as the first entry of a tuple, or in a dict or an
            object as "logits".
        layer: name of the module whose output is used; it must be a feature map (N, C, h, w). None: the last map of
            the network, see `cam_layer`.
        images: (N, C, H, W), normalised as for training; moved to the model's device and dtype.
        labels: N class indices; None: the predicted ones.
        method: one of `METHODS`. Those with noise draw from torch's random numbers.

    Raises:
        CBAMError: an unknown method; the layer does not exist, its output is not a feature map, or the score does not
            depend on it; wrong shapes; activations, scores or gradients that are not finite (the message says which).

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 3))
    >>> maps = class_activation_maps(net, "1", torch.rand(2, 1, 8, 8), [0, 2])
    >>> maps.heat.shape, net.training, net[0].weight.grad
    (torch.Size([2, 6, 6]), True, None)
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    layer, module = _checked_layer(model, layer, images, labels)
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(METHODS[method].gradient),
        preserve_state(model),
        _gradients_kept(model),
        _extractor(model, module, method) as extractor,
        module.register_forward_hook(_checked_copy(layer)),
    ):
        scores = extractor.model(_differentiable(images, model))
        labels = _checked_labels(scores, labels)
        base = getattr(extractor, "base_cam", extractor)
        activation = _recorded(base.hook_a, layer)
        _check_finite(f"the output of layer {layer!r}", activation)
        _check_finite("the scores", scores)
        raw = _raw_maps(extractor, base, labels, scores, layer)
        gradient = base.hook_g[0] if method == "gradcam" else None
        heat, flat = _scaled(raw, activation, gradient)
        scores = scores.detach().float().cpu()
    probabilities = scores.softmax(dim=1)
    return ClassActivationMaps(
        heat=heat.cpu(),
        flat=tuple(flat.tolist()),
        scores=scores,
        probabilities=tuple(probabilities[range(len(probabilities)), labels].tolist()),
        predicted=tuple(probabilities.argmax(dim=1).tolist()),
        layer=layer,
    )


class ScoresOnly(nn.Module):
    """A model that returns its scores (N, K) alone; switching its mode leaves that of the model inside alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores; also from a tuple, a dict or an object of Hugging Face's transformers."""
        return scores_of(self.model(images))

    def train(self, mode: bool = True) -> ScoresOnly:
        """Change nothing: torchcam would call the `train` of the model, which may do more than set flags."""
        return self


def scores_of(output: Any) -> Tensor:
    """Return the scores in what a classifier returned.

    Raises:
        CBAMError: it returned no scores (N, K).

    >>> scores_of({"logits": torch.zeros(2, 5), "hidden": torch.zeros(2, 8)}).shape
    torch.Size([2, 5])
    """
    found = output
    if isinstance(found, Mapping):
        found = found.get("logits", found.get("out", next(iter(found.values()), None)))
    elif not isinstance(found, Tensor) and hasattr(found, "logits"):
        found = found.logits  # torchvision's Inception and GoogLeNet, transformers
    elif isinstance(found, (tuple, list)):
        found = next(iter(found), None)
    if not isinstance(found, Tensor) or found.ndim != 2:
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise CBAMError(
            f"expected a classifier, which returns scores (images, classes); the model returns {shown}."
        )
    return found


def _extractor(model: nn.Module, module: nn.Module, method: str) -> Any:
    whole = ScoresOnly(model)
    options: dict[str, Any] = {}
    if method == "cam":
        last = last_layer(model)
        if last is None:
            raise CBAMError(
                f"method 'cam' reads the weights of a classifier; {type(model).__name__} has none."
            )
        options["fc_layer"] = last[1]
    kind = getattr(methods, METHODS[method].extractor, None)
    if kind is None:
        raise CBAMError(f"method {method!r} needs a newer torchcam: pip install -U torchcam")
    return kind(whole, module, **options)


def _raw_maps(extractor: Any, base: Any, labels: list[int], scores: Tensor, layer: str) -> Tensor:
    """Return the maps (N, h, w) before they are scaled."""
    try:
        raw = extractor(labels, scores, normalized=False)[0]
    except (RuntimeError, AttributeError) as error:  # the latter from torchcam 0.4
        if not hasattr(base, "_hook_g") or base.hook_g[0] is not None:
            if isinstance(extractor, methods.CAM):
                raise CBAMError(
                    f"method 'cam' needs a layer whose channels the classifier reads; {layer!r} is none ({error})."
                ) from error
            raise
        raise CBAMError(
            f"the score does not depend on the output of layer {layer!r}: choose another layer"
        ) from error
    if hasattr(base, "_hook_g"):
        _check_finite(f"the gradient at layer {layer!r}", base.hook_g[0])
    _check_finite("the map", raw)
    return raw


def _checked_layer(
    model: nn.Module, layer: str | None, images: Tensor, labels: Sequence[int] | None
) -> tuple[str, nn.Module]:
    if images.ndim != 4 or (labels is not None and len(labels) != len(images)):
        count = "no" if labels is None else len(labels)
        raise CBAMError(
            f"expected images (N, C, H, W) and N labels; got images {tuple(images.shape)} and {count} labels"
        )
    if layer is None:
        layer = cam_layer(model, tuple(images.shape[1:]))  # type: ignore[arg-type]
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise unknown_name("layer", layer, [name for name in modules if name])
    return layer, modules[layer]


def _scaled(raw: Tensor, activation: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Divide each map by its maximum; return the maps, and which of them hold only rounding errors."""
    raw = raw.float().clamp_min(0)
    highest = raw.amax((1, 2))
    terms = highest
    if gradient is not None:
        weights = gradient.float().flatten(2).mean(-1)[:, :, None, None]
        terms = (weights.abs() * activation.float().abs()).sum(1).amax((1, 2))
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


def _checked_labels(scores: Tensor, labels: Sequence[int] | None) -> list[int]:
    if labels is None:
        return scores.detach().argmax(1).tolist()
    wrong = [label for label in labels if not 0 <= label < scores.shape[1]]
    if wrong:
        raise CBAMError(f"label {wrong[0]} is not one of the model's {scores.shape[1]} classes")
    return [int(label) for label in labels]


def _check_finite(what: str, values: Tensor) -> None:
    broken = ~torch.isfinite(values).flatten(1).all(dim=1)
    if broken.any():
        images = ", ".join(str(image) for image in broken.nonzero().flatten().tolist())
        raise CBAMError(
            f"{what}: values that are not finite (NaN or infinity) for image {images} of the batch"
        )
