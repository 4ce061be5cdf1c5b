"""The base of all attention modules: argument checks, the switch to disable them, the gate scale in the state dict."""

from __future__ import annotations

import contextlib
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from cbam.errors import CBAMError
from cbam.nn.plan import Plan, plans_of
from cbam.ops import checks, dispatch, fused, gates, reference
from cbam.ops import dims as maps
from cbam.ops.signature import NormBefore, OperatorConfig, Weights

Convolution: TypeAlias = "nn.Conv1d | nn.Conv2d | nn.Conv3d"

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by dims
SWITCHES = "cbam"
"""Entry of an attention module in the `_metadata` of a state dict."""
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
    """Return whether a module has hooks, other than those that only observe."""
    # Written out, on the dicts themselves, since it runs at every call.
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
    """Return whether there are hooks on all modules."""
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
    """Return module.name; faster than `getattr` if that is a parameter."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def is_like(map_: Any, x: Any) -> bool:
    """Return whether two maps are plain tensors of one shape, layout and type on one device.

    Of two maps in different layouts, torch decides which one the sum has, and later rounding depends on it: the
    addition is then left to torch.
    """
    if type(map_) not in (Tensor, nn.Parameter) or type(x) not in (Tensor, nn.Parameter):
        return False
    same_form = map_.shape == x.shape and map_.stride() == x.stride()
    return same_form and map_.dtype is x.dtype and map_.device == x.device


class AttentionModule(nn.Module):
    """Base of the attention modules: they return the gated map in the shape, dtype and memory format of the input.

    `enabled = False` turns the module into the identity; `cbam.disabled(model)` does so for a block of code.
    """

    enabled: bool = True
    needs_two_calls: bool = False
    dims: int = 2  # how many sizes of a map follow its channels; not in files of earlier versions
    in_channels: int | None = None
    site: str = ""  # name of the module in front, where attached
    built_as: tuple[str, dict[str, Any]] | None = None  # kind and options, see `cbam.nn.registry`
    qconfig: Any = None  # torch.ao.quantization leaves the gates in floating point

    @property
    def switches(self) -> dict[str, str]:
        """What neither the names nor the shapes of the weights show; a state dict has it beside them."""
        return {}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        beside = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if beside is not None and self.switches:
            beside[SWITCHES] = self.switches

    @property
    def listeners(self) -> tuple[gates.Listener, ...]:
        """Who gets the gates of each call, see `cbam.attention_maps`; nobody in compiled code."""
        plans = None if torch.compiler.is_compiling() else self.__dict__.get("_plans")
        return () if plans is None else plans.listeners

    @listeners.setter
    def listeners(self, listeners: tuple[gates.Listener, ...]) -> None:
        plans_of(self).listeners = listeners

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        if not torch.compiler.is_compiling():
            y = self._as_planned(x)
            if y is not None:
                return y
            if isinstance(x, torch.fx.Proxy):
                return self._traced(x)
        checks.check_feature_map(x, type(self).__name__, self.in_channels, self.dims)
        return self.attend(x) if self.enabled else x

    def attend(self, x: Tensor) -> Tensor:
        """Return the gated map of a checked input, from the fused operator where that can run."""
        if self.needs_two_calls:
            return self.attend_eagerly(x)  # which calls the operator for each gate
        if self.dims != 2 and torch.compiler.is_compiling() and dispatch.is_exporting():
            return self.attend_eagerly(x)  # with a convolution of these dimensions
        weights = self.operator_weights(x)
        if dispatch.can_fuse(x, weights):
            assert not isinstance(weights, str)
            config = self.operator_config()
            self._decide(weights, config)
            y, stats = maps.attend(x, weights, config, self.dims, self.listeners)
            self.after_operator(x, stats)
            return y
        return self.attend_eagerly(x)

    def _decide(self, weights: Weights, config: OperatorConfig) -> None:
        """Plan further calls of this module alone."""
        if torch.compiler.is_compiling() or not self.enabled or self.dims != 2:
            return
        plans = plans_of(self)
        known = plans.alone
        if known is None or not known.holds(self):
            plan = Plan(self, None, (*weights, *_NO_NORM), config)
            plans.alone = plan if plan.complete else None

    def _as_planned(self, x: Any) -> Tensor | None:
        """Return the gated map as decided by an earlier call, None if this call has to be decided anew."""
        plans: Any = self.__dict__.get("_plans")
        plan: Plan | None = None if plans is None else plans.alone  # once: other threads may replace it
        if plan is None or not plan.holds(self):
            return None
        call = plan.call(x, takes=self._takes)
        if call is None:
            return None
        y, stats = call.run(plans.listeners)
        if plan.config.norm_training:
            self.after_operator(x, stats)
        return y

    def _takes(self, x: Tensor) -> bool:
        """Return whether a map has the module's channels, and more than one value if its statistics are taken."""
        if x.numel() <= x.shape[1] and self.operator_config().norm_training:
            return False
        return self.in_channels in (None, x.shape[1])

    def attend_epilogue(self, x: Tensor, residual: Tensor, relu: bool) -> Tensor | None:
        """Return the gated map plus `residual`, followed by a ReLU if asked for; None if one call cannot compute that.

        Args:
            x: the map.
            residual: map like x, added to the gated one.
            relu: whether a ReLU follows.
        """
        if self.needs_two_calls or not is_like(residual, x):
            return None
        if self.unfused_reason() is not None:
            return None
        checks.check_feature_map(x, type(self).__name__, self.in_channels)
        weights = self.operator_weights(x)
        if not dispatch.can_fuse(x, weights):
            return None
        assert not isinstance(weights, str)
        return self.operate(x, weights, residual=residual, relu=relu)

    def unfused_reason(self) -> str | None:
        """Return why the operator cannot stand in for a call of this module, whatever the map; None if it can."""
        if is_hooked(self):
            return "the attention has hooks"
        if has_global_hooks():
            return "there are hooks on all modules"
        if not self.enabled:
            return "the attention is switched off"
        if self.dims != 2:
            return f"a call with the norm in front, or with the epilogue, takes maps {maps.batched(2)}"
        cls, own = type(self), vars(self)
        if cls.forward is not AttentionModule.forward or cls.attend is not AttentionModule.attend:
            return f"{cls.__name__} overrides forward"
        if "forward" in own or "attend" in own:
            return "the attention's forward was replaced"
        return None

    def operate(
        self,
        x: Tensor,
        weights: Weights,
        before: NormBefore = _NO_NORM,
        pre: tuple[bool, float] = (False, 1e-5),
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """Return the operator's result for this module; hooks that only observe see a call of the module."""
        for hook in self._forward_pre_hooks.values():
            hook(self, (x,))
        config = self.operator_config()._replace(relu=relu, pre_training=pre[0], pre_eps=pre[1])
        y, stats = fused.attend(x, weights, config, before, residual, self.listeners)
        self.after_operator(x, stats)
        for hook in self._forward_hooks.values():
            hook(self, (x,), y)
        return y

    def attend_eagerly(self, x: Tensor) -> Tensor:
        """Return the gated map of a checked input, in plain torch."""
        raise NotImplementedError

    def operator_weights(self, x: Tensor | None = None) -> Weights | str:
        """Return the operator's tensors for a map like x, or why it cannot compute this module."""
        return f"{type(self).__name__} has no fused operator"

    def operator_config(self) -> OperatorConfig:
        """Return the operator's numbers for this module."""
        raise NotImplementedError

    def after_operator(self, x: Tensor, stats: Tensor) -> None:
        """Update running statistics from those of the batch x, where there is a norm."""

    def _traced(self, x: Any) -> Any:
        """Trace this module as one node of a `torch.fx` graph, so that the operator runs there too."""
        path = None
        if not is_hooked(self) and hasattr(x.tracer, "path_of_module"):
            with contextlib.suppress(NameError):  # not part of the traced module
                path = x.tracer.path_of_module(self)
        if path:  # empty if this module itself is being traced
            return x.tracer.create_proxy("call_module", path, (x,), {})
        checks.check_feature_map(x, type(self).__name__, self.in_channels, self.dims)
        return self.attend_eagerly(x) if self.enabled else x

    def __prepare_scriptable__(self) -> None:
        raise CBAMError(
            f"torch.jit.script cannot compile {type(self).__name__}: it chooses between the fused operator and plain"
            " torch in Python. Trace the model, torch.jit.trace(model.eval(), image), or export it,"
            " torch.export.export(model, (image,)). A traced model can be part of a scripted one."
        )

    def set_identity(self) -> None:
        """Make the module return its input bit for bit, with every gate at the steepest point of its sigmoid."""
        raise NotImplementedError


class Gate(AttentionModule):
    """An attention module with a single gate, scale * activation(logits).

    A scale other than 1 is a buffer, `gate_scale`, so a state dict always defines its function. Weights without it
    are in the paper's form: loading them removes the scale.
    """

    axis = "channel"  # or "spatial": what the gate has one number for
    _own_weight: str  # a weight that is in the state dict whenever this gate is
    gate_scale: Tensor | None

    def __init__(self, activation: str, gate_scale: float, dims: int = 2):
        super().__init__()
        self.dims = maps.check_dims(dims)
        self.activation = activation
        self.register_buffer("gate_scale", None)
        self.set_gate_scale(gate_scale)

    @property
    def switches(self) -> dict[str, str]:
        """The activation."""
        return {"gate": self.activation}

    @property
    def reading_weight(self) -> Tensor:
        """The weight that reads the pooled map: the logits are linear in it up to the first ReLU."""
        return self.get_parameter(self._own_weight)

    def has_own_gate(self, kind: type[Gate]) -> bool:
        """Return whether a subclass or this object overrides the gate of `kind`."""
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
        gate = self.gate(x)
        if self.listeners:
            found = {self.axis: gate}
            gates.hand_on(self.listeners, x, found.get("channel"), found.get("spatial"), self.dims)
        return reference.apply_gate(x, gate)

    def set_identity(self) -> None:
        """Zero the weight that makes the logits, and double the gate: 2 * sigmoid(0) = 1."""
        nn.init.zeros_(self.reading_weight)
        self.set_gate_scale(2.0)

    def set_gate_scale(self, scale: float) -> None:
        """Set the factor on the gate."""
        device = next((p.device for p in self.parameters()), None)
        self.gate_scale = None if scale == 1.0 else torch.tensor(float(scale), device=device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key = prefix + self._own_weight
        if key in state_dict:
            self.set_gate_scale(float(state_dict.get(prefix + "gate_scale", 1.0)))
            theirs, ours = state_dict[key].dim() - 2, self.reading_weight.dim() - 2
            if theirs != ours and theirs in maps.SIZES:
                errors: list[str] = args[-1]
                errors.append(
                    f"{key} is of a gate for maps {maps.batched(theirs)} (dims={theirs}), this one has dims={ours}."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
