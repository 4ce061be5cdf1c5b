"""What one forward pass costs, module by module."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cbam.attach.graph.example import split_example
from cbam.attach.graph.probe import dims_of
from cbam.errors import CBAMError
from cbam.evaluate.counting import bytes_moved, multiply_adds, other_flops
from cbam.formatting import columns
from cbam.preserve_state import preserve_state, probe_input


@dataclass
class ModuleCost:
    """The cost of everything that ran inside one module, including its children."""

    name: str
    """The module's name in `named_modules()`; empty for the whole model."""
    type: str
    """Its class."""
    parameters: int
    """Parameters of the module and its children."""
    calls: int = 0
    """Number of times it ran."""
    macs: int = 0
    """Multiply-adds of convolutions and matrix products."""
    flops: int = 0
    """See `cost`."""
    bytes_moved: int = 0
    """Bytes read and written."""
    bytes_saved: int = 0
    """Bytes saved for backward first by this module."""
    output: tuple[int, ...] | None = None
    """Shape of its output, if it is a single tensor."""


@dataclass(frozen=True)
class Cost:
    """What one forward pass of a model costs; prints as a table."""

    parameters: int
    """Number of parameters; shared ones count once."""
    macs: int
    """Multiply-adds of convolutions and matrix products: the paper's GFLOPs."""
    flops: int
    """See `cost`."""
    bytes_moved: int
    """Bytes that all operations read and wrote."""
    bytes_saved: int
    """Bytes kept for the backward pass."""
    modules: tuple[ModuleCost, ...]
    """Every module that ran, in order of its first call; the model itself comes first."""
    input: tuple[int, ...]
    """Shape of the input, (N, C, H, W)."""
    uncounted: dict[str, int] = field(default_factory=dict)
    """Operations without a FLOP formula, and how often each ran; their bytes are counted."""
    other_inputs: tuple[tuple[int, ...], ...] = ()
    """Shapes of further input tensors."""

    def table(self, depth: int = 1) -> str:
        """Return the table down to `depth` levels below the model."""
        rows = [_HEADINGS]
        for module in self.modules[1:]:
            if module.name.count(".") < depth:
                rows.append(_cells(module, module.name))
        rows.append(_cells(self.modules[0], "total"))
        inputs = ", ".join(_shape(shape) or "a number" for shape in (self.input, *self.other_inputs))
        lines = [f"one forward pass, input {inputs}, eval mode", *columns(rows, left=(0, 1, 2))]
        if self.uncounted:
            names = ", ".join(f"{name} x {count}" for name, count in self.uncounted.items())
            lines.append(f"not in FLOPs (no formula): {names}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def cost(
    model: nn.Module,
    input_size: tuple[int, ...] = (3, 224, 224),
    *,
    batch_size: int = 1,
    example_input: Any = None,
) -> Cost:
    """Count what one forward pass of `model` costs: parameters, MACs, FLOPs, bytes moved, bytes saved.

    - MACs: one multiply-add of a convolution or matrix product (linear layers, attention) counts 1. This is
      what the CBAM paper calls FLOPs: 3.858 G for its ResNet-50.
    - FLOPs: 2 x MACs (the bias is the sum's initial value and costs nothing), plus 1 per output element of every
      element-wise operation, 1 per input element of every reduction and adaptive pooling, the window's size per
      output element of other poolings, 2 per element of a batch norm with running statistics, and 5 per element of
      a batch norm with batch statistics, a layer or group norm or a softmax. Copies, padding and indexing: 0.
      Operations without a formula are listed in `uncounted`.
    - Bytes moved: all distinct inputs that an aten operation reads plus all outputs that it writes, summed; views
      are free. An upper bound of the memory traffic, as caches and fusion may save some of it. The fused attention
      operator counts as reading its map three times (twice with a single gate), writing it once, and reading the
      shortcut, if it adds one, once.
    - Bytes saved: what autograd keeps for backward, seen by saved-tensor hooks; each storage once, without
      parameters and buffers; frozen layers stay frozen. A module's row has what that module saved first.

    The code that runs is counted, with the fused operator or without it (`cbam.set_backend`). If the operator
    includes the batch norm before it, that norm has no row of its own: its cost is in the attention's row, and so is
    that of the addition and the ReLU after it.

    The model runs once, in eval mode (batch norm uses its running statistics, dropout does nothing), on zeros of the
    parameters' dtype and device that, like images, require no gradient. A module from the middle of a network may
    therefore save less alone than in its row of that network. The model is restored, after an exception too.

    Args:
        model: any module that maps one tensor (N, C, H, W), or of other dimensions, to anything, or another input as in
            `example_input`.
        input_size: (C, H, W); (C, L) of a signal, (C, D, H, W) of a volume.
        batch_size: N.
        example_input: what the model takes instead: a tuple of arguments, a dict of arguments by name, or one argument.

    Returns:
        Cost: the totals, and a row per module.

    Raises:
        CBAMError: if the sizes are invalid or the forward pass fails.

    >>> from torch import nn
    >>> found = cost(nn.Conv2d(3, 8, kernel_size=3, padding=1, bias=False), (3, 16, 16))
    >>> found.parameters, found.macs, found.flops      # 3*8*3*3, times 16*16, times 2
    (216, 55296, 110592)
    >>> found.bytes_moved == 4 * (3 * 256 + 216 + 8 * 256), found.bytes_saved == 4 * 3 * 256
    (True, True)
    """
    size = _check(model, input_size, batch_size)
    inputs, keywords = split_example(model, example_input)
    given = [t for t in tree_leaves((inputs, keywords)) if isinstance(t, Tensor)]
    shapes = [tuple(t.shape) for t in given] if example_input is not None else [size]
    recorder = _Recorder(model)
    with ExitStack() as stack:
        # Whatever mode the caller is in; this also enables gradients.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(preserve_state(model))
        stack.callback(recorder.remove_hooks)
        recorder.add_hooks()
        if example_input is None:
            inputs = (probe_input(model, size),)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(recorder.pack, _never_unpacked))
        stack.enter_context(recorder)
        try:
            model(*inputs, **keywords)
        except Exception as error:
            what = f"zeros of shape {_shape(size)}" if example_input is None else f"inputs of shape {shapes}"
            raise CBAMError(
                f"the forward pass of {type(model).__name__} on {what} failed: {error}. "
                "Does the model take inputs of input_size=(C, H, W)? Others are example_input=(...) or {'name': ...}."
            ) from error
    total = recorder.rows[model]
    return Cost(
        parameters=total.parameters,
        macs=total.macs,
        flops=total.flops,
        bytes_moved=total.bytes_moved,
        bytes_saved=total.bytes_saved,
        modules=tuple(recorder.rows.values()),
        input=shapes[0] if shapes else (),
        uncounted=dict(recorder.uncounted),
        other_inputs=tuple(shapes[1:]),
    )


