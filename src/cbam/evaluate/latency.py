"""Wall-clock time of several models side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.evaluate.timing import Candidate, clock_of, interleave, quartiles
from cbam.preserve_state import probe_input


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass over the rounds, in milliseconds."""

    median_ms: float
    """Middle of the rounds."""
    low_ms: float
    """First quartile."""
    high_ms: float
    """Third quartile."""

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ms ({self.low_ms:.2f} to {self.high_ms:.2f})"


def interleaved_latency(
    models: Mapping[str, nn.Module],
    input_size: tuple[int, ...],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    rounds: int = 15,
    channels_last: bool = False,
) -> dict[str, dict[int, Latency]]:
    """Time forward passes of several models in turn, so that a busy or hot machine slows all of them down alike.

    Every round runs each model once and starts with another one, see `cbam.evaluate.timing.order`. The models are timed
    in eval mode without autograd, as deep copies, one after the other on the device that they are on; the
    originals are not touched. Ratios between models of one call are worth more than the milliseconds.

    Args:
        models: name to model.
        input_size: (C, H, W); (C, L) of a signal, (C, D, H, W) of a volume.
        batch_sizes: N of each measurement.
        rounds: timed passes per model and batch size, after a warm-up.
        channels_last: time in channels-last memory format.

    Returns:
        {name: {batch size: Latency}}.

    Raises:
        CBAMError: if there is nothing to time.

    >>> from torch import nn
    >>> times = interleaved_latency({"conv": nn.Conv2d(3, 8, 3)}, (3, 8, 8), batch_sizes=(1,), rounds=3)
    >>> times["conv"][1].low_ms <= times["conv"][1].median_ms
    True
    """
    if not models or not batch_sizes or rounds < 2 or min(batch_sizes) < 1:
        raise CBAMError(
            "interleaved_latency takes at least one model, batch sizes of at least 1 and 2 rounds, given "
            f"{len(models)} models, batch_sizes={tuple(batch_sizes)}, rounds={rounds}."
        )
    memory_format = torch.preserve_format
    if channels_last:
        if len(input_size) not in (3, 4):
            raise CBAMError(
                f"maps of an input {input_size} have no channels-last format. Leave channels_last out."
            )
        memory_format = torch.channels_last if len(input_size) == 3 else torch.channels_last_3d
    copies = {name: _for_timing(model, memory_format) for name, model in models.items()}
    times: dict[str, dict[int, Latency]] = {name: {} for name in models}
    for batch_size in batch_sizes:
        inputs = {
            name: _noise(probe_input(model, (batch_size, *input_size))).to(memory_format=memory_format)
            for name, model in copies.items()
        }
        candidates = {
            name: Candidate(partial(model, inputs[name]), single=True) for name, model in copies.items()
        }
        clock = clock_of(next(iter(inputs.values())).device)
        for name, samples in interleave(candidates, rounds=rounds, clock=clock).items():
            low, median, high = quartiles(samples)
            times[name][batch_size] = Latency(median, low, high)
    return times


def _for_timing(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    return copy.deepcopy(model).eval().to(memory_format=memory_format)


def _noise(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator).to(like)
