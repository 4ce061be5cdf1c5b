"""The tables of a run, for the terminal and as `bench.md`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cbam.bench import summary
from cbam.bench.baselines import COPY, ours_of
from cbam.bench.cases import INFERENCE, ONE_THREAD, TRAINING, Case, Result
from cbam.bench.config import shape_text
from cbam.bench.summary import mean_of, ours, providers, select
from cbam.bench.targets import deviations, targets
from cbam.evaluate.timing import geometric_mean
from cbam.runs.tables import SEPARATOR, Section

KERNELS_SHOWN, LONGEST_NAME = 12, 70
MOVED = {"pool": 1, "squeeze": 1, "apply": 2, "gate_grads": 2, "weighted": 1, "input_grad": 2}
"""Reads and writes of the map in each pass of the module alone; the other kernels move vectors."""


def sections(results: Sequence[Result]) -> Iterator[Section]:
    """Yield the tables of whatever parts there are, in the order of the results' importance."""
    if checks := select(results, "checks"):
        yield _checks(checks)
    modules = [result for result in results if result.case.part == "modules"]
    for group in _groups(modules, lambda c: (c.study, c.shape[0], c.dtype, c.mode, c.memory_format)):
        for way in group[0].ways:
            yield _modules([result.of_way(way) for result in group], way)
    kept = [result for result in modules if result.saved_bytes]
    for group in _groups(kept, lambda c: (c.study, c.shape[0], c.dtype)):
        yield _memory(group)
    networks = [result for result in results if result.case.part == "network"]
    for group in _groups(networks, lambda c: (c.study, c.shape[0])):
        for way in group[0].ways or [""]:
            yield _network(group, way)
    if host := select(results, "host"):
        yield _host(host)
    if passes := summary.dram_passes(results):
        yield _traffic(passes)
    for result in select(results, "kernels"):
        yield from _kernels(result)
    if threads := select(results, "scaling", study="threads"):
        yield _threads_table(threads)
    for study, title in (("batch", "growing batch"), ("map", "growing map")):
        if grown := select(results, "scaling", study=study):
            yield _growth(grown, title)


def promises(results: Sequence[Result]) -> Section:
    """Return the table of what this library promises beside what was measured."""
    others = deviations(results) if results and results[0].case.threads else ()
    notes = [f"The promises are for other options: {text}." for text in others]
    rows = [
        ["figure", "before", "must", "aim", "measured", ""],
        *(target.cells for target in targets(results)),
    ]
    if not any(row[1] for row in rows[1:]):
        rows = [[row[0], *row[2:]] for row in rows]
    return Section("Promises", rows[0], rows[1:], notes)


def trust(results: Sequence[Result]) -> str:
    """Return how far to trust the times; empty if there are none."""
    widest = summary.widest_quartiles(results)
    if widest is None:
        return ""
    share, result, provider = widest
    return (
        "Times are medians over the rounds; quartiles are in bench.csv. "
        f"Widest quartiles: {100 * share:.0f} % of the median apart ({provider}, {result.case.name})."
    )


def markdown(
    results: Sequence[Result], settings: dict[str, Any], environment: dict[str, Any], left: dict[str, str]
) -> str:
    """Return `bench.md`: machine and versions, targets, all tables, and what was not measured."""
    parts = ["# CBAM next to other implementations", _header(settings, environment)]
    if settings.get("quick") or settings.get("device") == "dry-run":
        parts.append("**A small run: it shows that everything works; the numbers mean nothing.**")
    parts += [section.markdown() for section in (promises(results), *sections(results))]
    notes = dict.fromkeys(note for result in results for note in result.notes)
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    why = {result.case.name: result.extra["why"] for result in results if "why" in result.extra}
    if rows := [[name, reason.replace("\n", " ")] for name, reason in {**why, **left}.items()]:
        parts.append(Section("Not measured", ["", "why"], rows).markdown())
    return "\n\n".join(filter(None, [*parts, trust(results)])) + "\n"


def _header(settings: dict[str, Any], environment: dict[str, Any]) -> str:
    gpu, machine = environment.get("gpu", {}), environment.get("machine", {})
    versions = {"python": environment.get("python"), "CUDA": gpu.get("cuda"), "triton": gpu.get("triton"),
                **environment.get("packages", {})}  # fmt: skip
    load = ", ".join(map(str, machine.get("load") or ["unknown"]))
    lines = [
        f"- host: {machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('threads')} threads, load {load}",
        "- " + ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "- " + ", ".join(f"{name} {settings.get(name)}" for name in ("commit", "code", "operator")),
        "- " + ", ".join(str(one.get("started")) for one in (environment, *environment.get("continued", []))),
    ]
    if "device" in gpu:
        size = f"{gpu['memory_bytes'] / 2**30:.0f} GiB, {gpu['multiprocessors']} multiprocessors"
        state = ", ".join(f"{name} {value}" for name, value in gpu["state"].items())
        lines = [f"- GPU: {gpu['device']}, {size}", f"- {state}", *lines]
    return "\n".join(lines)


