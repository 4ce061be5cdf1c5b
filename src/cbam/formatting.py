"""Numbers in words, and tables in columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def counted(number: int, what: str) -> str:
    """Write a number with the thing that it counts.

    >>> counted(1, "epoch"), counted(1200, "model")
    ('1 epoch', '1,200 models')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write a time for people.

    >>> duration(7.2), duration(75), duration(7300)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def columns(
    rows: Sequence[Sequence[str]], left: Collection[int] = (0,), headings: Sequence[str] | None = None
) -> list[str]:
    """Return the rows of a table as lines with aligned columns.

    Args:
        rows: of cells, all of one length.
        left: the columns that are aligned to the left; the others to the right.
        headings: a line above, each over the column where it begins, wider than that if need be; empty for none.

    >>> print(*columns([("layer", "weights"), ("conv", "9"), ("linear", "10")]), sep="\\n")
    layer   weights
    conv          9
    linear       10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    above = ""
    for index, heading in enumerate(headings or ()):
        if heading:
            above = above.ljust(sum(widths[:index]) + 2 * index) + heading
    return [above, *lines] if headings else lines
