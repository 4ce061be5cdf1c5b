"""The cases of a run in the order in which they are measured, and the result of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cbam.bench.baselines import COPY
from cbam.bench.config import BenchConfig, shape_text
from cbam.evaluate.timing import quartiles, ratios

FORWARD, BOTH = "forward", "forward+backward"
INFERENCE, TRAINING = "inference", "training step"
PLAIN = "plain"
GRAPH, HOT, UNCOMPILED = ", in a graph", ", in a graph, map in the cache", ", and without the compiler"
"""Behind a name: timed in a CUDA graph on a cold cache, or right after the map was written; or without the compiler,
in the same rounds as with it."""
ONE_THREAD = ", 1 thread"
GRAPHS, COMPILED_NETWORKS, EVERYTHING_COMPILED = "CUDA graph", "compiled", "everything compiled"
REDUCED = "compiled, reduce-overhead"
"""How networks are run; for modules EVERYTHING_COMPILED adds to the usual study, which compiles two of them."""
RELU = "relu"
TINY = (1, 64, 4, 4)
"""A map on which a call costs what it costs the host."""


@dataclass(frozen=True)
class Case:
    """One measurement: everything in it is timed in the same rounds.

    Args:
        part: As in `cbam.bench.config`, except that compiled networks are of the part network.
        study: Of the scaling part threads, batch or map; of networks how they are run; otherwise mostly empty.
        mode: forward, forward+backward, inference or training step.
        shape: (N, C, H, W) of the input.
        dtype, memory_format: By name.
        threads: CPU threads; 0 on a GPU.
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
        """The case's unique name in its run.

        >>> Case("modules", "", "forward", (8, 256, 56, 56), "float32", "contiguous", 2).name
        'modules forward 8x256x56² float32 contiguous 2 threads'
        """
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        words = (
            self.part, self.study, self.mode, shape_text(self.shape), self.dtype, self.memory_format, threads,
        )  # fmt: skip
        return " ".join(word for word in words if word)

    @property
    def reference(self) -> str:
        """What ratios are relative to."""
        return {"network": PLAIN, "host": RELU}.get(self.part, COPY)

    @property
    def compiles(self) -> bool:
        """Whether something in the case is compiled, if the run compiles anything."""
        return self.part == "modules" or self.study in (COMPILED_NETWORKS, REDUCED, EVERYTHING_COMPILED)

    @property
    def asked_by(self) -> str:
        """The value of --parts that asks for it."""
        return "compiled" if self.part == "network" and self.compiles else self.part


@dataclass
class Result:
    """What was measured in a case.

    Args:
        case: Which one.
        samples_ms: Provider -> milliseconds, one sample per round.
        saved_bytes: Provider -> bytes kept for backward.
        peak_bytes: Provider -> bytes by which one step raises PyTorch's memory at most.
        input_bytes: Size of the input.
        finished: When, in UTC.
        notes: What could not be measured, and why.
        extra: Results that are not times: checks, kernels, traffic; and the GPU's state.
    """

    case: Case
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    saved_bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    input_bytes: int = 0
    finished: str = ""
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def quartiles(self, provider: str) -> tuple[float, float, float]:
        """Return the quartiles of a provider's milliseconds."""
        return quartiles(self.samples_ms[provider])

    def ratio(self, provider: str, reference: str | None = None) -> float:
        """Return the median over the rounds of provider / reference; by default the case's own reference."""
        return self.ratio_quartiles(provider, reference)[1]

    def ratio_quartiles(self, provider: str, reference: str | None = None) -> tuple[float, float, float]:
        """Return the quartiles over the rounds of provider / reference."""
        below = self.samples_ms[reference or self.case.reference]
        return quartiles(ratios(self.samples_ms[provider], below))

    @property
    def ways(self) -> list[str]:
        """The ways in which it was timed: "" for a plain call, GRAPH, HOT, UNCOMPILED."""
        ways = ("", GRAPH, HOT, UNCOMPILED)
        return [way for way in ways if self.case.reference + way in self.samples_ms]

    def of_way(self, way: str) -> Result:
        """Return the times of one way only, under the providers' own names."""
        others = tuple(other for other in (GRAPH, HOT, UNCOMPILED) if other != way)
        kept = {
            name.removesuffix(way): samples
            for name, samples in self.samples_ms.items()
            if name.endswith(way) and not name.endswith(others)
        }
        return replace(self, samples_ms=kept)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return {"name": self.case.name, **asdict(self)}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Result:
        """Read what `to_json` made, or its form before version 0.1, which says cell instead of case."""
        values = {key: value for key, value in content.items() if key not in ("name", "case", "cell")}
        case = content.get("case") or content["cell"]
        return Result(Case(**{**case, "shape": tuple(case["shape"])}), **values)