def _groups(results: Sequence[Result], key: Callable[[Any], Any]) -> list[list[Result]]:
    found: dict[Any, list[Result]] = {}
    for result in results:
        found.setdefault(key(result.case), []).append(result)
    return list(found.values())


def _checks(results: Sequence[Result]) -> Section:
    counts, failures = (results[0].extra.get(key, {}) for key in ("counts", "failures"))
    note = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none made"
    rule = "The rule: at most twice plain torch's error in the same type, against float64."
    rows = [list(item) for item in failures.items()]
    return Section("Correctness on real shapes", ["check", "result"], rows, [f"{note}. {rule}"])


def _modules(results: Sequence[Result], way: str) -> Section:
    case, on_gpu = results[0].case, not results[0].case.threads
    title = f"{case.mode}, {case.memory_format}, N={case.shape[0]}, {_kind(case)}{way}: ms, times a copy"
    head = ["module", *(shape_text(result.case.shape[1:]) for result in results), "mean"]
    head += ["/ ours"] if on_gpu else []
    rows = []
    for name in providers(results):
        cells = [f"{_three(r.quartiles(name)[1])} {_times(r.ratio(name)):>5}" for r in results]
        mean = mean_of(results, summary.over_ours(name)) if on_gpu else None
        cells += [_times(summary.mean_ratio(results, name)), *([_times(mean)] if mean else [])]
        rows.append([name, *cells])
    rows.append(SEPARATOR)
    for label, measure, write in (
        ("textbook / ours", summary.textbook_over_ours, _times),
        ("compiled / ours", summary.best_compiled_over_ours, _times),
        *([("copy limit", summary.copy_share, lambda share: f"{100 * share:.0f} %")] if on_gpu else []),
    ):
        mean = mean_of(results, measure)
        if mean is not None:
            rows.append([label, *(write(measure(r) or 0) for r in results), write(mean)])
    return Section(title, head, rows)


def _memory(results: Sequence[Result]) -> Section:
    """What the modules keep for backward, and their peak, in sizes of the map."""
    case, layouts = results[0].case, _layouts(results)
    title = f"memory of forward+backward, N={case.shape[0]}, {case.dtype}, in sizes of the map"
    head, rows = ["module"], []
    for layout in layouts:
        head += [f"saved,\n{layout}", f"peak,\n{layout}"]
    for name in results[0].saved_bytes:
        cells = []
        for layout in layouts:
            chosen = [result for result in results if result.case.memory_format == layout]
            for counts in ("saved_bytes", "peak_bytes"):
                shares = [getattr(r, counts).get(name, 0) / r.input_bytes for r in chosen]
                cells.append(f"{geometric_mean(shares):.2f}" if all(shares) else "")
        rows.append([name, *cells])
    return Section(title, head, rows)


def _network(results: Sequence[Result], way: str) -> Section:
    """Times and memory of whole networks."""
    case, rows = results[0].case, []
    title = f"network, batch {case.shape[0]}, {case.shape[-1]} px, {_kind(case)}{way}: ms, times plain"
    results = [result.of_way(way) for result in results]
    notes = [_spread(result) for result in results if ours(result) in result.samples_ms and result.ways]
    for layout in _layouts(results):
        rows.append([layout])
        mine = [r for r in results if r.case.memory_format == layout]
        modes = [[r for r in mine if r.case.mode == mode] for mode in (INFERENCE, TRAINING)]
        for name in dict.fromkeys(name for found in modes for r in found for name in r.samples_ms):
            cells = []
            for found in modes:
                timed = [r for r in found if name in r.samples_ms]
                write = _three if not case.threads else lambda time: f"{time:.0f}"
                cells += [write(r.quartiles(name)[1]) for r in timed] or [""]
                cells += [f"{r.ratio(name):.3f}" for r in timed if r.ways] or [""]
            for counts in ("saved_bytes", "peak_bytes"):
                cells += [_share(getattr(r, counts), name, r.case.reference) for r in modes[1]] or [""]
            rows.append(["  " + name, *cells])
    return Section(title, ["", "inference", "", "training", "", "saved", "peak"], rows, notes)


def _spread(result: Result) -> str:
    """Say how far the rounds' ratios to plain lie apart, and what the fastest of all rounds are to each other."""
    low, middle, high = result.ratio_quartiles(ours(result))
    fastest = min(result.samples_ms[ours(result)]) / min(result.samples_ms[result.case.reference])
    kind = f"{result.case.mode}, {result.case.memory_format}"
    return f"{kind}: ours {middle:.3f} ({low:.3f} to {high:.3f}), of the fastest {fastest:.3f}"


