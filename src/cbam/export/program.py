"""A network as a torch.export program, with our operator or in plain operations, with the dynamic sizes asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cbam.errors import CBAMError, unknown_name
from cbam.export.detector import OneImage, exportable
from cbam.ops.dispatch import set_backend
from cbam.preserve_state import preserve_state

BATCH = "batch"
SIDES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}  # by dimensions of a batch

LARGER = (
    "Code of a network may fix a size, and one that becomes 1 inside of a network is taken for a fixed one: make fewer"
    " sizes dynamic, or export with a larger example (--image-size)."
)


def axes_of(example: Tensor, dynamic: Sequence[str]) -> dict[int, str]:
    """Return {axis: name} of the sizes that may differ from the example's.

    Args:
        example: (N, C, H, W), (N, C, L) or (N, C, D, H, W).
        dynamic: names: batch, height, width; length of signals; depth of volumes.

    Raises:
        CBAMError: another name, or another number of dimensions.

    >>> axes_of(torch.zeros(2, 3, 8, 8), ("batch", "width"))
    {0: 'batch', 3: 'width'}
    """
    if example.dim() not in SIDES:
        raise CBAMError(
            f"the example is a batch (N, C, H, W), (N, C, L) or (N, C, D, H, W), given {tuple(example.shape)}."
        )
    names = {0: BATCH, **dict(enumerate(SIDES[example.dim()], start=2))}
    for name in dynamic:
        if name not in names.values():
            raise unknown_name("dynamic size", name, names.values())
    return {axis: name for axis, name in names.items() if name in dynamic}


def capture(
    model: nn.Module, example: Tensor, dynamic: Sequence[str] = (), plain: bool = False
) -> ExportedProgram:
    """Return the network in evaluation mode as a program; the network itself is not changed.

    Args:
        model: takes one batch.
        example: such a batch.
        dynamic: names of the sizes that may differ from the example's.
        plain: without our operator: in ATen's operations only, which every runtime of torch.export knows.

    Raises:
        CBAMError: torch.export cannot capture the network, or one of the sizes cannot be dynamic; torch's reason.
    """
    axes = axes_of(example, dynamic)
    if 0 in axes and len(example) == 1:
        example = torch.cat([example, example])  # torch.export takes a size of 1 for a constant
    # DYNAMIC and no named Dim: that refuses networks for guards that hold for every size, such as
    # 1 + (w - 1) // 2 == (1 + w) // 2 where a shortcut is added.
    shapes = (dict.fromkeys(axes, Dim.DYNAMIC),) if axes else None
    followed = exportable() if isinstance(model, OneImage) else nullcontext()
    with preserve_state(model), torch.no_grad(), set_backend("eager") if plain else nullcontext(), followed:
        try:
            return torch.export.export(model, (example,), dynamic_shapes=shapes)
        except Exception as error:  # of the network's own code, and torch has a dozen kinds of its own
            asked = f" with dynamic {', '.join(axes.values())}" if axes else ""
            hint = f"\n{LARGER}" if "specialized" in str(error) else ""
            raise CBAMError(
                f"torch.export cannot capture {type(model).__name__}{asked}: {type(error).__name__}: {error}{hint}"
            ) from error


def enlarged(example: Tensor, axes: Iterable[int]) -> Tensor:
    """Return an example with sides twice as long where they are dynamic, so that fewer become 1 inside of a network.

    For ONNX, which has no guards: a program of torch.export would then refuse the smaller sizes.

    >>> enlarged(torch.zeros(2, 3, 8, 8), (0, 3)).shape
    torch.Size([2, 3, 8, 16])
    """
    for axis in axes:
        if axis:
            example = torch.cat([example, example], axis)
    return example


def has_operator(program: ExportedProgram) -> bool:
    """Return whether a program calls our operator, so that `cbam.export.load` has to load it."""
    return any(
        str(node.target).startswith("cbam.") for node in program.graph.nodes if node.op == "call_function"
    )
