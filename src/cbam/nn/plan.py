"""A call of an attention module, decided once: where its tensors are, and the operator's numbers.

A decision holds while the modules are the same, of the same classes, with the same attributes and without hooks. All of
this is compared at each call, which takes a fraction of the time of deciding again; the tensors are read at each call.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from cbam.ops.signature import OperatorConfig

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_methods = attrgetter("forward", "attend", "operator_weights", "operator_config", "after_operator")


class Plan:
    """One decision.

    Args:
        attention: the module; a plan is of no use to a copy of it.
        norm: the norm in front, part of the same call; None for a call of the module alone.
        tensors: of the operator, in its order; a None at the end may stand for statistics of the batch.
        config: the operator's numbers.
    """

    def __init__(
        self,
        attention: nn.Module,
        norm: nn.Module | None,
        tensors: Sequence[Tensor | None],
        config: OperatorConfig,
    ):
        inner = list(attention.modules())[1:]
        every = [attention, *inner] if norm is None else [attention, norm, *inner]
        # The two modules that are given are not held: they hold the plan, or nobody does.
        self.attention, self.norm = weakref.ref(attention), None if norm is None else weakref.ref(norm)
        self.config = config
        self.with_relu = config._replace(relu=True)
        self._inner = inner
        # What counts of torch's own layers is their class and their tensors; of a norm also its options.
        self._classes = list({type(m) for m in every if hasattr(type(m), "attend")})
        has_options = [type(m) in self._classes or isinstance(m, nn.BatchNorm2d) for m in every]
        self._options = [vars(m) for m, has in zip(every, has_options, strict=True) if has]
        self._layers = [vars(m) for m, has in zip(every, has_options, strict=True) if not has]
        self._children = [m._modules for m in every if m._modules]
        hooked = every if norm is not None else inner  # torch runs those of a module that is called by itself
        self._hooks = [getattr(m, name) for m in hooked for name in _HOOKS]
        self._slots = _slots(every, tensors)
        self._absent = [
            (d, key) for m in every for d in (m._parameters, m._buffers) for key, t in d.items() if t is None
        ]
        self._count = len(tensors)
        self.complete = len(self._slots) == sum(t is not None for t in tensors) and not any(self._hooks)
        self._expected = self._read(attention)
        self.exact: dict[Any, bool] = {}

    def _read(self, attention: nn.Module) -> tuple[Any, ...]:
        return (
            type(attention),
            [*map(type, self._inner)],
            [tuple(children.values()) for children in self._children],
            [tuple(options.values()) for options in self._options],
            [*map(_methods, self._classes)],
        )

    def holds(self, attention: nn.Module, norm: nn.Module | None = None) -> bool:
        """Return whether deciding again would give the same."""
        if any(self._hooks) or self.attention() is not attention:
            return False
        if norm is not (None if self.norm is None else self.norm()):
            return False
        for layer in self._layers:
            if "forward" in layer:
                return False
        for namespace, name in self._absent:
            if namespace.get(name) is not None:
                return False
        try:
            return self._read(attention) == self._expected
        except (RuntimeError, ValueError):  # something was compared that is neither equal nor different
            return False

    def tensors(self) -> list[Any] | None:
        """Return the operator's tensors as they are now; None if one is gone."""
        found: list[Any] = [None] * self._count
        for i, (namespace, name) in self._slots.items():
            tensor = found[i] = namespace.get(name)
            if tensor is None:
                return None
        return found


class Plans:
    """The plans of a module: for a call of it alone, and for one together with the norm in front.

    They are kept in the module, but neither copied nor saved with it.
    """

    __slots__ = ("alone", "behind_norm")

    def __init__(self) -> None:
        self.alone: Plan | None = None
        self.behind_norm: Plan | None = None

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


def plans_of(attention: nn.Module) -> Plans:
    """Return the plans of a module."""
    found = vars(attention).get("_plans")
    if found is None:
        found = vars(attention)["_plans"] = Plans()
    return found


def _slots(
    modules: Sequence[nn.Module], tensors: Sequence[Tensor | None]
) -> dict[int, tuple[dict[str, Any], str]]:
    """Return for each tensor, by its position, where it is kept as a parameter or a buffer."""
    places = {
        id(t): (namespace, name)
        for m in modules
        for namespace in (m._parameters, m._buffers)
        for name, t in namespace.items()
        if t is not None
    }
    return {i: places[id(t)] for i, t in enumerate(tensors) if t is not None and id(t) in places}