class _Recorder(TorchDispatchMode):
    """Charges every operation to all modules that are running."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.rows: dict[nn.Module, ModuleCost] = {}
        self.running: list[ModuleCost] = []
        self.uncounted: Counter[str] = Counter()
        self.hooks: list[Any] = []
        owned = [*model.parameters(), *model.buffers()]
        self.owned = {tensor.untyped_storage()._cdata for tensor in owned}
        # Kept alive, so that no address is reused while we count.
        self.saved: dict[int, torch.UntypedStorage] = {}

    def add_hooks(self) -> None:
        for module in self.names:
            self.hooks.append(module.register_forward_pre_hook(self.enter, prepend=True))
            self.hooks.append(module.register_forward_hook(self.leave))

    def remove_hooks(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def enter(self, module: nn.Module, _: Any) -> None:
        if module not in self.rows:
            parameters = sum(parameter.numel() for parameter in module.parameters())
            self.rows[module] = ModuleCost(self.names[module], type(module).__name__, parameters)
        self.rows[module].calls += 1
        self.running.append(self.rows[module])

    def leave(self, module: nn.Module, _: Any, output: Any) -> None:
        self.running.pop()
        if isinstance(output, Tensor):
            self.rows[module].output = tuple(output.shape)

    # Attention modules with only such hooks still run in the fused operator.
    enter.observes_only = leave.observes_only = True  # type: ignore[attr-defined]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        moved = bytes_moved(func, (args, kwargs), out)
        macs = multiply_adds(func, args, out)
        flops = other_flops(func, args, out) if moved else 0
        if flops is None:
            self.uncounted[str(func.overloadpacket)] += 1
        for row in self.running:
            row.macs += macs
            row.flops += 2 * macs + (flops or 0)
            row.bytes_moved += moved
        return out

    def pack(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.owned and storage._cdata not in self.saved:
            self.saved[storage._cdata] = storage
            for row in self.running:
                row.bytes_saved += storage.nbytes()


def _never_unpacked(_: Any) -> Tensor:
    raise AssertionError("cost() runs no backward pass")


def _check(model: nn.Module, input_size: tuple[int, ...], batch_size: int) -> tuple[int, ...]:
    if not isinstance(model, nn.Module):
        raise CBAMError(f"cost takes an nn.Module, given {type(model).__name__}.")
    lengths = {3, dims_of(model)[0] + 1}
    is_row = isinstance(input_size, (tuple, list)) and len(input_size) in lengths
    if not is_row or not all(isinstance(n, int) and n >= 1 for n in input_size):
        examples = {1: "(C, L), such as (1, 1024)", 2: "(C, H, W), such as (3, 224, 224)",
                    3: "(C, D, H, W), such as (3, 16, 112, 112)"}  # fmt: skip
        raise CBAMError(f"input_size is {examples[dims_of(model)[0]]}, given {input_size!r}.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise CBAMError(f"batch_size is a whole number of at least 1, given {batch_size!r}.")
    return (batch_size, *input_size)


_HEADINGS = ["module", "type", "output", "parameters", "MACs", "FLOPs", "moved", "saved"]


def _cells(row: ModuleCost, name: str) -> list[str]:
    return [
        name,
        row.type,
        _shape(row.output) if row.output else "",
        f"{row.parameters:,}",
        _giga(row.macs),
        _giga(row.flops),
        f"{row.bytes_moved / 1e6:,.2f} MB",
        f"{row.bytes_saved / 1e6:,.2f} MB",
    ]


def _giga(count: int) -> str:
    return f"{count / 1e9:.3f} G" if count >= 100_000_000 else f"{count / 1e6:.3f} M"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
