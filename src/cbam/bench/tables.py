"""The terminal's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cbam.bench.cells import BOTH, FORWARD, INFERENCE, TRAINING, Result, geometric_mean
from cbam.bench.rivals import COPY
from cbam.bench.scaling import ONE_THREAD, slope
from cbam.bench.settings import shape_text
from cbam.bench.summary import (
    best_compiled_over_ours,
    mean_of,
    mean_ratio,
    ours,
    providers,
    select,
    textbook_over_ours,
    widest_spread,
)


def show(results: Sequence[Result], console: Console) -> None:
    """Print the tables of whatever parts there are, their titles above them, and how far to trust them."""
    for table in _tables(results):
        if table.title:
            # As a line of its own: rich would break it to the width of the table.
            console.print(Text(str(table.title), style="bold"))
            table.title = None
        console.print(table)
    spread = widest_spread(results)
    if spread is not None:
        share, result, provider = spread
        console.print(
            "Times are medians over the rounds; quartiles are in bench.csv. "
            f"Widest spread: quartiles {100 * share:.0f} % of the median apart ({provider}, {result.cell.name})."
        )


def _tables(results: Sequence[Result]) -> Iterator[Table]:
    if timed := select(results, "modules"):
        yield from module_tables(timed)
        yield memory_table(select(timed, "modules", BOTH))
    if networks := select(results, "network"):
        yield network_table(networks)
    if threads := select(results, "scaling", study="threads"):
        yield threads_table(threads)
    for study, title in (("batch", "growing batch"), ("map", "growing map")):
        if grown := select(results, "scaling", study=study):
            yield growth_table(grown, title)


def module_tables(results: Sequence[Result]) -> Iterator[Table]:
    """Yield one table for each mode and memory format."""
    for mode in (FORWARD, BOTH):
        for layout in _layouts(results):
            if shapes := select(results, "modules", mode, layout):
                yield _module_table(shapes, mode, layout)


def _module_table(results: Sequence[Result], mode: str, layout: str) -> Table:
    cell = results[0].cell
    table = _table(
        f"{mode}, {layout}, N={cell.shape[0]}, {cell.dtype}, {_threads(cell.threads)}: ms, times a copy"
    )
    table.add_column("module", no_wrap=True)
    for result in results:
        table.add_column(shape_text(result.cell.shape[1:]), justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    for provider in providers(results):
        cells = [f"{_three(r.quartiles(provider)[1])} {_times(r.ratio(provider)):>5}" for r in results]
        table.add_row(provider, *cells, _times(mean_ratio(results, provider)))
    table.add_section()
    measures: tuple[tuple[str, Callable[[Result], float | None]], ...] = (
        ("textbook / ours", textbook_over_ours),
        ("compiled / ours", best_compiled_over_ours),
    )
    for label, measure in measures:
        mean = mean_of(results, measure)
        if mean is not None:
            table.add_row(label, *(_times(measure(r) or 0) for r in results), _times(mean))
    return table


def memory_table(results: Sequence[Result]) -> Table:
    """Return what the modules keep for backward and take at most, in sizes of the map."""
    layouts = _layouts(results)
    table = _table("memory of forward+backward, in sizes of the map, geometric mean over the shapes")
    table.add_column("module", no_wrap=True)
    for layout in layouts:
        table.add_column(f"saved,\n{layout}", justify="right")
        table.add_column(f"peak,\n{layout}", justify="right")
    for provider in results[0].saved_bytes:
        cells = []
        for layout in layouts:
            chosen = select(results, "modules", BOTH, layout)
            for counts in ("saved_bytes", "peak_bytes"):
                shares = [getattr(r, counts).get(provider, 0) / r.input_bytes for r in chosen]
                cells.append(f"{geometric_mean(shares):.2f}" if all(shares) else "")
        table.add_row(provider, *cells)
    return table


def network_table(results: Sequence[Result]) -> Table:
    """Return times and memory of whole networks."""
    cell = results[0].cell
    table = _table(
        f"network, batch {cell.shape[0]}, {cell.shape[-1]} px, {cell.dtype}, {_threads(cell.threads)}: "
        "ms, times plain"
    )
    for heading in ("", "inference", "", "training", "", "saved", "peak"):
        table.add_column(heading, justify="right" if table.columns else "left", no_wrap=True)
    for layout in _layouts(results):
        table.add_row(layout, style="dim")
        inference = select(results, "network", INFERENCE, layout)
        training = select(results, "network", TRAINING, layout)
        for provider in providers([*inference, *training]):
            cells = []
            for found in (inference, training):
                cells += [f"{r.quartiles(provider)[1]:.0f}" for r in found] or [""]
                cells += [f"{r.ratio(provider):.3f}" for r in found] or [""]
            for counts in ("saved_bytes", "peak_bytes"):
                cells += [f"{_share(getattr(r, counts), provider, r.cell.reference)}" for r in training] or [
                    ""
                ]
            table.add_row("  " + provider, *cells)
    return table


def threads_table(results: Sequence[Result]) -> Table:
    """Return what several threads bring to one sample."""
    cell = results[0].cell
    table = _table(
        f"one sample, {shape_text(cell.shape)}, {cell.dtype}: ms with 1 and with {_threads(cell.threads)}"
    )
    for heading in ("mode", "memory format", "1", str(cell.threads), "faster", "a copy"):
        table.add_column(heading, justify="left" if len(table.columns) < 2 else "right")
    for result in results:
        mine = ours(result)
        table.add_row(
            result.cell.mode,
            result.cell.memory_format,
            _three(result.quartiles(mine + ONE_THREAD)[1]),
            _three(result.quartiles(mine)[1]),
            f"{result.ratio(mine + ONE_THREAD, mine):.2f}x",
            f"{result.ratio(COPY + ONE_THREAD, COPY):.2f}x",
        )
    return table


def growth_table(results: Sequence[Result], title: str) -> Table:
    """Return the time per element from small to large, and the exponent of time over size."""
    mine, cell = ours(results[0]), results[0].cell
    table = _table(f"{title}, {mine}, {_threads(cell.threads)}: ps per element, times a copy")
    table.add_column("map", no_wrap=True)
    columns = [(mode, layout) for mode in (FORWARD, BOTH) for layout in _layouts(results)]
    groups = [select(results, "scaling", mode, layout, cell.study) for mode, layout in columns]
    for mode, layout in columns:
        heading = mode.replace("+", "\n+")
        table.add_column(f"{heading}\n{layout}", justify="right", no_wrap=True)
    for row in zip(*groups, strict=True):
        cells = [f"{1e9 * r.quartiles(mine)[1] / _elements(r):.0f} {_times(r.ratio(mine)):>5}" for r in row]
        table.add_row(shape_text(row[0].cell.shape), *cells)
    table.add_section()
    slopes = [slope([_elements(r) for r in rs], [r.quartiles(mine)[1] for r in rs]) for rs in groups]
    table.add_row("time ~ size^", *(f"{value:.2f}" for value in slopes))
    return table


def _elements(result: Result) -> int:
    batch, channels, height, width = result.cell.shape
    return batch * channels * height * width


def _share(counts: dict[str, int], provider: str, reference: str) -> str:
    return f"{counts[provider] / counts[reference]:.3f}" if provider in counts else ""


def _layouts(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.cell.memory_format for result in results))


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _three(milliseconds: float) -> str:
    """Write a time with three digits.

    >>> _three(0.03712), _three(3.712), _three(37.12), _three(371.2)
    ('0.037', '3.71', '37.1', '371')
    """
    if milliseconds >= 100:
        return f"{milliseconds:.0f}"
    return f"{milliseconds:.{1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3}f}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 99.5 else f"{ratio:.1f}x" if ratio >= 9.95 else f"{ratio:.2f}x"
