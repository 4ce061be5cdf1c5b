"""What every attention module here shares: argument checks, the off switch, the gate scale in the state dict."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from cbam.errors import CBAMError
from cbam.ops import checks, dispatch, fused, reference
from cbam.ops.plain import NormBefore, Settings, Weights

_NO_NORM = NormBefore()
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def positive_int(name: str, value: Any) -> int:
    """Return `value` if it is an integer of at least 1, otherwise raise with the argument's name."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise CBAMError(f"{name} expects an integer, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise CBAMError(f"{name} must be at least 1, got {value}.")
    return value


def is_hooked(module: nn.Module) -> bool:
    """Return whether hooks wait for this module to be called; those that only observe do not count."""
    # Written out and on the dicts themselves: it runs at every call.
    if not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return False
    return not all(
        getattr(hook, "observes_only", False) for name in _HOOKS for hook in getattr(module, name).values()
    )


def has_global_hooks() -> bool:
    """Return whether hooks wait for every module."""
    return bool(
        global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
    )


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Return whether calling `module` does what `kind` does and nothing else: no hooks, no wrapper, no subclass."""
    return type(module) is kind and not is_hooked(module) and "forward" not in vars(module)


def weight_is_all(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Return whether `module` is a plain `kind`, its weight possibly computed by a parametrisation."""
    if is_plain(module, kind):
        return True
    if module is None or type(module).__bases__ != (kind,):
        return False
    return "parametrizations" in module._modules and not is_hooked(module)


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """Return module.name, by the short way if that is a parameter: `nn.Module` searches for what it holds."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def is_like(map_: Any, x: Any) -> bool:
    """Return whether two maps are plain tensors of one shape, layout and type on one device.

    A sum of two layouts takes that of torch's choice, and what follows rounds by it: torch shall add them then.
    """
    if type(map_) not in (Tensor, nn.Parameter) or type(x) not in (Tensor, nn.Parameter):
        return False
    same_form = map_.shape == x.shape and map_.stride() == x.stride()
    return same_form and map_.dtype is x.dtype and map_.device == x.device


class AttentionModule(nn.Module):
    """Base of the attention modules: a map goes in, the gated map of the same shape, dtype and memory format comes out.

    `enabled = False` turns the module into the identity; `cbam.disabled(model)` sets it for a while.
    """

    enabled: bool = True
    needs_two_calls: bool = False
    in_channels: int | None = None
    built_as: tuple[str, dict[str, Any]] | None = None  # kind and options, see `cbam.nn.registry`
    qconfig: Any = None  # torch.ao.quantization leaves the gates in floating point

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        if isinstance(x, torch.fx.Proxy):
            return self._traced(x)
        checks.check_feature_map(x, type(self).__name__, self.in_channels)
        return self.attend(x) if self.enabled else x

    def attend(self, x: Tensor) -> Tensor:
        """Return the gated map of a checked input, by the fused operator where that can run."""
        if self.needs_two_calls:
            return self.attend_eagerly(x)  # where each gate goes its own way
        weights = self.operator_weights(x)
        if dispatch.can_fuse(x, weights):
            assert not isinstance(weights, str)
            y, stats = fused.attend(x, weights, self.operator_settings())
            self.after_operator(x, stats)
            return y
        return self.attend_eagerly(x)

    def attend_epilogue(self, x: Tensor, residual: Tensor, relu: bool) -> Tensor | None:
        """Return the gated map plus `residual`, then with a ReLU if asked for; None if that takes more than a call.

        Args:
            x: the map.
            residual: what is added, a map like x.
            relu: whether negative values become 0.
        """
        if torch.compiler.is_compiling() or self.needs_two_calls or not is_like(residual, x):
            return None
        if self.beside_operator() is not None:
            return None
        checks.check_feature_map(x, type(self).__name__, self.in_channels)
        weights = self.operator_weights(x)
        if not dispatch.can_fuse(x, weights):
            return None
        assert not isinstance(weights, str)
        return self.operate(x, weights, residual=residual, relu=relu)

    def beside_operator(self) -> str | None:
        """Return what a call of this module does that the operator does not; None if nothing."""
        if is_hooked(self):
            return "the attention has hooks"
        if has_global_hooks():
            return "there are hooks on all modules"
        if not self.enabled:
            return "the attention is switched off"
        cls, own = type(self), vars(self)
        if cls.forward is not AttentionModule.forward or cls.attend is not AttentionModule.attend:
            return f"{cls.__name__} has a forward of its own"
        if "forward" in own or "attend" in own:
            return "the attention's forward was replaced"
        return None

    def operate(
        self,
        x: Tensor,
        weights: Weights,
        before: NormBefore = _NO_NORM,
        batch_eps: float | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """Return what the operator gives for this module; to hooks that only observe it is a call of the module."""
        for hook in self._forward_pre_hooks.values():
            hook(self, (x,))
        settings = self.operator_settings()._replace(relu=relu)
        y, stats = fused.attend(x, weights, settings, before, batch_eps, residual)
        self.after_operator(x, stats)
        for hook in self._forward_hooks.values():
            hook(self, (x,), y)
        return y

    def attend_eagerly(self, x: Tensor) -> Tensor:
        """Return the gated map of a checked input, in plain torch."""
        raise NotImplementedError

    def operator_weights(self, x: Tensor | None = None) -> Weights | str:
        """Return the tensors that the fused operator takes for a map like x, or why it cannot compute this module."""
        return f"{type(self).__name__} has no fused operator"

    def operator_settings(self) -> Settings:
        """Return the operator's numbers for this module."""
        raise NotImplementedError

    def after_operator(self, x: Tensor, stats: Tensor) -> None:
        """Take note of the batch statistics that the operator computed on x, where there is a norm."""

    def _traced(self, x: Any) -> Any:
        """Put this module as a whole into a graph that `torch.fx` traces, so that the operator runs there too."""
        path = None
        if not is_hooked(self) and hasattr(x.tracer, "path_of_module"):
            with contextlib.suppress(NameError):  # not a part of what is traced
                path = x.tracer.path_of_module(self)
        if path:  # empty where this module itself is being traced
            return x.tracer.create_proxy("call_module", path, (x,), {})
        checks.check_feature_map(x, type(self).__name__, self.in_channels)
        return self.attend_eagerly(x) if self.enabled else x

    def set_identity(self) -> None:
        """Make the module return its input bit for bit, with every gate at the steepest point of its sigmoid."""
        raise NotImplementedError


