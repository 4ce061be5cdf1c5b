"""The single measurements of a run, and what each leaves behind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from cbam.bench.rivals import COPY
from cbam.bench.settings import BenchConfig, shape_text
from cbam.bench.timing import quartiles, ratios

FORWARD, BOTH = "forward", "forward+backward"
INFERENCE, TRAINING = "inference", "training step"
PLAIN = "plain"


@dataclass(frozen=True)
class Cell:
    """One measurement: everything in it is timed in the same rounds.

    Args:
        part: modules, network or scaling.
        study: Of the scaling part: threads, batch or map.
        mode: forward, forward+backward, inference or training step.
        shape: (N, C, H, W) of what goes in.
        dtype, memory_format: By name.
        threads: CPU threads.
    """

    part: str
    study: str
    mode: str
    shape: tuple[int, int, int, int]
    dtype: str
    memory_format: str
    threads: int

    @property
    def name(self) -> str:
        """What tells the cell from all others of its run.

        >>> Cell("modules", "", "forward", (8, 256, 56, 56), "float32", "contiguous", 2).name
        'modules forward 8x256x56² float32 contiguous 2 threads'
        """
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        words = (
            self.part, self.study, self.mode, shape_text(self.shape), self.dtype, self.memory_format, threads,
        )  # fmt: skip
        return " ".join(word for word in words if word)

    @property
    def reference(self) -> str:
        """The provider that the others are divided by."""
        return PLAIN if self.part == "network" else COPY


@dataclass
class Result:
    """What a cell left behind.

    Args:
        cell: Which one.
        samples_ms: provider -> milliseconds, a sample a round.
        saved_bytes: provider -> bytes kept for backward.
        peak_bytes: provider -> bytes by which one step raises PyTorch's memory at most.
        input_bytes: Size of what goes in.
        finished: When, in UTC.
        notes: What could not be measured, and why.
    """

    cell: Cell
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    saved_bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    input_bytes: int = 0
    finished: str = ""
    notes: list[str] = field(default_factory=list)

    def quartiles(self, provider: str) -> tuple[float, float, float]:
        """Return the quartiles of a provider's milliseconds."""
        return quartiles(self.samples_ms[provider])

    def ratio(self, provider: str, reference: str | None = None) -> float:
        """Return the median over the rounds of provider / reference; by default the cell's own reference."""
        return self.ratio_quartiles(provider, reference)[1]

    def ratio_quartiles(self, provider: str, reference: str | None = None) -> tuple[float, float, float]:
        """Return the quartiles over the rounds of provider / reference."""
        below = self.samples_ms[reference or self.cell.reference]
        return quartiles(ratios(self.samples_ms[provider], below))

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return {"name": self.cell.name, **asdict(self)}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Result:
        """Read what `to_json` made."""
        values = {key: value for key, value in content.items() if key not in ("name", "cell")}
        cell = {**content["cell"], "shape": tuple(content["cell"]["shape"])}
        return Result(Cell(**cell), **values)


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean, which treats twice and half alike.

    >>> round(geometric_mean([1.0, 4.0]), 9)
    2.0
    """
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def grid(config: BenchConfig) -> list[Cell]:
    """Return the cells of a run in the order in which they are measured.

    Args:
        config: Resolved.
    """
    makers = {"modules": _module_cells, "network": _network_cells, "scaling": _scaling_cells}
    cells = [cell for part in makers if part in config.parts for cell in makers[part](config)]
    return list(dict.fromkeys(cells))


def _module_cells(config: BenchConfig) -> list[Cell]:
    def cell(mode: str, size: tuple[int, int, int], layout: str) -> Cell:
        shape = (config.batch_size, *size)
        return Cell("modules", "", mode, shape, config.dtype, layout, config.threads or 1)

    return [
        cell(mode, size, layout)
        for mode in (FORWARD, BOTH)
        for layout in config.memory_formats
        for size in config.maps
    ]


def _network_cells(config: BenchConfig) -> list[Cell]:
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    return [
        Cell("network", "", mode, shape, config.dtype, layout, config.threads or 1)
        for mode in (INFERENCE, TRAINING)
        for layout in config.memory_formats
    ]


def _scaling_cells(config: BenchConfig) -> list[Cell]:
    channels, side, threads = config.growth_channels, config.growth_side, config.threads or 1
    shapes = {
        "threads": [(1, channels, side, side)] if threads > 1 else [],
        "batch": [(n, channels, side, side) for n in config.growth_batches],
        "map": [(config.batch_size, channels, n, n) for n in config.growth_sides],
    }
    return [
        Cell("scaling", study, mode, shape, config.dtype, layout, threads)
        for study in shapes
        for mode in (FORWARD, BOTH)
        for layout in config.memory_formats
        for shape in shapes[study]
    ]
