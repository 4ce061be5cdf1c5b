"""The control of a comparison: the plain network, widened to the parameter count of the one with attention."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cbam.errors import CBAMError
from cbam.preserve_state import preserve_state, probe_input


def match_parameters(model: nn.Module, target_parameters: int, *, tolerance: float = 0.01) -> nn.Module:
    """Add channels inside the residual blocks until the model has about `target_parameters` parameters.

    A block's inner channels (between conv1 and conv2, and between conv2 and conv3 of a bottleneck) grow in
    proportion to their number, as far as single channels allow. Its inputs and outputs, and so the rest of the
    network, stay as they are. The new channels' weights have the standard deviation of the old ones (drawn from
    torch's global generator), and the weights that read them start at zero: at first the output is that of the plain
    network, up to float rounding. Works for blocks with conv1, bn1, conv2, bn2 (and conv3, bn3) without groups, such
    as our ResNets and those of torchvision and timm, and for timm's inverted residuals. A copy of each block is
    widened first, and its outputs compared, to see whether the block qualifies.

    Parameters are replaced: create the optimizer afterwards.

    Args:
        model: changed in place.
        target_parameters: number of parameters to reach, more than the model has.
        tolerance: largest accepted |reached - target| / target.

    Returns:
        The same model.

    Raises:
        CBAMError: if there is no such block, or no width is close enough; the model is then unchanged.

    >>> from cbam.models import build_model
    >>> net = build_model("resnet20", 10)
    >>> before = sum(p.numel() for p in net.parameters())
    >>> after = sum(p.numel() for p in match_parameters(net, before + 3000).parameters())
    >>> before, after
    (269722, 272756)
    """
    current = sum(parameter.numel() for parameter in model.parameters())
    if target_parameters <= current:
        raise CBAMError(
            f"match_parameters can only add parameters: the target of {target_parameters:,} is not above the "
            f"{current:,} that the model has."
        )
    joints = _find_joints(model)
    extra = _distribute(joints, target_parameters - current)
    reached = current + _added(joints, extra)
    if abs(reached - target_parameters) > tolerance * target_parameters:
        raise CBAMError(
            f"cannot widen {type(model).__name__} to {target_parameters:,} parameters within {tolerance:.2%}: the "
            f"closest with whole channels is {reached:,}. Give a larger tolerance."
        )
    with torch.no_grad():
        for joint, channels in zip(joints, extra, strict=True):
            if channels:
                joint.grow(channels)
    return model


@dataclass(frozen=True)
class _Joint:
    """The channels between two convolutions, with the batch norm between them.

    In an inverted residual there is also a depthwise convolution and its norm.
    """

    before: nn.Conv2d
    norm: _BatchNorm
    after: nn.Conv2d
    depthwise: nn.Conv2d | None = None
    depthwise_norm: _BatchNorm | None = None

    @property
    def width(self) -> int:
        return self.before.out_channels

    def channel_cost(self, extra_in: int, extra_out: int) -> int:
        """Parameters of one more channel, if its neighbours have grown by `extra_in` and `extra_out`."""
        rows = (self.before.in_channels + extra_in) * _area(self.before) + (self.before.bias is not None)
        if self.depthwise is not None:
            rows += _area(self.depthwise) + (self.depthwise.bias is not None)
        affine = sum(p.numel() for norm in self._norms for p in norm.parameters()) // self.norm.num_features
        return rows + affine + (self.after.out_channels + extra_out) * _area(self.after)

    @property
    def _norms(self) -> list[_BatchNorm]:
        return [self.norm] if self.depthwise_norm is None else [self.norm, self.depthwise_norm]

    def grow(self, channels: int) -> None:
        _grow_rows(self.before, channels)
        if self.depthwise is not None:
            _grow_rows(self.depthwise, channels)
            self.depthwise.in_channels += channels
            self.depthwise.groups += channels
        for norm in self._norms:
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                _append(norm, name, self.before.weight.new_full((channels,), value))
            norm.num_features += channels
        columns = self.after.weight
        _append(self.after, "weight", torch.zeros_like(columns[:, :1]).repeat(1, channels, 1, 1), axis=1)
        self.after.in_channels += channels


def _grow_rows(conv: nn.Conv2d, channels: int) -> None:
    old = conv.weight
    rows = torch.empty((channels, *old.shape[1:]), dtype=old.dtype, device=old.device)
    _append(conv, "weight", rows.normal_(std=float(old.std())))
    _append(conv, "bias", old.new_zeros(channels))
    conv.out_channels += channels


def _append(module: nn.Module, name: str, new: Tensor, axis: int = 0) -> None:
    old = getattr(module, name)
    if old is None:
        return
    grown = torch.cat([old.detach(), new.to(old.dtype)], dim=axis)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(grown, requires_grad=old.requires_grad))
    else:
        setattr(module, name, grown)


def _find_joints(model: nn.Module) -> list[_Joint]:
    looked_like = 0
    joints: list[_Joint] = []
    for block in model.modules():
        if next(_joints(block), None) is not None:
            looked_like += 1
            if _survives_widening(block):
                joints += _joints(block)
    if not joints:
        found = f"{looked_like} blocks look like one, but have" if looked_like else "no block has"
        which = "grouped convolutions or other parts between" if looked_like else "conv1, bn1, conv2, bn2"
        raise CBAMError(
            "match_parameters supports residual blocks with plain convolutions conv1, conv2[, conv3] and batch norms "
            f"bn1, bn2[, bn3], and timm's inverted residuals; in this {type(model).__name__} {found} {which}. "
            "Leave out the parameter-matched control (no 'control' in --attention), or compare on a ResNet."
        )
    return joints


def _joints(block: nn.Module) -> Iterator[_Joint]:
    for number in (1, 2):
        before = getattr(block, f"conv{number}", None)
        norm = getattr(block, f"bn{number}", None)
        after = getattr(block, f"conv{number + 1}", None)
        if isinstance(before, nn.Conv2d) and isinstance(norm, _BatchNorm) and isinstance(after, nn.Conv2d):
            yield _Joint(before, norm, after)
    inverted = [getattr(block, name, None) for name in ("conv_pw", "bn1", "conv_pwl", "conv_dw", "bn2")]
    before, norm, after, depthwise, second = inverted
    if all(isinstance(conv, nn.Conv2d) for conv in (before, after, depthwise)) and all(
        isinstance(one, _BatchNorm) for one in (norm, second)
    ):
        yield _Joint(before, norm, after, depthwise, second)  # type: ignore[arg-type]


def _survives_widening(block: nn.Module) -> bool:
    """Whether one more channel in every joint leaves the block's output unchanged."""
    twin = copy.deepcopy(block)
    joints = list(_joints(twin))
    if any(type(conv) is not nn.Conv2d or conv.groups != 1 for j in joints for conv in (j.before, j.after)):
        return False
    with torch.no_grad(), preserve_state(twin):
        x = probe_input(twin, (1, joints[0].before.in_channels, 9, 9))
        x += torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)
        try:
            expected = twin(x.clone())
            for joint in joints:
                joint.grow(1)
            widened = twin(x.clone())
        except Exception:
            # Somebody else's block may raise anything; it just cannot be widened this way.
            return False
    if not isinstance(expected, Tensor):
        return False
    return bool((expected - widened).abs().max() <= 0.01 * expected.abs().max())


