"""The spatial gate ("where")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cbam.errors import CBAMError, unknown_name
from cbam.nn import norms
from cbam.nn.base import CONVOLUTIONS, SWITCHES, Gate, positive_int, tensor_of, weight_is_all
from cbam.nn.keywords import checked_keywords
from cbam.ops import reference
from cbam.ops.dims import as_image_kernel
from cbam.ops.signature import ACTIVATIONS, DESCRIPTORS, NO_CHANNEL_GATE, OperatorConfig, Weights

_EARLIER_VARIANCE = "fan_in"  # the buffer's name in development versions of 0.1


@checked_keywords()
class SpatialAttention(Gate):
    """Scale each position by a gate computed from the mean and the maximum over its channels.

    Ms(F) = sigmoid(f_kxk([mean_c(F); max_c(F)])) and F' = Ms(F) * F; equation (3) of Woo et al., ECCV 2018.
    The authors' code differs: it puts a batch norm after the convolution and the maximum first
    (`spatial_norm=True, descriptor_order="max-avg"`, as in the preset "official").

    Args:
        kernel_size: k, odd; 7 in the paper. The kernel has k^dims positions.
        spatial_descriptor: "both" (paper), "avg", "max", or "conv": a learned 1x1 convolution,
            which needs `in_channels`.
        descriptor_order: "avg-max" (paper) or "max-avg".
        spatial_norm: a batch norm of one channel after the convolution.
        norm_momentum, norm_weight: its momentum and initial weight.
        in_channels: C; needed for "conv", otherwise only checked against the map if given.
        gate: "sigmoid" or "hardsigmoid".
        gate_scale: factor on the gate; 2 makes zero weights the identity.
        dims: 1 for maps (N, C, L), 2 for (N, C, H, W), 3 for (N, C, D, H, W).
        device, dtype: of the weights.

    After `set_identity` of a gate without a norm the logits are divided by a number, 32 for k = 7: see `set_divisor`.

    Shape: (N, C, H, W) in, or with `dims` sizes; the same out. With `in_channels`, which tells them from a batch of
    fewer dimensions, also single maps (C, H, W).

    Raises:
        CBAMError: an even kernel, an unknown descriptor, order or gate, a map that does not fit.

    >>> SpatialAttention(kernel_size=3)(torch.rand(2, 64, 7, 7)).shape
    torch.Size([2, 64, 7, 7])
    """

    axis = "spatial"
    _own_weight = "conv.weight"

    def __init__(
        self,
        kernel_size: int = 7,
        *,
        spatial_descriptor: str = "both",
        descriptor_order: str = "avg-max",
        spatial_norm: bool = False,
        norm_momentum: float = 0.1,
        norm_weight: float = 1.0,
        in_channels: int | None = None,
        gate: str = "sigmoid",
        gate_scale: float = 1.0,
        dims: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        _check(kernel_size, spatial_descriptor, descriptor_order, in_channels, gate)
        super().__init__(gate, gate_scale, dims)
        self.in_channels = in_channels
        self.spatial_descriptor = spatial_descriptor
        self.descriptor_order = descriptor_order
        self.norm_weight = norm_weight
        factory = {"device": device, "dtype": dtype}
        if spatial_descriptor == "conv":
            assert in_channels is not None
            self.descriptor = CONVOLUTIONS[dims](in_channels, 1, 1, bias=False, **factory)
        maps = 2 if spatial_descriptor == "both" else 1
        self.conv = CONVOLUTIONS[dims](maps, 1, kernel_size, padding=kernel_size // 2, bias=False, **factory)
        self.register_buffer("variance", None)
        self.norm: nn.modules.batchnorm._BatchNorm | None = None
        if spatial_norm:
            self.norm = norms.BATCH_NORMS[dims](1, momentum=norm_momentum, **factory)
            nn.init.constant_(self.norm.weight, norm_weight)

    @property
    def switches(self) -> dict[str, str]:
        """The activation, and what is read of each position, in which order."""
        order = {"descriptor_order": self.descriptor_order} if self.spatial_descriptor == "both" else {}
        return {**super().switches, "spatial_descriptor": self.spatial_descriptor, **order}

    def logits(self, x: Tensor) -> Tensor:
        """Return the gate before its activation, (N, 1, H, W) or with `dims` sizes, in float32 or float64."""
        z = self._convolved(x)
        if self.norm is None:
            variance = self._buffers.get("variance")  # not in modules that were pickled before there was one
            return z if variance is None else reference.over_root(z, variance)
        if isinstance(z, torch.fx.Proxy):  # a traced model sees batches, in the dtype of its weights
            return self.norm(z)
        batch = z.unsqueeze(0) if z.dim() == self.dims + 1 else z  # nn.BatchNorm2d takes no unbatched maps
        own = z.dtype if self.norm.weight is None else self.norm.weight.dtype
        try:
            return self.norm(batch.to(own)).to(z.dtype).view_as(z)
        except (ValueError, RuntimeError) as error:
            told = self._norm_error(batch, error)
            if told is None:
                raise
            raise told from error

    def _norm_error(self, batch: Tensor, error: Exception) -> CBAMError | None:
        """Return an error that says what to do, where the norm's own one would not."""
        where = f" at {self.site!r}" if self.site else ""
        if isinstance(error, ValueError) and batch.numel() == 1:
            return CBAMError(
                f"the norm of the spatial gate{where} cannot take the statistics of one value: a map of 1 x 1 and a"
                " single image in training. Use larger batches or images, leave the site out, exclude=..., or the"
                " norm, spatial_norm=False."
            )
        if isinstance(error, RuntimeError) and torch._C._are_functorch_transforms_active():
            return CBAMError(
                f"torch.func cannot update the running statistics of the spatial gate's norm{where} in training. Call"
                " model.eval(), or take them away: torch.func.replace_all_batch_norm_modules_(model). torch.func.grad"
                " also works where the buffers are arguments of functional_call."
            )
        return None

    def _convolved(self, x: Tensor) -> Tensor:
        """Return the gate before its norm; calls a layer if it is hooked, wrapped or replaced."""
        as_built = isinstance(x, torch.fx.Proxy)
        if (
            self.spatial_descriptor == "conv"
            and not as_built
            and not weight_is_all(self.descriptor, CONVOLUTIONS[self.dims])
        ):
            maps = _called(self.descriptor, x, reference.accumulation_dtype(x.dtype))
        else:
            kernel = self.descriptor.weight if self.spatial_descriptor == "conv" else None
            maps = reference.spatial_descriptor(
                x, self.spatial_descriptor, self.descriptor_order, kernel, self.dims
            )
        if as_built or weight_is_all(self._modules["conv"], CONVOLUTIONS[self.dims]):
            return reference.spatial_conv(maps, self.conv.weight)
        return _called(self.conv, maps, maps.dtype)

    def operator_weights(self, x: Tensor | None = None) -> Weights | str:
        """Return the tensors for the fused operator, or why it cannot compute this gate."""
        tensors = self.operator_tensors(x)
        return tensors if isinstance(tensors, str) else Weights(*NO_CHANNEL_GATE, *tensors)

    def operator_tensors(self, x: Tensor | None = None) -> tuple[Tensor | None, ...] | str:
        """Return kernel, norm and scale in the operator's order, or why it cannot compute this gate."""
        modules: dict[str, Any] = self._modules
        if self.spatial_descriptor == "conv":
            return "its learned descriptor runs in plain torch"
        if not weight_is_all(modules["conv"], CONVOLUTIONS[self.dims]):
            return "the spatial convolution has hooks or was replaced"
        if self.has_own_gate(SpatialAttention):
            return f"{type(self).__name__} overrides the gate"
        norm, weight = modules.get("norm"), tensor_of(modules["conv"], "weight")
        scale, variance = self._buffers["gate_scale"], self._buffers.get("variance")
        kernel = weight if self.dims == 2 or weight is None else as_image_kernel(weight, self.dims)
        if kernel is None:
            return f"its spatial convolution of {self.dims} dimensions runs in plain torch"
        if norm is None:
            return kernel, None, None, variance, None, scale
        if not norms.is_known(norm, self.dims):
            return f"the spatial norm, {type(norm).__name__}, has hooks or is not nn.BatchNorm{self.dims}d"
        if not norms.uses_batch(norm):
            mean, var = norm._buffers["running_mean"], norm._buffers["running_var"]
        elif x is not None and x.numel() <= x.shape[-self.dims - 1]:
            return "batch statistics of a single value"
        else:
            mean = var = None
        return kernel, tensor_of(norm, "weight"), tensor_of(norm, "bias"), var, mean, scale

    def operator_config(self) -> OperatorConfig:
        """Return the operator's numbers for this gate."""
        descriptor = DESCRIPTORS[self.spatial_descriptor, self.descriptor_order]
        norm: Any = self._modules.get("norm")
        if norm is None:
            return OperatorConfig(0, descriptor, ACTIVATIONS[self.activation], norm_eps=0.0)
        return OperatorConfig(0, descriptor, ACTIVATIONS[self.activation], norms.uses_batch(norm), norm.eps)

    def after_operator(self, x: Tensor, stats: Tensor) -> None:
        """Update the norm's running statistics, as its forward pass does in training."""
        norm: Any = self._modules.get("norm")
        if norm is not None and norm.training:
            norms.move_running(norm, stats[:1], stats[1:], x.numel() // x.shape[-self.dims - 1])

    def set_identity(self) -> None:
        """Zero the norm's weight, or the convolution where there is no norm, and double the gate.

        Without a norm the logits are divided by the power of two nearest to sqrt(10 fan-in) from now on, 32 for 7 x 7
        and both descriptors, so that the gate's first steps are as short as its neighbours': 10 is about the mean
        square of what the kernel reads, maxima over channels in one half and means near 0 in the other.
        """
        if self.norm is None:
            nn.init.zeros_(self.conv.weight)
            self.set_divisor(2.0 ** round(math.log2(10 * self.conv.weight[0].numel()) / 2))
        else:
            nn.init.zeros_(self.norm.weight)
            nn.init.zeros_(self.norm.bias)
        self.set_gate_scale(2.0)

    def set_divisor(self, divisor: float | None) -> None:
        """Divide the logits of a gate without a norm by a number; None, as in the paper, by nothing.

        sigmoid(conv(d, v) / a) is the same gate with v = a w in place of w: a step of SGD moves w by 1 / a^2 of what it
        moves at the same rate without, one of Adam by 1 / a. A buffer `variance`, a^2, in the state dict says so: it
        stands where a norm's variance would.
        """
        variance = None
        if divisor is not None:
            if self.norm is not None or not 0 < divisor < float("inf"):
                raise CBAMError(
                    f"set_divisor expects a positive number and a gate without a norm, got {divisor!r}"
                    f" and {'no norm' if self.norm is None else 'a norm, which divides already'}."
                )
            variance = torch.tensor(float(divisor) ** 2, device=self.conv.weight.device)
        self.register_buffer("variance", variance)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        if prefix + _EARLIER_VARIANCE in state_dict:
            state_dict[prefix + "variance"] = state_dict.pop(prefix + _EARLIER_VARIANCE)
        key = prefix + self._own_weight
        if key in state_dict:  # the file says what divides its logits
            self.set_divisor(1.0 if self.norm is None and prefix + "variance" in state_dict else None)
            own = self.switches.get("descriptor_order")
            theirs = local_metadata.get(SWITCHES, {}).get("descriptor_order", own)
            if own not in (None, theirs):
                errors: list[str] = args[-1]
                errors.append(
                    f"{key} is of a kernel that reads {theirs}, this one reads {own}. cbam.load_weights(model, file)"
                    " swaps its planes."
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if _EARLIER_VARIANCE in self._buffers:
            self._buffers["variance"] = self._buffers.pop(_EARLIER_VARIANCE)

    def extra_repr(self) -> str:
        """Show the options that the sub-modules do not show."""
        found = self._buffers.get("variance")
        divisor = "" if found is None else f", logits / {found.item() ** 0.5:g}"
        scale = "" if self.gate_scale is None else f", gate_scale={self.gate_scale.item():g}"
        both = f", descriptor_order={self.descriptor_order!r}" if self.spatial_descriptor == "both" else ""
        return (
            f"spatial_descriptor={self.spatial_descriptor!r}{both}, gate={self.activation!r}{scale}{divisor}"
        )


def _called(module: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return module(x) in the dtype of its weights, converted to `dtype`, without autocast."""
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), dtype)
    with reference.full_precision(x):
        return module(x.to(own)).to(dtype)


def _check(kernel_size: int, descriptor: str, order: str, in_channels: int | None, gate: str) -> None:
    if positive_int("kernel_size", kernel_size) % 2 == 0:
        raise CBAMError(
            f"kernel_size must be odd, so that the gate keeps the map's size; got {kernel_size}."
            f" The paper uses 7; nearest: {kernel_size - 1} or {kernel_size + 1}."
        )
    if descriptor not in reference.SPATIAL_DESCRIPTORS:
        raise unknown_name("spatial_descriptor", descriptor, reference.SPATIAL_DESCRIPTORS)
    if order not in reference.DESCRIPTOR_ORDERS:
        raise unknown_name("descriptor_order", order, reference.DESCRIPTOR_ORDERS)
    if gate not in reference.ACTIVATIONS:
        raise unknown_name("gate", gate, reference.ACTIVATIONS)
    if in_channels is not None:
        positive_int("in_channels", in_channels)
    elif descriptor == "conv":
        raise CBAMError(
            "spatial_descriptor='conv' is a learned 1x1 convolution: pass in_channels=C, the map's channels."
        )
