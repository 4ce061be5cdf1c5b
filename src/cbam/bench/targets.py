"""The speed and memory that this library promises, next to what a run measured; `python -m cbam.bench` shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cbam.bench import cases, summary
from cbam.bench.baselines import CAREFUL, TEXTBOOK
from cbam.bench.cases import Result
from cbam.bench.summary import mean_of, ours, over_ours, select

LARGEST = (8, 256, 56, 56)
SHAPES = {LARGEST, (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7)}
WAYS = {"": "as called", cases.GRAPH: "GPU time alone"}


@dataclass(frozen=True)
class Target:
    """One promise: the bound that must be kept, the bound aimed at, whether more is better, and what was measured."""

    figure: str
    must: float
    aim: float
    faster: bool
    measured: float | None

    @property
    def verdict(self) -> str:
        """Say whether the bounds are kept, and by how much the first one is missed."""
        if self.measured is None:
            return "not measured"
        for name, bound in (("aim met", self.aim), ("must met", self.must)):
            if self.measured >= bound if self.faster else self.measured <= bound:
                return name
        return f"MISSED by {abs(self.measured / self.must - 1):.0%}"

    @property
    def cells(self) -> list[str]:
        """The target as a row of a table."""
        sign, measured = (
            ">=" if self.faster else "<=",
            "" if self.measured is None else f"{self.measured:.3f}",
        )
        return [self.figure, f"{sign} {self.must:g}", f"{sign} {self.aim:g}", measured, self.verdict]


def targets(results: Sequence[Result]) -> Iterator[Target]:
    """Yield every promise for the run's device with what the results say about it."""
    yield from _gpu(results) if any(not result.case.threads for result in results) else _cpu(results)


def _cpu(results: Sequence[Result]) -> Iterator[Target]:
    """Where memory formats are not averaged, each has a line of its own."""
    for mode, textbook, compiled in ((cases.FORWARD, (10, 15), (2, 3)), (cases.BOTH, (8, 12), (3, 5))):
        found = select(results, "modules", mode)
        yield Target(f"{mode}: textbook / ours", *textbook, True, mean_of(found, summary.textbook_over_ours))
        best = mean_of(found, summary.best_compiled_over_ours)
        yield Target(f"{mode}: best compiled / ours", *compiled, True, best)
    largest = [r for r in select(results, "modules", cases.FORWARD) if r.case.shape == LARGEST]
    for layout, found in _by_layout(largest):
        figure = f"forward at 8x256x56², {layout} / copy"
        yield Target(figure, 2.0, 1.5, False, mean_of(found, _over_reference))
    for mode, must, aim in ((cases.INFERENCE, 1.08, 1.03), (cases.TRAINING, 1.15, 1.05)):
        for layout, found in _by_layout(select(results, "network", mode)):
            yield Target(f"{mode} / plain, {layout}", must, aim, False, mean_of(found, _over_reference))
    for layout, found in _by_layout(select(results, "network", cases.TRAINING)):
        yield Target(f"bytes saved / plain, {layout}", 1.02, 1.01, False, mean_of(found, _saved))
    for mode in (cases.FORWARD, cases.BOTH):
        for layout, found in _by_layout(select(results, "scaling", mode, study="threads")):
            faster = mean_of(found, _faster_by_threads)
            yield Target(f"1 thread / 2, {mode}, {layout}", 1.6, 1.8, True, faster)


def _gpu(results: Sequence[Result]) -> Iterator[Target]:
    """In bfloat16 and channels_last, at the largest batch of each part that is usually measured."""
    found = [r for r in results if (r.case.dtype, r.case.memory_format) == ("bfloat16", "channels_last")]
    modules = [r for r in found if r.case.part == "modules" and not r.case.study]
    batch = modules[0].case.shape[0] if modules else 128
    stages = [result for result in modules if result.case.shape[0] == batch]

    def mean(mode: str, way: str, measure: Callable[[Result], float | None]) -> float | None:
        return mean_of([result.of_way(way) for result in stages if result.case.mode == mode], measure)

    for way, text in WAYS.items():
        figure = f"forward, N={batch}: share of the copy limit, {text}"
        yield Target(figure, 0.45, 0.75, True, mean(cases.FORWARD, way, summary.copy_share))
    for name, must, aim, measure in (
        (TEXTBOOK, 6.0, 10.0, summary.textbook_over_ours),
        (CAREFUL, 3.0, 4.0, over_ours(CAREFUL)),
        ("best compiled peer", 1.3, 2.0, summary.best_compiled_over_ours),
    ):
        for way, text in WAYS.items():
            figure = f"forward+backward, N={batch}: {name} / ours, {text}"
            yield Target(figure, must, aim, True, mean(cases.BOTH, way, measure))
    ways = ("", cases.GRAPHS, cases.COMPILED_NETWORKS)
    for mode, study, images in (
        *((cases.TRAINING, way, batch) for way in ways),
        *((cases.INFERENCE, way, 1) for way in ways[1:]),
        *((cases.INFERENCE, way, batch) for way in ways),
    ):
        these = [r for r in select(found, "network", mode, study=study) if r.case.shape[0] == images]
        figure = f"ResNet-50 {mode}, batch {images}, {study or 'eager'}: ours / plain"
        yield Target(figure, 1.10, 1.03, False, mean_of(these, _over_reference))
    eager = [r for r in select(found, "network", cases.TRAINING) if r.case.shape[0] == batch]
    kept = mean_of(eager, _saved)
    yield Target("ResNet-50, bytes kept for backward: ours / plain", 1.02, 1.01, False, kept)
    calls = [call for call in summary.dram_passes(results) if call["direction"] == "forward"]
    passes = [call["passes"] for call in calls if call["provider"] == "ours"]
    yield Target(f"DRAM passes, forward, N={batch}, worst stage", 4.2, 2.3, False, max(passes, default=None))


def deviations(results: Sequence[Result]) -> Iterator[str]:
    """Yield how the options of a run on a CPU differ from those that the promises assume."""
    for name, expected in (("threads", {2}), ("dtype", {"float32"})):
        given = {getattr(result.case, name) for result in results}
        if given != expected:
            yield f"{name} {', '.join(map(str, sorted(given)))} instead of {expected.pop()}"
    shapes = {result.case.shape for result in select(results, "modules")}
    if shapes and shapes != SHAPES:
        yield f"module shapes {sorted(shapes)} instead of {sorted(SHAPES)}"
    images = {result.case.shape for result in select(results, "network")}
    if images and images != {(8, 3, 224, 224)}:
        yield f"images {sorted(images)} instead of (8, 3, 224, 224)"


def _over_reference(result: Result) -> float | None:
    known = ours(result) in result.samples_ms and result.case.reference in result.samples_ms
    return result.ratio(ours(result)) if known else None


def _saved(result: Result) -> float | None:
    mine, plain = (result.saved_bytes.get(name) for name in (ours(result), cases.PLAIN))
    return mine / plain if mine and plain else None


def _faster_by_threads(result: Result) -> float:
    return result.ratio(ours(result) + cases.ONE_THREAD, ours(result))


def _by_layout(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    layouts = list(dict.fromkeys(result.case.memory_format for result in results))
    for layout in layouts or ["any layout"]:
        yield layout, [result for result in results if result.case.memory_format == layout]