def _distribute(joints: list[_Joint], budget: int) -> list[int]:
    """Choose how many channels each joint gains: in proportion to its width, near the budget, at least one in total."""
    extra = [0] * len(joints)
    neighbours = _neighbours(joints)
    queue = [(0.5 / joint.width, index) for index, joint in enumerate(joints)]
    heapq.heapify(queue)
    remaining = budget
    while queue:
        _, index = heapq.heappop(queue)
        price = _price(joints, extra, neighbours, index)
        if price <= remaining:
            extra[index] += 1
            remaining -= price
            heapq.heappush(queue, ((extra[index] + 0.5) / joints[index].width, index))
    prices = [_price(joints, extra, neighbours, index) for index in range(len(joints))]
    cheapest = prices.index(min(prices))
    if not any(extra) or prices[cheapest] - remaining < remaining:
        extra[cheapest] += 1
    return extra


def _neighbours(joints: list[_Joint]) -> list[tuple[int | None, int | None]]:
    """For each joint, the indices of the joints that end and begin at its convolutions (in a bottleneck, the other)."""
    ends = {joint.after: index for index, joint in enumerate(joints)}
    begins = {joint.before: index for index, joint in enumerate(joints)}
    return [(ends.get(joint.before), begins.get(joint.after)) for joint in joints]


def _price(
    joints: list[_Joint], extra: list[int], neighbours: list[tuple[int | None, int | None]], index: int
) -> int:
    left, right = neighbours[index]
    return joints[index].channel_cost(
        extra[left] if left is not None else 0, extra[right] if right is not None else 0
    )


def _added(joints: list[_Joint], extra: list[int]) -> int:
    # One joint after another, so that weights shared by two grown neighbours are counted once.
    neighbours = _neighbours(joints)
    so_far = [0] * len(joints)
    total = 0
    for index, channels in enumerate(extra):
        total += channels * _price(joints, so_far, neighbours, index)
        so_far[index] = channels
    return total


def _area(conv: nn.Conv2d) -> int:
    return conv.kernel_size[0] * conv.kernel_size[1]
