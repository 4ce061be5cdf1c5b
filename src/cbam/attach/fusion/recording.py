"""Record a block's forward pass as a graph, and refuse every forward pass that a graph might not show in full.

The forward function runs once on placeholders, with a stand-in for `self` that notes each attribute it reads: the graph
is valid as long as these attributes are unchanged. Modules are leaves, except those that contain the site. Unlike
`torch.fx.symbolic_trace` this patches nothing global, so other threads may use the model at the same time.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer
from torch.overrides import TorchFunctionMode

_ABSENT = object()
_BUILTINS = {"len", "range", "enumerate", "zip", "tuple", "list", "int", "float", "reversed", "getattr"}
# Instructions that write somewhere, or depend on more than their operands.
_REFUSED_INSTRUCTIONS = (
    "STORE_ATTR",
    "STORE_SUBSCR",
    "STORE_GLOBAL",
    "DELETE_ATTR",
    "IMPORT_",
    "SETUP_",
    "YIELD",
)
# torch.is_grad_enabled, torch.set_grad_enabled, torch.get_default_dtype, torch.manual_seed
_REFUSED_NAMES = ("is_", "set_", "get_", "manual_")
_ALLOWED_NAMES = ("is_scripting", "is_tracing")
_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")


class Unclear(Exception):
    """The forward pass does something that a graph does not show."""


@dataclass(frozen=True)
class Recording:
    """What a forward pass did.

    Args:
        nodes: of its graph, from its one argument to its one result; empty if it cannot be recorded.
        calls: those that call the site.
        entered: the modules between the block and the site; their forward passes are in the graph.
        reads: the attributes it read, as (namespace, name, value).
        lengths: of the containers it iterated over.
    """

    nodes: tuple[fx.Node, ...]
    calls: tuple[fx.Node, ...]
    entered: tuple[nn.Module, ...]
    reads: tuple[tuple[dict[str, Any], str, Any], ...]
    lengths: tuple[tuple[dict[str, Any], int], ...]

    def holds(self) -> bool:
        """Return whether the forward pass would read the same values again."""
        for namespace, name, value in self.reads:
            if namespace.get(name, _ABSENT) is not value:
                return False
        return all(len(namespace) == length for namespace, length in self.lengths)


def record(block: nn.Module, forward: Callable[..., Any], site: nn.Module) -> Recording:
    """Record `forward`, a function of the block's class, for one argument.

    Args:
        block: any module; it is neither changed nor called.
        forward: the function that would be called with it.
        site: a module inside it; the modules that contain it are recorded as well.
    """
    recorder = _Recorder(site)
    try:
        with _OnlyOnPlaceholders():
            result = recorder.enter(block, "", forward, (recorder.proxy(recorder.graph.placeholder("x")),))
        if type(result) is not _Map:
            raise Unclear
        recorder.graph.output(result.node)
    except Exception:  # a forward pass may fail on placeholders in any way: the block then stays as it is
        return Recording((), (), (), tuple(recorder.reads), tuple(recorder.lengths))
    nodes, entered = tuple(recorder.graph.nodes), tuple(recorder.entered[1:])
    return Recording(nodes, tuple(recorder.calls), entered, tuple(recorder.reads), tuple(recorder.lengths))


class _Map(fx.Proxy):
    """A placeholder that tells `+=` from `+`; torch's own does not."""


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in _IN_PLACE:
    setattr(_Map, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _OnlyOnPlaceholders(TorchFunctionMode):
    """Refuse calls of torch that the graph does not show, such as torch.rand(1)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(issubclass(kind, fx.Proxy) for kind in types):
            raise Unclear
        return func(*args, **(kwargs or {}))


class _Recorder(GraphAppendingTracer):
    def __init__(self, site: nn.Module):
        super().__init__(fx.Graph())
        self.site = site
        self.calls: list[fx.Node] = []
        self.entered: list[nn.Module] = []
        self.reads: list[tuple[dict[str, Any], str, Any]] = []
        self.lengths: list[tuple[dict[str, Any], int]] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Map(node, self)

    def enter(
        self, module: nn.Module, prefix: str, forward: Callable[..., Any], args: tuple[Any, ...]
    ) -> Any:
        """Run a module's forward pass, with a stand-in for the module."""
        self.entered.append(module)
        kind = type(module)
        if self.read(vars(module), "forward") is not _ABSENT:
            raise Unclear
        if kind.__call__ is not nn.Module.__call__ or kind.__getattr__ is not nn.Module.__getattr__:
            raise Unclear
        itself = _StandIn(self, module, prefix)
        if isinstance(module, nn.Sequential) and forward is nn.Sequential.forward:
            (x,) = args
            if kind.__iter__ is not nn.Sequential.__iter__:  # type: ignore[attr-defined]
                raise Unclear
            self.lengths.append((module._modules, len(module._modules)))
            for name in module._modules:
                x = itself._child(name)(x)
            return x
        check_source(forward)
        return forward(itself, *args)

    def call(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module is not self.site and any(inner is self.site for inner in module.modules()):
            if kwargs:
                raise Unclear
            return self.enter(module, path + ".", type(module).forward, args)
        called = self.create_proxy("call_module", path, args, kwargs)
        if module is self.site:
            self.calls.append(called.node)
        return called

    def read(self, namespace: dict[str, Any], name: str) -> Any:
        self.reads.append((namespace, name, namespace.get(name, _ABSENT)))
        return self.reads[-1][2]


class _StandIn:
    """What a forward function sees as `self`."""

    def __init__(self, recorder: _Recorder, module: nn.Module, prefix: str):
        vars(self).update(_recorder=recorder, _module=module, _prefix=prefix)

    def __getattr__(self, name: str) -> Any:
        module: Any = self._module
        value = self._recorder.read(vars(module), name)
        if value is not _ABSENT:
            if name == "training" or not _is_simple(value):
                raise Unclear
            return value
        if name in module._modules:
            return self._child(name)
        for tensors in (module._parameters, module._buffers):
            if name in tensors:
                if self._recorder.read(tensors, name) is None:
                    return None
                return self._recorder.create_proxy("get_attr", self._prefix + name, (), {})
        return self._of_class(name, inspect.getattr_static(type(module), name))

    def __bool__(self) -> bool:
        raise Unclear

    def _child(self, name: str) -> Any:
        module = self._recorder.read(self._module._modules, name)
        return None if module is None else _Child(self._recorder, module, self._prefix + name)

    def _of_class(self, name: str, value: Any) -> Any:
        if _is_simple(value):
            return value
        if isinstance(value, property) and value.fget is not None:
            check_source(value.fget)
            return value.fget(self)
        check_source(value)
        return MethodType(value, self)


class _Child:
    """What a forward function gets when it reads one of its modules: a callable."""

    def __init__(self, recorder: _Recorder, module: nn.Module, path: str):
        self._recorder, self._module, self._path = recorder, module, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._recorder.call(self._module, self._path, args, kwargs)

    def __bool__(self) -> bool:
        if hasattr(type(self._module), "__len__") or hasattr(type(self._module), "__bool__"):
            raise Unclear
        return True


def _is_simple(value: Any) -> bool:
    """Return whether a value cannot change while it stays the same object."""
    if isinstance(value, tuple):
        return all(map(_is_simple, value))
    return value is None or type(value) in (bool, int, float, str)


def check_source(function: Any) -> None:
    """Raise `Unclear` if a function may depend on more than torch, its arguments and the attributes of `self`.

    >>> def drops(x): return x if random.random() < 0.5 else 2 * x
    >>> check_source(drops)
    Traceback (most recent call last):
    cbam.attach.fusion.recording.Unclear
    """
    if not isinstance(function, FunctionType) or function.__closure__:
        raise Unclear
    for code in _codes(function.__code__):
        if getattr(code, "co_exceptiontable", b""):  # `with` and `try`
            raise Unclear
        for step in dis.get_instructions(code):
            if step.opname.startswith(_REFUSED_INSTRUCTIONS):
                raise Unclear
            if step.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME")):
                _check_global(step.argval, function.__globals__)
            elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
                name = str(step.argval)
                if name.startswith(_REFUSED_NAMES) and name not in _ALLOWED_NAMES:
                    raise Unclear


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _check_global(name: str, namespace: dict[str, Any]) -> None:
    if name not in namespace:
        if name not in _BUILTINS or not hasattr(builtins, name):
            raise Unclear
        return
    value = namespace[name]
    origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    if origin.partition(".")[0] != "torch":
        raise Unclear
