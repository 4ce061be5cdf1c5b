"""The cost columns of the paper's tables beside the costs of our networks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import torch

from cbam.attach import attach
from cbam.evaluate.cost import cost
from cbam.evaluate.paper_tables import PaperRow, paper_table
from cbam.formatting import columns
from cbam.models import build_model

WIDTH = 98
_PROBE = (3, 64, 64)  # enough to find the sites


@dataclass(frozen=True)
class CountedRow:
    """A printed row and our count of the same network.

    Args:
        printed: the paper's row.
        parameters: of our network.
        macs: multiply-adds of its convolutions and linear layers, including the attention's, for one image of
            224 x 224: what the paper calls FLOPs.
    """

    printed: PaperRow
    parameters: int
    macs: int

    @property
    def params(self) -> str:
        """Our parameters in millions, with as many digits as in the paper."""
        return rounded(self.parameters, 6, self.printed.params or "0.00")

    @property
    def gflops(self) -> str:
        """Our multiply-adds in billions, with as many digits as in the paper."""
        return rounded(self.macs, 9, self.printed.gflops or "0.000")

    @property
    def params_differ(self) -> bool:
        """Whether the paper prints other digits than ours."""
        return self.printed.params not in (None, self.params)

    @property
    def gflops_differ(self) -> bool:
        """Whether the paper prints other digits than ours."""
        return self.printed.gflops not in (None, self.gflops)


def count_row(row: PaperRow) -> CountedRow:
    """Build the network of a row on the meta device and count its cost.

    >>> from cbam.evaluate.paper_tables import TABLES
    >>> found = count_row(TABLES[4].rows[2])
    >>> found.parameters, found.params, found.gflops
    (11779392, '11.78', '1.815')
    """
    with torch.device("meta"):
        model = build_model(row.backbone, 1000)
        if row.attention != "none":
            attach(model, **row.attach_arguments, init="paper", input_size=_PROBE)
        found = cost(model, (3, 224, 224))
    return CountedRow(row, found.parameters, found.macs)


def render_table(number: int, counted: Sequence[CountedRow] | None = None) -> str:
    """Return a table of the paper with our counts beside it, at most 100 columns wide.

    Args:
        number: 1 to 5.
        counted: its rows, if they have been counted already.

    Raises:
        CBAMError: for another number.
    """
    table = paper_table(number)
    counted = [count_row(row) for row in table.rows] if counted is None else counted
    lines = [f"Table {number} of the paper: {table.title}", ""]
    lines += columns([_HEADINGS, *map(_cells, counted)], headings=_ABOVE)
    lines += ["", *wrapped(_verdict(counted))]
    for note in (*table.notes, _CONVENTION):
        lines += wrapped(note, "- ")
    return "\n".join(lines)


_ABOVE = ("", "M params", "", "", "GFLOPs", "", "", "% error", "")
_HEADINGS = ("", "paper", "ours", "exactly", "paper", "ours", "exactly", "top-1", "top-5")
_CONVENTION = (
    "GFLOPs are multiply-adds of convolutions and linear layers for one image of 224 x 224, including the attention's; "
    "norms, pooling and gating are not counted. Ours are rounded half up to the printed digits. The errors are the "
    "paper's; it gives no seeds and no spread."
)


def _cells(row: CountedRow) -> tuple[str, ...]:
    printed = row.printed
    return (
        printed.label,
        printed.params or "-",
        row.params + (" !" if row.params_differ else "  "),
        f"{row.parameters:,}",
        printed.gflops or "-",
        row.gflops + (" !" if row.gflops_differ else "  "),
        f"{row.macs / 1e9:.5f}",
        f"{printed.top1:.2f}",
        f"{printed.top5:.2f}",
    )


def _verdict(counted: Sequence[CountedRow]) -> str:
    figures = sum(cell is not None for row in counted for cell in (row.printed.params, row.printed.gflops))
    if not figures:
        return "The paper gives no costs here; the table shows only ours."
    different = sum(row.params_differ + row.gflops_differ for row in counted)
    if not different:
        return f"Our networks reproduce all {figures} printed figures, digit for digit."
    return (
        f"Our networks reproduce {figures - different} of {figures} printed figures, digit for digit; "
        f"! marks the {different} that differ{'s' * (different == 1)}."
    )


def wrapped(text: str, bullet: str = "") -> list[str]:
    """Return a text in lines of a table's width."""
    return textwrap.wrap(text, WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet))


def rounded(count: int, power: int, like: str) -> str:
    """Return count / 10^power with as many decimals as `like` has."""
    step = Decimal(1).scaleb(-len(like.partition(".")[2]))
    return str(Decimal(count).scaleb(-power).quantize(step, ROUND_HALF_UP))
