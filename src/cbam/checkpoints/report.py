"""What came out of a checkpoint, as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockRow:
    """One attention block.

    Args:
        source: its name in the file, "" for a file that is one block.
        target: where it went.
        tensors: how many.
        changes: what was converted, in words.
    """

    source: str
    target: str
    tensors: int
    changes: tuple[str, ...]


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded, converted, missing and left over; `print` it.

    Args:
        source: the file.
        dialect: whose CBAM it holds, None for a plain network.
        loaded: names of the model's tensors that were set.
        blocks: a row for each attention block.
        missing: names of the model's tensors that the file has not, and that kept their values.
        left_over: names of the file's tensors that found no place.
        kept: names of attention weights that kept their values because the file is that of a plain network.
        notes: what the user should know.
    """

    source: str
    dialect: str | None
    loaded: tuple[str, ...]
    blocks: tuple[BlockRow, ...] = ()
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the file went into the model, and none of the model's is missing."""
        return not self.missing and not self.left_over

    def __str__(self) -> str:
        dialect = f"dialect {self.dialect}" if self.dialect else "a plain network, no attention"
        lines = [f"{self.source}: {dialect}; {len(self.loaded)} tensors loaded"]
        lines += block_table(self.blocks)
        for what, names in (("missing", self.missing), ("left over", self.left_over), ("kept", self.kept)):
            if names:
                lines.append(f"{what}: {len(names)} ({shortened(names)})")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def block_table(blocks: tuple[BlockRow, ...]) -> list[str]:
    """Return the lines of the table of attention blocks.

    >>> print(*block_table((BlockRow("layer1.0.cbam", "layer1.0.bn3.cbam", 5, ("kernel planes swapped",)),)), sep="\\n")
    in the file    went to            tensors  converted
    layer1.0.cbam  layer1.0.bn3.cbam        5  kernel planes swapped
    """
    if not blocks:
        return []
    rows = [("in the file", "went to", "tensors", "converted")]
    rows += [
        (b.source or "(top)", b.target or "(top)", str(b.tensors), "; ".join(b.changes) or "-")
        for b in blocks
    ]
    wide = [max(len(row[i]) for row in rows) for i in range(3)]
    return [f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d}" for a, b, c, d in rows]


def shortened(names: tuple[str, ...] | list[str], most: int = 3) -> str:
    """Return the first few names.

    >>> shortened(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
