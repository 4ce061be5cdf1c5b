"""Run a model once and record which module returned which tensor, and which tensor was computed from which.

The model runs as it is, so any control flow is allowed. It runs in evaluation mode and without gradients; afterwards
its training flags and the random state are what they were, and all hooks are removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from cbam.attach.graph.axes import CHANNELS_SECOND, MOVES, Axes, axes_of, channel_axis, unknown
from cbam.attach.graph.modes import eval_only
from cbam.errors import CBAMError
from cbam.ops.dims import SIZES
from cbam.preserve_state import preserve_state

InputSize: TypeAlias = "tuple[int, ...] | int | None"  # (C, H, W), or with other dimensions, or one side

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
# The sides of an invented input: an image; a second or less of most signals; what every U-Net can halve six times.
_SIDES = {1: (1024,), 2: (224, 224), 3: (64, 64, 64)}
_NAMES = {1: "channels, length", 2: "channels, height, width", 3: "channels, depth, height, width"}
_WEIGHTED_OPERATIONS = ("convolution", "addmm", "mm", "bmm", "baddbmm", "linear")


@dataclass
class Node:
    """One tensor that was made from the input: by which operation, from which other nodes."""

    operation: str  # the overload packet's name, such as "add" or "convolution"
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    consumers: set[int] = field(default_factory=set)
    channel_axis: int | None = None  # None: cannot be told
    aside: bool = (
        False  # a sequence (N, C, L) in a network of images or volumes, such as ECA's or attention's
    )

    @property
    def weighted(self) -> bool:
        """Whether the operation is a convolution or a matrix product."""
        return self.operation in _WEIGHTED_OPERATIONS

    @property
    def dims(self) -> int | None:
        """How many sizes follow the channels of a map (N, C, ...); None for what is no such map."""
        dims = len(self.shape) - 2
        return dims if self.channel_axis == 1 and dims in SIZES else None

    @property
    def is_map(self) -> bool:
        """Whether it is a map (N, C, ...) of the network."""
        return self.dims is not None and not self.aside


@dataclass(frozen=True)
class Call:
    """One call of a module: the nodes of its first tensor argument and of its output (None where there is none)."""

    name: str
    source: int | None
    output: int | None
    shape: tuple[int, ...] | None  # of the output, if that is one floating-point tensor
    takes_map: bool = False  # whether its first argument is a feature map, not a list of them


@dataclass
class Probe:
    """What a probe forward saw, in order of creation, and the model's modules by name."""

    nodes: list[Node]
    calls: list[Call]
    modules: dict[str, nn.Module]
    eval_only: frozenset[str] = frozenset()  # names of modules that do not run in training mode

    @cached_property
    def runs(self) -> Counter[str]:
        """How often each module ran, by its name."""
        return Counter(call.name for call in self.calls)