def _host(results: Sequence[Result]) -> Section:
    case = results[0].case
    title = f"host, {shape_text(case.shape)}, {case.dtype}{_threads(case.threads)}: µs of a call, times relu"
    head = ["", *(cell for result in results for cell in (result.case.mode, ""))]
    rows = [[name] for name in providers(results)]
    for row in rows:
        for r in results:
            row += [_three(1000 * r.quartiles(row[0])[1]), _times(r.ratio(row[0]))]
    return Section(title, head, rows, [] if case.threads else ["Without waiting for the GPU."])


def _traffic(passes: Sequence[dict[str, Any]]) -> Section:
    rows = []
    for p in passes:
        counts = [f"{p[key]:.2f}" for key in ("read", "written", "passes")]
        rows.append([p["provider"], shape_text(p["shape"]), p["direction"], *counts])
    head = ["", "map", "direction", "read", "written", "passes"]
    return Section("DRAM traffic, in sizes of the map", head, rows)


def _kernels(result: Result) -> Iterator[Section]:
    """Kernels in the order of their times; of this library's passes also how near they are to a copy of the map."""
    copy = sum(us for _, us in result.extra["kernels"].get(COPY, {}).values())
    for name, kernels in result.extra["kernels"].items():
        if name == COPY:
            continue
        table = sorted(kernels.items(), key=lambda item: -item[1][1])
        shown = table[:KERNELS_SHOWN]
        rows = []
        for kernel, (n, us) in shown:
            maps = MOVED.get(kernel, 0) * n if name == ours_of(result.extra["kernels"]) else 0
            short = kernel if len(kernel) <= LONGEST_NAME else kernel[: LONGEST_NAME - 3] + "..."
            rows.append([short, f"{n:.1f}", _three(us)])
            if maps:
                rows[-1] += [f"{maps * result.input_bytes / 1e6:.1f}", f"{50 * maps * copy / us:.0f} %"]
        rows += [[f"and {len(table) - len(shown)} more"]] if len(table) > len(shown) else []
        launches, total = (sum(row[i] for row in kernels.values()) for i in (0, 1))
        title = f"kernels of forward+backward, {name}, {shape_text(result.case.shape)}"
        note = f"{launches:.0f} launches, {total:.0f} µs; a copy of the map {_three(copy)} µs."
        yield Section(title, ["kernel", "launches", "µs", "MB", "of a copy's speed"], rows, [note])


def _threads_table(results: Sequence[Result]) -> Section:
    """The gain from several threads on one sample."""
    case, rows = results[0].case, []
    title = f"one sample, {shape_text(case.shape)}, {case.dtype}: ms with 1 and {_threads(case.threads)[2:]}"
    for result in results:
        mine = ours(result)
        rows.append([
            result.case.mode, result.case.memory_format, _three(result.quartiles(mine + ONE_THREAD)[1]),
            _three(result.quartiles(mine)[1]), f"{result.ratio(mine + ONE_THREAD, mine):.2f}x",
            f"{result.ratio(COPY + ONE_THREAD, COPY):.2f}x",
        ])  # fmt: skip
    return Section(title, ["mode", "memory format", "1", str(case.threads), "faster", "a copy"], rows)


def _growth(results: Sequence[Result], title: str) -> Section:
    """Time per element from small to large, and the exponent of time over size."""
    mine, case = ours(results[0]), results[0].case
    groups = _groups(results, lambda c: (c.mode, c.memory_format))
    firsts = [group[0].case for group in groups]
    heads = [f"{case.mode}\n{case.memory_format}".replace("+", "\n+") for case in firsts]
    rows = []
    for row in zip(*groups, strict=False):
        cells = [
            f"{1e9 * r.quartiles(mine)[1] / math.prod(r.case.shape):.0f} {_times(r.ratio(mine)):>5}"
            for r in row
        ]
        rows.append([shape_text(row[0].case.shape), *cells])
    if len(rows) > 1:
        times = [
            ([math.prod(r.case.shape) for r in group], [r.quartiles(mine)[1] for r in group])
            for group in groups
        ]
        rows += [SEPARATOR, ["time ~ size^", *(f"{summary.slope(*pair):.2f}" for pair in times)]]
    title += f", {mine}{_threads(case.threads)}: ps per element, times a copy"
    return Section(title, ["map", *heads], rows)


def _share(counts: dict[str, int], provider: str, reference: str) -> str:
    return f"{counts[provider] / counts[reference]:.3f}" if provider in counts and reference in counts else ""


def _layouts(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.case.memory_format for result in results))


def _kind(case: Case) -> str:
    return f"{case.dtype}{_threads(case.threads)}{', ' + case.study if case.study else ''}"


def _threads(count: int) -> str:
    return f", {count} thread{'s' if count > 1 else ''}" if count else ""


def _three(value: float) -> str:
    """Write a time with three digits.

    >>> _three(0.03712), _three(3.712), _three(37.12), _three(371.2)
    ('0.037', '3.71', '37.1', '371')
    """
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 99.5 else f"{ratio:.1f}x" if ratio >= 9.95 else f"{ratio:.2f}x"
