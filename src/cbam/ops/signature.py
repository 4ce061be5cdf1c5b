"""The operator's signature, written once: `cbam::forward` and `cbam::backward` by name.

The schemas, the parsers and the indices all come from the tuples below. To add an argument, add a field here and
in `csrc/library.cpp`; a compiled library with another schema is refused when it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor

# What the numbers of the schema stand for; `csrc/problem.h` has the same ones. A descriptor's planes are in the order
# in which the spatial kernel reads them.
POOLED_ROWS = {0: (), 1: ("avg",), 2: ("max",), 3: ("avg", "max")}
DESCRIPTOR_PLANES = {0: (), 1: ("avg",), 2: ("max",), 3: ("avg", "max"), 4: ("max", "avg")}
POOLINGS = {"avg": 1, "max": 2, "both": 3}
DESCRIPTORS = {
    ("avg", "avg-max"): 1, ("avg", "max-avg"): 1, ("max", "avg-max"): 2, ("max", "max-avg"): 2,
    ("both", "avg-max"): 3, ("both", "max-avg"): 4,
}  # fmt: skip
ACTIVATIONS = {"sigmoid": 0, "hardsigmoid": 1}

_DIFFERENTIABLE = "differentiable"
_FORWARD_ONLY = "forward only"  # backward does not get it
_Constant = Tensor | None
_Learned = Annotated[Tensor | None, _DIFFERENTIABLE]


class Weights(NamedTuple):
    """The tensors of both gates; w0 is None without a channel gate, kernel without a spatial gate.

    A variance without a mean is no norm: it divides the logits by sqrt(norm_var + norm_eps), also in training.
    """

    w0: _Learned = None
    b0: _Learned = None
    w1: _Learned = None
    b1: _Learned = None
    channel_scale: _Constant = None
    kernel: _Learned = None
    norm_weight: _Learned = None
    norm_bias: _Learned = None
    norm_var: _Constant = None
    norm_mean: _Constant = None
    spatial_scale: _Constant = None

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        """The tensors that the operator computes no gradient for."""
        return tuple(self[i] for i in CONSTANTS)


# The fields of `Weights` in front of the spatial gate's, for a module without a channel gate.
NO_CHANNEL_GATE = (None,) * Weights._fields.index("kernel")


class NormBefore(NamedTuple):
    """A batch norm in front of the gates, u -> (u - mean) / sqrt(var + pre_eps) * weight + bias, channel by channel.

    In training, mean and var are those of the batch, the variance divided by the number of values.
    """

    weight: _Learned = None
    bias: _Learned = None
    mean: _Constant = None
    var: _Constant = None


class OperatorConfig(NamedTuple):
    """The operator's numbers.

    Args:
        pooling, descriptor, activation: as in the tables above; 0 where their gate is absent.
        norm_training, norm_eps: of the norm in the spatial gate.
        pre_training: whether the statistics of the norm in front are those of this batch, so that derivatives go
            through them.
        pre_eps: of the norm in front.
        relu: whether a ReLU follows the residual.
    """

    pooling: int = 0
    descriptor: int = 0
    activation: int = 0
    norm_training: bool = False
    norm_eps: float = 1e-5
    pre_training: bool = False
    pre_eps: float = 1e-5
    relu: Annotated[bool, _FORWARD_ONLY] = False


class ForwardArguments(NamedTuple):
    """The arguments of `cbam::forward`: y = relu(gates(norm(x)) + residual).

    Args:
        x: map (N, C, H, W), dense in contiguous or channels_last memory format.
        weights: of the gates, in the accumulation dtype of x, contiguous.
        before: the norm in front; x is then its input.
        residual: map like x, added behind the gates.
        config: the numbers.
        keep: whether to return what backward needs.
    """

    x: Annotated[Tensor, _DIFFERENTIABLE]
    weights: Weights
    before: Annotated[NormBefore, "pre_"]
    residual: _Learned
    config: OperatorConfig
    keep: bool

    @classmethod
    def parse(cls, arguments: Sequence[Any]) -> ForwardArguments:
        """Return a call's positional arguments by name."""
        return cls(*_grouped(cls, arguments))


