"""The speed and memory that this library promises, next to what a run measured; `python -m cbam.bench` shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cbam.bench import cases, summary
from cbam.bench.cases import Result
from cbam.bench.host import ATTACHED, NORM
from cbam.bench.summary import mean_of, ours, select

LARGEST = (8, 256, 56, 56)
SHAPES = {LARGEST, (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7)}
# Kernel, which count, and (mode, before, must, aim).
INSTRUCTIONS = (
    ("pool", "loop", ((", inference", 10.5, 6, 4.3), (", training", 11.8, 8, 6.4))),
    ("squeeze", "program", ((", inference", 33, 10, 7.4), (", training", 42, 14, 10.6))),
    ("apply", "program", (("", 24, 9, 7.3),)),
    ("gate_grads", "loop", (("", 20, 14, 11.8),)),
    ("convolution_grads", "program", (("", 3041, 900, 500),)),
)
STUB_LAUNCHER = {
    "module, forward": 131.0, "module, backward": 14.7, "block, forward": 182.0, "block, backward": 16.2,
}  # fmt: skip
"""What it was before the host's part was rewritten, in calls of relu; a quarter of that is promised (decision 19)."""


@dataclass(frozen=True)
class Target:
    """One promise: the bound that must be kept, the bound aimed at, whether more is better, and what was measured.

    `before` is what it was before somebody set to work on it, where that is known.
    """

    figure: str
    must: float
    aim: float
    faster: bool
    measured: float | None
    before: float | None = None

    @property
    def verdict(self) -> str:
        """Say whether the bounds are kept, and by how much the first one is missed."""
        if self.measured is None:
            return "not measured"
        for name, bound in (("aim met", self.aim), ("must met", self.must)):
            if self.measured >= bound if self.faster else self.measured <= bound:
                return name
        return f"MISSED by {abs(self.measured / self.must - 1):.0%}" if self.must else "MISSED"

    @property
    def cells(self) -> list[str]:
        """The target as a row of a table."""
        sign = ">=" if self.faster else "<="
        numbers = [
            "" if one is None else f"{one:.4g}" for one in (self.before, self.must, self.aim, self.measured)
        ]
        return [
            self.figure,
            numbers[0],
            f"{sign} {numbers[1]}",
            f"{sign} {numbers[2]}",
            numbers[3],
            self.verdict,
        ]


def targets(results: Sequence[Result]) -> Iterator[Target]:
    """Yield every promise for the run's device with what the results say about it.

    On a CPU those of parts that must be asked for, and of the host, only if they were measured.
    """
    if any(not result.case.threads for result in results):
        yield from _gpu(results)
        return
    measured = {result.case.asked_by for result in results}
    for parts, promises in (
        ({"modules", "network", "scaling"}, _cpu), ({"compiled"}, _compiled), ({"host"}, _host), ({"code"}, _code),
    ):  # fmt: skip
        if measured & parts:
            yield from promises(results)


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
    for mode, study, way, images, before, must, aim in (
        (cases.TRAINING, cases.COMPILED_NETWORKS, cases.GRAPH, batch, 2.09, 1.20, 1.08),
        (cases.TRAINING, cases.GRAPHS, "", batch, 1.28, 1.14, 1.06),
        (cases.TRAINING, "", "", batch, 2.25, 1.30, 1.12),
        (cases.INFERENCE, cases.COMPILED_NETWORKS, cases.GRAPH, batch, 1.65, 1.15, 1.06),
        (cases.INFERENCE, cases.GRAPHS, "", 1, 3.1, 1.35, 1.15),
    ):
        these = [r for r in select(found, "network", mode, study=study) if r.case.shape[0] == images]
        ratio = mean_of([result.of_way(way) for result in these], _over_reference)
        figure = f"ResNet-50 {mode}, batch {images}, {study or 'eager, as called'}{way}: ours / plain"
        yield Target(figure, must, aim, False, ratio, before)
    stages = [result.of_way(cases.GRAPH) for result in modules if result.case.shape[0] == batch]
    for mode, figure, before, must, aim, measure in (
        (cases.FORWARD, "share of the copy limit", 0.17, 0.36, 0.50, summary.copy_share),
        (cases.BOTH, "best compiled peer / ours", 1.12, 2.0, 2.6, summary.best_compiled_over_ours),
    ):
        mean = mean_of([result for result in stages if result.case.mode == mode], measure)
        yield Target(f"{mode}, N={batch}, GPU time alone: {figure}", must, aim, True, mean, before)
    eager = [r for r in select(found, "network", cases.TRAINING) if r.case.shape[0] == batch]
    kept = mean_of(eager, _saved)
    yield Target("ResNet-50, bytes kept for backward: ours / plain", 1.02, 1.01, False, kept, 1.011)
    calls = [call for call in summary.dram_passes(results) if call["direction"] == "forward"]
    passes = max((call["passes"] for call in calls if call["provider"] == "ours"), default=None)
    yield Target(f"DRAM passes, forward, N={batch}, worst stage", 4.2, 2.3, False, passes, 3.9)