def cases(config: BenchConfig) -> list[Case]:
    """Return the cases of a run in the order in which they are measured.

    Args:
        config: In effect.
    """
    found = _on_gpu(config) if config.like_gpu else _on_cpu(config)
    return [case for case in dict.fromkeys(found) if case.asked_by in config.parts]


def _case(
    config: BenchConfig, part: str, mode: str, shape: Iterable[int], study: str = "", **other: str
) -> Case:
    values: dict[str, Any] = {"dtype": config.dtype, "memory_format": config.memory_formats[0], **other}
    n, c, h, w = shape
    return Case(
        part, study, mode, (n, c, h, w), threads=0 if config.like_gpu else config.threads or 1, **values
    )


def _modules(
    config: BenchConfig, batch: int, modes: Iterable[str], study: str = "", **other: str
) -> Iterator[Case]:
    for mode in modes:
        for size in config.maps:
            yield _case(config, "modules", mode, (batch, *size), study, **other)


def _networks(
    config: BenchConfig, batch: int, modes: Iterable[str], study: str = "", **other: str
) -> Iterator[Case]:
    for mode in modes:
        yield _case(config, "network", mode, (batch, 3, config.image_size, config.image_size), study, **other)


def _scaling(config: BenchConfig) -> Iterator[Case]:
    threads, (batches, sides, (channels, side)) = (
        (0 if config.like_gpu else config.threads or 1),
        config.scaling,
    )
    shapes = {
        "threads": [(1, channels, side, side)] if threads > 1 else [],
        "batch": [(n, channels, side, side) for n in batches],
        "map": [(config.batch_size, channels, n, n) for n in sides],
    }
    for study in shapes:
        for mode in (FORWARD, BOTH):
            for layout in config.memory_formats:
                for shape in shapes[study]:
                    yield _case(config, "scaling", mode, shape, study, memory_format=layout)


def _on_cpu(config: BenchConfig) -> Iterator[Case]:
    for mode in (FORWARD, BOTH):
        for layout in config.memory_formats:
            yield from _modules(config, config.batch_size, (mode,), memory_format=layout)
    for mode in (INFERENCE, TRAINING):
        for layout in config.memory_formats:
            yield from _networks(config, config.batch_size, (mode,), memory_format=layout)
    yield from (_case(config, "host", mode, TINY) for mode in (FORWARD, BOTH))
    yield from _scaling(config)
    if config.compile or config.small:
        for layout in config.memory_formats:
            steps = (TRAINING, INFERENCE)
            yield from _networks(config, config.batch_size, steps, COMPILED_NETWORKS, memory_format=layout)
    yield _case(config, "code", "", (128, 256, 56, 56), dtype="bfloat16", memory_format="channels_last")


def _on_gpu(config: BenchConfig) -> Iterator[Case]:
    """Yield the most important first: a time budget may end the run early."""
    main, both, steps = config.batch_size, (BOTH, FORWARD), (TRAINING, INFERENCE)
    stages = [(main, *size) for size in config.maps]
    yield _case(config, "checks", "", stages[0])
    yield from (_case(config, "kernels", BOTH, shape) for shape in stages)
    yield from _modules(config, main, both)
    yield from _networks(config, main, steps, GRAPHS)
    yield from _networks(config, 1, (INFERENCE,), GRAPHS)
    if config.compile:
        yield from _networks(config, main, steps, COMPILED_NETWORKS)
    yield from (_case(config, "host", mode, TINY) for mode in (FORWARD, BOTH))
    yield from _networks(config, main, steps)
    yield from (_case(config, "kernels", BOTH, (1, *size)) for size in config.maps)
    yield _case(config, "traffic", "", stages[0])
    if config.compile:
        yield from _networks(config, main, steps, REDUCED)
    if config.small:
        yield from _scaling(config)
        return
    for batch in (32, 1):
        yield from _modules(config, batch, both)
    for batch in (32, 256, 1):
        yield from _networks(config, batch, steps)
    for dtype, layout in ((config.dtype, "contiguous"), ("float32", "channels_last")):
        yield from _modules(config, main, both, dtype=dtype, memory_format=layout)
    yield from _modules(config, 256, both)
    if config.compile:
        yield from _networks(config, 1, (INFERENCE,), COMPILED_NETWORKS)
        yield from _modules(config, main, both, EVERYTHING_COMPILED)
        yield from _networks(config, main, steps, EVERYTHING_COMPILED)
    yield from _scaling(config)
