"""Compare an exported network with eager mode: largest difference over several sizes, and time side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.evaluate.latency import Latency
from cbam.evaluate.timing import Candidate, interleave, quartiles
from cbam.export.loading import Loaded, tensors_in
from cbam.export.program import LARGER
from cbam.export.quantize import decibels

BOUNDS = {"fp32": 1e-4, "fp16": 3e-2}  # of the largest difference, as a share of the largest output
_BATCHES = (1, 3)
_LARGER = 32  # pixels: networks that want multiples of their stride get them


@dataclass(frozen=True)
class Difference:
    """How far an exported network is from eager mode, for inputs of one shape.

    Attributes:
        shape: of the input.
        largest: difference of an output.
        relative: the same, as a share of the largest output.
        decibels: of the outputs over their error; inf where there is none.
    """

    HEADINGS: ClassVar = ("input", "largest difference", "of largest output", "dB")

    shape: tuple[int, ...]
    largest: float
    relative: float
    decibels: float

    def cells(self) -> tuple[str, ...]:
        """Return what stands below the headings."""
        shape = " x ".join(map(str, self.shape))
        return shape, f"{self.largest:.2e}", f"{self.relative:.1e}", f"{self.decibels:.0f}"


def shapes_to_check(example: Tensor, axes: Mapping[int, str], fixed_batch: int) -> list[tuple[int, ...]]:
    """Return shapes that an exported network has to take: batches of 1 and 3 and larger sides where they are dynamic.

    >>> shapes_to_check(torch.zeros(1, 3, 8, 8), {0: "batch", 2: "height", 3: "width"}, 1)
    [(1, 3, 8, 8), (3, 3, 8, 8), (1, 3, 40, 72), (3, 3, 72, 40)]
    """
    sides = tuple(example.shape[1:])
    batches = _BATCHES if 0 in axes else (fixed_batch,)
    shapes = [(batch, *sides) for batch in batches]
    turned = [axis for axis in axes if axis > 1]
    if turned:
        steps = {axis: _LARGER * (1 + place) for place, axis in enumerate(turned)}
        back = {axis: _LARGER * (len(turned) - place) for place, axis in enumerate(turned)}
        for batch, larger in zip((batches[0], batches[-1]), (steps, back), strict=True):
            shapes.append((batch, *(size + larger.get(axis, 0) for axis, size in enumerate(sides, start=1))))
    return shapes


def compare(
    model: nn.Module, loaded: Loaded, shapes: Sequence[tuple[int, ...]], images: Tensor | None = None
) -> list[Difference]:
    """Return the differences from eager mode.

    Args:
        model: in evaluation mode.
        loaded: the exported network.
        shapes: of the inputs.
        images: from which the inputs are made, by taking the first and resizing; None: normal noise.

    Raises:
        CBAMError: the exported network does not take one of the shapes; another number or other shapes of outputs.
    """
    found = []
    for shape in shapes:
        batch = _inputs(model, shape, images)
        with torch.no_grad():
            expected = tensors_in(model(batch))
        try:
            outputs = loaded(batch)
        except Exception as error:  # of the runtime, each of which has its own
            raise CBAMError(
                f"the exported network takes no input of {shape}: {type(error).__name__}: {error}\n{LARGER} No file was"
                " written."
            ) from error
        if [tuple(a.shape) for a in expected] != [tuple(b.shape) for b in outputs]:
            raise CBAMError(
                f"with an input of {shape} the exported network returns {[tuple(b.shape) for b in outputs]}, eager mode"
                f" {[tuple(a.shape) for a in expected]}."
            )
        flat = [
            torch.cat([t.detach().cpu().double().flatten() for t in side]) for side in (expected, outputs)
        ]
        largest = float((flat[0] - flat[1]).abs().max()) if flat[0].numel() else 0.0
        scale = float(flat[0].abs().max()) if flat[0].numel() else 0.0
        found.append(Difference(shape, largest, largest / max(scale, 1e-12), decibels(*flat)))
    return found


def refuse(differences: Sequence[Difference], precision: str) -> None:
    """Raise if a difference is beyond rounding.

    Args:
        differences: of `compare`.
        precision: "fp32" or "fp16"; int8 has no bound: its accuracy is measured instead.

    Raises:
        CBAMError: the largest one is.
    """
    bound = BOUNDS.get(precision, math.inf)
    worst = max(differences, key=lambda each: each.relative)
    if not worst.relative <= bound:  # not a number either
        raise CBAMError(
            f"the exported network differs from eager mode by {worst.largest:.3g} for an input of {worst.shape},"
            f" {worst.relative:.2%} of its largest output; {precision} allows {bound:.2%}. No file was written."
        )


def latencies(
    model: nn.Module, loaded: Loaded, example: Tensor, batches: Sequence[int], rounds: int = 15
) -> dict[int, tuple[Latency, Latency]]:
    """Time eager mode and the exported network in turns.

    Args:
        model: in evaluation mode, on the device where it is timed.
        loaded: the exported network.
        example: a batch.
        batches: how many images at a time.
        rounds: of the two.

    Returns:
        {images: (eager, exported)}.
    """
    found = {}
    for batch in batches:
        images = _inputs(model, (batch, *example.shape[1:]), None)
        candidates = {
            "eager": Candidate(partial(model, images)),
            "exported": Candidate(partial(loaded, images)),
        }
        samples = interleave(candidates, rounds=rounds, seconds=20)
        rows = [quartiles(samples[name]) for name in candidates]
        found[batch] = tuple(Latency(median, low, high) for low, median, high in rows)
    return found  # type: ignore[return-value]


def _inputs(model: nn.Module, shape: tuple[int, ...], images: Tensor | None) -> Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if images is None:
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    else:
        batch = images[: shape[0]]
        batch = batch if batch.shape[2:] == shape[2:] else F.interpolate(batch, shape[2:])
    return batch.to(parameter.device, parameter.dtype)
