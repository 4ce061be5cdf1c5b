"""Turn the gates of the identity start into the paper's plain ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError
from cbam.nn import CBAM, SpatialAttention
from cbam.nn.base import AttentionModule, Gate

# Modules whose output is linear in (weight, bias), so that scaling both scales the output. By exact type:
# a subclass may do more, such as timm's batch norms with an activation.
_LINEAR_HOSTS = (
    nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.Conv2d, nn.BatchNorm1d, nn.Conv1d, nn.BatchNorm3d, nn.Conv3d,
)  # fmt: skip


def fold_gate_scale(model: nn.Module) -> int:
    """Move each gate's factor 2 into the host before it, and a spatial gate's divisor into its kernel, in place.

    After `attach(init="identity")` each gate is 2 sigmoid(z). With the host's weight and bias times 4 (2 for a
    single gate) and the weights that read the map divided by what the map grew by, the plain sigmoid gives the same
    numbers; a number that divides the spatial logits divides the kernel instead. All these factors are powers of two,
    so nothing is rounded; with another number from `SpatialAttention.set_divisor` outputs agree to the last digits.
    The state dict then is in the paper's form, without `gate_scale` and `variance`, as other code expects it.

    Do it after training: the learning rates seen by the folded weights change. And do it last: the hosts keep the
    factor, so `detach` and `disabled` afterwards leave a network whose branches are up to 4 times as large, not the
    plain one.

    Args:
        model: with attached attention.

    Returns:
        How many sites were folded.

    Raises:
        CBAMError: nothing to fold; a host that cannot take the factor; a weight that would overflow or lose bits
            in its dtype. The model is then unchanged.

    >>> from torchvision.models import resnet18
    >>> from cbam import attach
    >>> model, image = resnet18().eval(), torch.rand(1, 3, 64, 64)
    >>> _ = attach(model)
    >>> before = model(image)
    >>> fold_gate_scale(model), torch.allclose(model(image), before)
    (8, True)
    """
    attached = [(name, module) for name, module in model.named_modules() if isinstance(module, WithAttention)]
    sites = [(name, site) for name, site in attached if _scale(site) is not None]
    if not sites:
        raise CBAMError(
            f"{type(model).__name__} has no attached attention with scaled gates: nothing to fold."
        )
    scaled: list[tuple[Tensor, Tensor]] = []
    for name, site in sites:
        for parameter, factor in _factors(name, site):
            value = parameter.detach() * factor
            if not _is_exact(parameter.detach(), value, factor):
                raise CBAMError(
                    f"a weight at site {name!r} times {factor:g} does not fit {parameter.dtype}."
                    " Fold in float32, before model.half()."
                )
            scaled.append((parameter, value))
    with torch.no_grad():
        for parameter, value in scaled:
            parameter.copy_(value)
    for _, site in sites:
        for gate in _gates(site.cbam):
            gate.set_gate_scale(1.0)
            if isinstance(gate, SpatialAttention):
                gate.set_divisor(None)
    return len(sites)


def _is_exact(before: Tensor, after: Tensor, factor: float) -> bool:
    """Return whether a product has the bits of its factors; of others, the last digits of float32."""
    if math.frexp(factor)[0] == 0.5:  # a power of two
        return torch.equal(after / factor, before)
    return before.dtype.itemsize >= 4 and torch.allclose(after / factor, before, rtol=1e-6, atol=0.0)


def _gates(attention: AttentionModule) -> list[Gate]:
    if isinstance(attention, CBAM):
        return list(attention.gates)
    return [attention] if isinstance(attention, Gate) else []


def _scale(site: WithAttention) -> Tensor | None:
    return next((gate.gate_scale for gate in _gates(site.cbam)), None)


def _factors(name: str, site: WithAttention) -> list[tuple[Tensor, float]]:
    """Return each parameter at the site with the factor that it takes; a kernel's own divisor is in its own."""
    host, gates = site.host, _gates(site.cbam)
    if site.position != "output" or type(host) not in _LINEAR_HOSTS or host.weight is None:
        raise CBAMError(
            f"site {name!r} cannot be folded: its host {type(host).__name__} has no weight and bias that scale its"
            f" output. Foldable hosts: {', '.join(t.__name__ for t in _LINEAR_HOSTS)}."
        )
    one_gate = isinstance(site.cbam, CBAM) and site.cbam.arrangement == "parallel"
    scale = float(gates[0].gate_scale if gates[0].gate_scale is not None else 1.0)
    grown = scale if one_gate else scale ** len(gates)  # what the map in front of the first gate grows by
    factors = [(p, grown) for p in (host.weight, host.bias) if isinstance(p, Tensor)]
    for gate in gates:
        variance = gate._buffers.get("variance")
        root = 1.0 if variance is None else float(variance) ** 0.5
        factors.append((gate.reading_weight, 1.0 / grown / root))
        if not one_gate:
            grown /= scale  # the first gate now is smaller by its factor, and so is the map behind it
    return factors
