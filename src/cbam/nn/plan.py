"""A call of an attention module, decided once: where its tensors are, and the operator's numbers.

A decision holds while the modules are the same, of the same classes, with the same attributes and without hooks. All of
this is compared at each call, which takes a fraction of the time of deciding again; the tensors are read at each call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cbam.ops import dispatch, fused, gates
from cbam.ops.form import Form
from cbam.ops.fused import Call
from cbam.ops.signature import RESIDUAL, OperatorConfig

# The namespace of a module, which of its dicts, and a name in there: a dict may be replaced as a whole.
Place: TypeAlias = tuple[dict[str, Any], str, str]
_of_class = attrgetter(
    "forward", "attend", "operator_weights", "operator_config", "after_operator", "enabled"
)

_MOST = 4096  # detectors see maps of many sizes


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
        self._with_relu = config._replace(relu=True)
        self._inner = inner
        # What counts of torch's own layers is their class and their tensors; of a norm also its options.
        self._classes = list({type(m) for m in every if hasattr(type(m), "attend")})
        has_options = [type(m) in self._classes or isinstance(m, nn.BatchNorm2d) for m in every]
        self._options = [vars(m) for m, has in zip(every, has_options, strict=True) if has]
        self._layers = [vars(m) for m, has in zip(every, has_options, strict=True) if not has]
        self._parents = [vars(m) for m in every if m._modules]
        # Those of a module that is called by itself are run by torch.
        self._without_hooks = [vars(m) for m in (every if norm is not None else inner)]
        self._slots = _slots(every, tensors)
        self._where = tuple(self._slots[i] for i in sorted(self._slots))
        self._forms: dict[Any, Form] = {}
        self._absent = [
            (vars(m), kind, name)
            for m in every
            for kind in ("_parameters", "_buffers")
            for name, t in vars(m)[kind].items()
            if t is None
        ]
        self._count = len(tensors)
        self.complete = len(self._slots) == sum(t is not None for t in tensors) and not self._is_hooked()
        self._expected = self._read(attention)

    def _read(self, attention: nn.Module) -> list[Any]:
        found: list[Any] = [
            type(attention),
            *map(type, self._inner),
        ]  # flat, which is faster to make and to compare
        for parent in self._parents:
            found += parent["_modules"].values()
            found.append(None)
        for options in self._options:
            found += options.values()
            found.append(None)
        found += map(_of_class, self._classes)
        return found

    def _is_hooked(self) -> bool:
        for own in self._without_hooks:  # written out, since it runs at every call
            if (
                own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or own["_backward_hooks"]
                or own["_backward_pre_hooks"]
            ):
                return True
        return False

    def holds(self, attention: nn.Module, norm: nn.Module | None = None) -> bool:
        """Return whether deciding again would give the same."""
        if self.attention() is not attention or self._is_hooked():
            return False
        if norm is not (None if self.norm is None else self.norm()):
            return False
        for layer in self._layers:
            if "forward" in layer:
                return False
        for own, kind, name in self._absent:
            if own[kind].get(name) is not None:
                return False
        try:
            return self._read(attention) == self._expected
        except (RuntimeError, ValueError):  # something was compared that is neither equal nor different
            return False

    def call(
        self,
        x: Any,
        residual: Tensor | None = None,
        relu: bool = False,
        takes: Callable[[Tensor], bool] = bool,
        statistics: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Call | None:
        """Return the call for a map, None if it has to be decided anew.

        Args:
            x: the map.
            residual, relu: as the operator takes them; the residual is like x.
            takes: whether the modules take a map like x; asked once for each form of map.
            statistics: of the batch, for a norm in front.
        """
        operator = dispatch.operator_at_hand(x)
        if operator is None:
            return None
        form_of_x = operator, x.shape, x.stride(), x.dtype, x.get_device(), residual is None, relu
        form = self._forms.get(form_of_x)
        if form is None:
            if x.dtype not in dispatch.DTYPES or x.dim() != 4 or not (fused.is_dense(x) and takes(x)):
                return None
            tensors: list[Any] = [x, *[None] * self._count, residual]
            for i, (own, kind, name) in self._slots.items():
                tensors[1 + i] = own[kind].get(name)
            if statistics is not None:
                tensors[RESIDUAL - 2 : RESIDUAL] = [x.new_empty(x.shape[1], dtype=torch.float32)] * 2
            if len(self._forms) >= _MOST:
                self._forms.clear()
            form = self._forms[form_of_x] = operator.form(tensors, self._with_relu if relu else self.config)
        weights = [own[kind].get(name) for own, kind, name in self._where]
        addresses = form.addresses(x, weights)
        if addresses is None or not (residual is None or form.is_of_the_map(residual)):
            return None
        for j in form.constant:
            if weights[j].requires_grad:
                return None
        return Call(form, addresses, x, weights, residual, statistics)


class Plans:
    """The plans of a module: for a call of it alone, and for one together with the norm in front.

    They are kept in the module, but neither copied nor saved with it; nor is who listens to its gates.
    """

    __slots__ = ("alone", "behind_norm", "listeners")

    def __init__(self) -> None:
        self.alone: Plan | None = None
        self.behind_norm: Plan | None = None
        self.listeners: tuple[gates.Listener, ...] = ()

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


def _slots(modules: Sequence[nn.Module], tensors: Sequence[Tensor | None]) -> dict[int, Place]:
    """Return for each tensor, by its position, where it is kept; nothing for one that is kept in two places."""
    places: dict[int, list[Place]] = {}
    for m in modules:
        for kind in ("_parameters", "_buffers"):
            for name, t in vars(m)[kind].items():
                places.setdefault(id(t), []).append((vars(m), kind, name))
    found = {i: places.get(id(t), []) for i, t in enumerate(tensors) if t is not None}
    return {i: where[0] for i, where in found.items() if len(where) == 1}