class BackwardArguments(NamedTuple):
    """The arguments of `cbam::backward`.

    Args:
        grad: gradient of y, a map like x.
        x, weights, before, config: as in the forward call; instead of config.relu, `out` tells of a ReLU.
        out: y where it ends in a ReLU, None otherwise.
        saved, argmax: what the forward call returned.
    """

    grad: Tensor
    x: Tensor
    weights: Weights
    before: Annotated[NormBefore, "pre_"]
    out: Tensor | None
    saved: Tensor
    argmax: Tensor
    config: OperatorConfig

    @classmethod
    def parse(cls, arguments: Sequence[Any]) -> BackwardArguments:
        """Return a call's positional arguments by name."""
        return cls(*_grouped(cls, arguments))


class Argument(NamedTuple):
    """One positional argument: its name and type in the schema, and whether the operator computes its gradient."""

    name: str
    type: str
    differentiable: bool


def flat(arguments: ForwardArguments | BackwardArguments) -> tuple[Any, ...]:
    """Return the positional arguments of a call, the inverse of `parse`."""
    call: Any = type(arguments)
    parts: Iterable[tuple[Any, Any]] = zip(arguments, _layout(call), strict=True)
    return tuple(
        chain.from_iterable((part,) if kind is None else part[:count] for part, (_, count, kind) in parts)
    )


_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", bool: "bool", float: "float"}
_Call = TypeVar("_Call", bound=tuple[Any, ...])


def _parts(call: type[_Call]) -> Iterator[tuple[str, Any, str]]:
    """Yield name, type and mark of each field."""
    for name, hint in get_type_hints(call, include_extras=True).items():
        kind, mark = get_args(hint) if get_origin(hint) is Annotated else (hint, "")
        yield name, kind, mark


def _arguments(call: type[_Call], prefix: str = "", backward: bool = False) -> Iterator[Argument]:
    for name, kind, mark in _parts(call):
        if kind not in _TYPES:
            yield from _arguments(kind, mark, backward)
        elif not (backward and mark == _FORWARD_ONLY):
            yield Argument(prefix + name, _TYPES[kind], mark == _DIFFERENTIABLE)


@cache
def _layout(call: type[_Call]) -> list[tuple[int, int, Any]]:
    """Return position, number of arguments and type of each part of a call; None for the type of a single argument."""
    layout, position = list[tuple[int, int, Any]](), 0
    for _, kind, _ in _parts(call):
        single = kind in _TYPES
        count = 1 if single else sum(1 for _ in _arguments(kind, backward=call is BackwardArguments))
        layout.append((position, count, None if single else kind))
        position += count
    return layout


def _grouped(call: type[_Call], arguments: Sequence[Any]) -> list[Any]:
    return [
        arguments[i] if kind is None else kind(*arguments[i : i + count]) for i, count, kind in _layout(call)
    ]


def _schema(name: str, arguments: Iterable[Argument], results: Iterable[str]) -> str:
    taken = ", ".join(f"{argument.type} {argument.name}" for argument in arguments)
    return f"{name}({taken}) -> ({', '.join(f'Tensor {result}' for result in results)})"


CONSTANTS = tuple(i for i, weight in enumerate(_arguments(Weights)) if not weight.differentiable)
FORWARD = tuple(_arguments(ForwardArguments))
BACKWARD = tuple(_arguments(BackwardArguments, backward=True))
# Positions among the arguments of `cbam::forward`: the tensors come first, the residual last of them.
TENSORS = sum(argument.type.startswith("Tensor") for argument in FORWARD)
DIFFERENTIABLE = tuple(i for i, argument in enumerate(FORWARD) if argument.differentiable)
RESIDUAL = TENSORS - 1
# How many of the numbers, from the first on, backward gets.
KEPT_NUMBERS = sum(1 for _ in _arguments(OperatorConfig, backward=True))
# Backward returns one gradient for each differentiable argument.
SCHEMAS = {
    "forward": _schema("forward", FORWARD, ("y", "saved", "argmax", "stats")),
    "backward": _schema("backward", BACKWARD, [f"d{FORWARD[i].name}" for i in DIFFERENTIABLE]),
}
