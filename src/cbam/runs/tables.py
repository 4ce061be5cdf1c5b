"""Tables of text, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

SEPARATOR: list[str] = []


@dataclass
class Section:
    """One table.

    Args:
        title: Above it.
        head: Headings of the columns.
        rows: Cells. SEPARATOR draws a line on a terminal; a row of one cell is a heading for those below it.
        notes: Sentences below the title.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the table with its title as Markdown.

        >>> print(Section("Sizes", ["map", "side"], [["a|b", "7"]]).markdown())
        ## Sizes
        <BLANKLINE>
        | map | side |
        |---|---|
        | a\\|b | 7 |
        """
        lines = [f"## {self.title}", ""]
        for note in self.notes:
            lines += [note, ""]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in self.rows if row is not SEPARATOR]
        return "\n".join(lines + (markdown(self.head, rows) if rows else [])).rstrip()


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown; rows that are too short get empty cells.

    >>> markdown(["a", "b"], [["1"]])
    ['| a | b |', '|---|---|', '| 1 |  |']
    """
    whole = [[*map(" ".join, map(str.split, row)), *[""] * (len(head) - len(row))] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in whole]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def show(sections: Iterable[Section], console: Console) -> None:
    """Print tables on a terminal."""
    for section in sections:
        # A line of its own: rich would break it to the width of the table.
        console.print(Text(section.title, style="bold"))
        for note in section.notes:
            console.print(Text(note), soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, heading in enumerate(section.head):
            # Where there is no room, the names in front take two lines, and no number is cut off.
            table.add_column(heading, justify="right" if number else "left", no_wrap=number > 0)
        for row in section.rows:
            if row is SEPARATOR:
                table.add_section()
            else:
                table.add_row(*map(Text, row), style="dim" if len(row) == 1 else None)  # no markup in them
        if section.rows:
            console.print(table)
