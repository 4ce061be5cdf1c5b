"""The report of a loaded checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockRow:
    """One attention block.

    Args:
        source: its name in the file, "" for a file that is one block.
        target: the site that took it.
        tensors: how many it has.
        changes: what was converted.
    """

    source: str
    target: str
    tensors: int
    changes: tuple[str, ...]


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded and converted, and what was missing or unexpected; `print` it.

    Args:
        source: the file.
        format: of its attention; None for a plain network.
        loaded: names of the model's tensors that were set.
        blocks: a row for each attention block.
        missing: names of the model's tensors that are not in the file; they keep their values.
        unexpected: names of the file's tensors that are not in the model.
        kept: names of attention weights that keep their values because the file is a plain network's.
        notes: other remarks.
    """

    source: str
    format: str | None
    loaded: tuple[str, ...]
    blocks: tuple[BlockRow, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the file went into the model, and none of the model's is missing."""
        return not self.missing and not self.unexpected

    def __str__(self) -> str:
        format = f"format {self.format}" if self.format else "no block of CBAM"
        lines = [f"{self.source}: {format}; {len(self.loaded)} tensors loaded"]
        lines += block_table(self.blocks)
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected), ("kept", self.kept)):
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