class _Recorder(TorchDispatchMode):
    """Record each operation on a tensor that depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._node_of: dict[int, int] = {}
        self._axes_of: dict[int, Axes] = {}
        self._alive: list[Tensor] = []  # an id is only unique while its tensor lives

    def node_of(self, tensor: Any) -> int | None:
        return self._node_of.get(id(tensor))

    def add(self, tensor: Tensor, operation: str, parents: Sequence[int], axes: Axes) -> None:
        index, parents = len(self.nodes), tuple(dict.fromkeys(parents))
        self.nodes.append(Node(operation, parents, tuple(tensor.shape), channel_axis=channel_axis(axes)))
        self._axes_of[id(tensor)] = axes
        for parent in parents:
            self.nodes[parent].consumers.add(index)
        self._node_of[id(tensor)] = index
        self._alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [t for t in tree_flatten((args, kwargs or {}))[0] if isinstance(t, Tensor)]
        output = func(*args, **(kwargs or {}))
        parents = [node for node in map(self.node_of, inputs) if node is not None]
        if parents:
            name = func.overloadpacket.__name__.removesuffix("_")
            made = [tensor for tensor in tree_flatten(output)[0] if isinstance(tensor, Tensor)]
            axes = [
                axes_of(name, args, self._axes, tensor) for tensor in made
            ]  # before one replaces an argument
            for tensor, found in zip(made, axes, strict=True):
                self.add(tensor, name, parents, found)
        return output

    def _axes(self, argument: Any) -> Axes | None:
        return self._axes_of.get(id(argument)) if isinstance(argument, Tensor) else None

    def look_back(self) -> None:
        """Find what only other steps tell: channels of what is convolved, or becomes a known map; sequences aside."""
        for index in reversed(range(len(self.nodes))):
            node = self.nodes[index]
            for reader in (self.nodes[consumer] for consumer in sorted(node.consumers)):
                if node.channel_axis is not None:
                    break
                if reader.operation == "convolution":
                    if reader.parents[0] == index and len(reader.shape) == len(node.shape):
                        node.channel_axis = 1
                elif _same_axes(node, reader):
                    node.channel_axis = reader.channel_axis
        first = next((node.dims for node in self.nodes if node.operation == "convolution"), 1)
        for node in self.nodes:
            node.aside = node.dims == 1 != first


def _same_axes(node: Node, reader: Node) -> bool:
    """Return whether a tensor holds on each axis what a step makes of it."""
    if node.shape == reader.shape:
        return reader.operation not in MOVES and not reader.weighted
    keeps = reader.operation == "cat" or any(name in reader.operation for name in CHANNELS_SECOND)
    return keeps and len(node.shape) == len(reader.shape)


def run_probe(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> Probe:
    """Run `model(*inputs, **keywords)` once in evaluation mode and return what was seen.

    A model without values, or with some as `accelerate.init_empty_weights` builds it, runs on the meta device.

    Args:
        model: any module.
        inputs, keywords: the arguments; every tensor in them counts as the input.

    Raises:
        CBAMError: the forward failed; the message names the input's shape and what to pass instead.

    >>> probe = run_probe(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (torch.rand(1, 3, 8, 8),))
    >>> [node.operation for node in probe.nodes], [call.name for call in probe.calls]
    (['input', 'convolution', 'relu'], ['0', '1', ''])
    """
    if any(tensor.is_meta for _, _, tensor in _tensors(model)):
        inputs, keywords = tree_map(_to_meta, (inputs, keywords))
        with _on_meta(model):
            return _run(model, inputs, keywords or {})
    return _run(model, inputs, keywords or {})


def _run(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Probe:
    recorder = _Recorder()
    calls: list[Call] = []
    given = [tensor for tensor in tree_flatten((inputs, keywords))[0] if isinstance(tensor, Tensor)]
    for tensor in given:
        recorder.add(tensor, "input", (), unknown(tensor.shape))

    def seen(name: str) -> Any:
        # The argument's node is read on entry: an in-place module moves its argument on to a new node.
        entered: list[tuple[int | None, bool]] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
            takes_map = bool(args) and isinstance(args[0], Tensor) and args[0].dim() - 2 in SIZES
            entered.append((recorder.node_of(tensors[0]) if tensors else None, takes_map))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            usable = isinstance(output, Tensor) and output.dtype.is_floating_point
            shape = tuple(output.shape) if usable else None
            source, takes_map = entered.pop()
            calls.append(Call(name, source, recorder.node_of(output), shape, takes_map))

        return before, after

    with preserve_state(model), _hooks(model, seen), torch.no_grad(), recorder:
        try:
            model(*inputs, **keywords)
        except Exception as error:
            shapes = [tuple(t.shape) for t in given]
            sizes = SIZES.get(len(shapes[0]) - 2 if shapes else 2, SIZES[2])
            raise CBAMError(
                f"the probe forward of {type(model).__name__} with an input of shape {shapes} failed:"
                f" {type(error).__name__}: {error}. Pass the size that the model takes, input_size=(C, {sizes}),"
                " or its arguments, example_input=(...), by name example_input={'name': ...}."
            ) from error
    recorder.look_back()
    ran = dict.fromkeys(call.name for call in calls)
    return Probe(recorder.nodes, calls, dict(model.named_modules()), eval_only(model, inputs, keywords, ran))


def dims_of(model: nn.Module) -> tuple[int, Any]:
    """Return how many dimensions the first convolution of a model has, 2 if there is none, and the convolution.

    >>> dims_of(nn.Conv3d(1, 8, 3))[0]
    3
    """
    first = next((m for m in model.modules() if isinstance(m, tuple(_CONVOLUTIONS))), None)
    return next((n for kind, n in _CONVOLUTIONS.items() if isinstance(first, kind)), 2), first


def default_inputs(model: nn.Module, input_size: InputSize) -> tuple[Tensor]:
    """Return one random input on the model's device: of `input_size`, or of the size the model names.

    The first convolution says how many dimensions it has: an image, a signal or a volume. `input_size` is (C, H, W), or
    (C, L), or (C, D, H, W), or one side, with the model's own channels. Without it it is timm's
    `default_cfg["input_size"]` where there is one, otherwise 224 x 224, 1024 or 64 x 64 x 64 with the channels that the
    first convolution takes.

    >>> default_inputs(nn.Conv2d(1, 8, 3), None)[0].shape
    torch.Size([1, 1, 224, 224])
    >>> default_inputs(nn.Conv1d(2, 8, 3), 100)[0].shape
    torch.Size([1, 2, 100])
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    dims, first = dims_of(model)
    size: Any = input_size
    if size is None or _is_whole(size):
        config = getattr(model, "default_cfg", None) or {}
        said = config.get("input_size") or (3 if first is None else first.in_channels, *_SIDES[dims])
        channels = said[0] if first is None else first.in_channels
        size = (channels, *said[1:]) if size is None else (channels, *[size] * dims)
    whole = isinstance(size, (tuple, list)) and all(_is_whole(n) and n > 0 for n in size)
    if not whole or len(size) != dims + 1:
        begins = "" if dims == 2 else f" for a network that begins with {type(first).__name__}"
        raise CBAMError(f"input_size expects ({_NAMES[dims]}), or one side, got {input_size!r}{begins}.")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *size, generator=generator)
    return (image.to(parameter.device, parameter.dtype),)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # NumPy's too


def _tensors(model: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return all parameters and buffers, each as (dict, name in it, tensor)."""
    dicts = (own for module in model.modules() for own in (module._parameters, module._buffers))
    return [(own, name, tensor) for own in dicts for name, tensor in own.items() if tensor is not None]


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


@contextmanager
def _on_meta(model: nn.Module) -> Iterator[None]:
    """Put tensors without values in the place of those that have some."""
    tensors = _tensors(model)
    try:
        for own, name, tensor in tensors:
            own[name] = _to_meta(tensor)
        yield
    finally:
        for own, name, tensor in tensors:
            own[name] = tensor


@contextmanager
def _hooks(model: nn.Module, seen: Any) -> Iterator[None]:
    handles = []
    try:
        for name, module in model.named_modules():
            before, after = seen(name)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()