class Gate(AttentionModule):
    """An attention module with one gate of its own, scale * activation(logits).

    A scale other than 1 is a buffer, `gate_scale`, so a state dict always says which function it holds. Weights
    that come without it are in the paper's form: the module then drops its scale.
    """

    _own_weight: str  # a weight that is in the state dict whenever this gate is
    gate_scale: Tensor | None

    def __init__(self, activation: str, gate_scale: float):
        super().__init__()
        self.activation = activation
        self.register_buffer("gate_scale", None)
        self.set_gate_scale(gate_scale)

    @property
    def reading_weight(self) -> Tensor:
        """The weight that reads the pooled map: the logits are linear in it up to the first ReLU."""
        return self.get_parameter(self._own_weight)

    def has_own_gate(self, kind: type[Gate]) -> bool:
        """Return whether somebody replaced what `kind` computes, in a subclass or on this object."""
        cls, own = type(self), vars(self)
        return cls.logits is not kind.logits or cls.gate is not kind.gate or "logits" in own or "gate" in own

    def logits(self, x: Tensor) -> Tensor:
        """Return the gate before its activation."""
        raise NotImplementedError

    def gate(self, x: Tensor) -> Tensor:
        """Return the gate itself, in float32 or float64."""
        return reference.gate(self.logits(x), self.activation, self.gate_scale)

    def attend_eagerly(self, x: Tensor) -> Tensor:
        """Return x times its gate, in plain torch."""
        return reference.apply_gate(x, self.gate(x))

    def set_identity(self) -> None:
        """Zero the weight that makes the logits, and double the gate: 2 * sigmoid(0) = 1."""
        nn.init.zeros_(self.reading_weight)
        self.set_gate_scale(2.0)

    def set_gate_scale(self, scale: float) -> None:
        """Set the factor on the gate."""
        device = next((p.device for p in self.parameters()), None)
        self.gate_scale = None if scale == 1.0 else torch.tensor(float(scale), device=device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if prefix + self._own_weight in state_dict:
            self.set_gate_scale(float(state_dict.get(prefix + "gate_scale", 1.0)))
        super()._load_from_state_dict(state_dict, prefix, *args)