def _compiled(results: Sequence[Result]) -> Iterator[Target]:
    for mode, before, must, aim in ((cases.TRAINING, 1.13, 1.04, 0.97), (cases.INFERENCE, None, 1.04, 0.97)):
        for layout, found in _by_layout(select(results, "network", mode, study=cases.COMPILED_NETWORKS)):
            figure = f"{mode} / plain, torch.compile, {layout}"
            yield Target(figure, must, aim, False, mean_of(found, _over_reference), before)


def _host(results: Sequence[Result]) -> Iterator[Target]:
    for mode, figure, before, above, below in (
        (cases.FORWARD, "1x64x4², batch norm with CBAM / batch norm", 6.3, ATTACHED, NORM),
        (cases.BOTH, "1x64x4², CBAM / relu, forward + backward", 7.0, "", cases.RELU),
    ):
        found = select(results, "host", mode)
        times = [r.ratio(above or ours(r), below) for r in found if below in r.samples_ms]
        yield Target(figure, 4.5, 3.0, False, times[0] if times else None, before)


def _code(results: Sequence[Result]) -> Iterator[Target]:
    """Of the kernels at the first stage at batch 128, and of a call with a stub launcher."""
    extra = select(results, "code")[0].extra
    counted, host = extra.get("instructions"), extra.get("host", {}).get("bfloat16", {})
    tables = list(counted["rows"].values()) if counted else []
    for kernel, column, figures in INSTRUCTIONS:
        rows = [row[column] for row in tables[0] if row["name"] == kernel] if tables else []
        for place, (mode, before, must, aim) in zip((0, -1), figures, strict=False):
            per = "for 32 positions" if kernel == "convolution_grads" else "an element"
            figure = f"{kernel}{mode}, instructions {per}"
            yield Target(figure, must, aim, False, rows[place] if rows else None, before)
    launches = counted["launches"] if counted else (None, None)
    forward, backward = (f"launches {mode}, one block in training" for mode in ("forward", "backward"))
    yield Target(forward, 5, 4, False, launches[0], 9)
    yield Target(backward, 7, 5, False, launches[1], 16)
    for name, before in STUB_LAUNCHER.items():
        figure = f"host, stub launcher: {name} / relu"
        yield Target(figure, before / 4, before / 8, False, host.get(name), before)
    registers = [row["registers"] for rows in tables for row in rows if row["loop"]]
    yield Target("registers, worst pass over the map", 128, 96, False, max(registers, default=None), 224)
    yield Target("maps copied around ours, compiled training step", 0, 0, False, extra.get("copies"))


def deviations(results: Sequence[Result]) -> Iterator[str]:
    """Yield how the options of a run on a CPU differ from those that the promises assume."""
    timed = [result for result in results if result.case.part != "code"]
    for name, expected in (("threads", {2}), ("dtype", {"float32"})):
        given = {getattr(result.case, name) for result in timed}
        if timed and given != expected:
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
