"""Static int8: an ONNX model whose convolutions compute with 8-bit integers, and whose gates stay in float32.

Where the gates are quantized too, with onnxruntime's defaults, a small network with attention loses several decibels
more than without it; docs/export.md says why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbam.errors import CBAMError
from cbam.export.onnx_file import require


class Batches:
    """Calibration images as onnxruntime reads them: one dict of arrays at a time, then None."""

    def __init__(self, batches: Iterable[Tensor]):
        self._rows = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the input's name."""
        batch = next(self._rows, None)
        return None if batch is None else {"input": batch.numpy()}


def quantize(source: Path, target: Path, images: Tensor, batch: int, keep: Sequence[str]) -> None:
    """Write an ONNX file with 8-bit weights and maps.

    Weights are signed, one scale for each output channel; maps are unsigned, one scale for each, from the smallest and
    largest value that the calibration images give.

    Args:
        source: the file in float32.
        target: the file to write.
        images: (N, C, H, W), as the network sees them.
        batch: how many at a time; what is left over is not used.
        keep: names of the nodes that stay in float32.

    Raises:
        CBAMError: fewer images than a batch.
        MissingExtra: onnxruntime is not installed.
    """
    require("onnxruntime")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    whole = len(images) // batch * batch
    if not whole:
        raise CBAMError(f"calibration needs at least {batch} images, given {len(images)}.")
    with _quiet():
        quantize_static(
            source,
            target,
            Batches(images[:whole].split(batch)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=list(keep),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice on its own preprocessing, which torch's exporter has done, from the terminal."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def decibels(expected: Tensor, found: Tensor) -> float:
    """Return how far outputs stand out from their error: 10 log10(sum of squares / sum of squared errors).

    >>> round(decibels(torch.tensor([10.0, 0.0]), torch.tensor([11.0, 0.0])))
    20
    """
    error = (expected.double() - found.double()).square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / error))
