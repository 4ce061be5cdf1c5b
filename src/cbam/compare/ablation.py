"""The paper's ablations as variants of one grid: Tables 1 to 3, reduction ratios, kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cbam.attach.variants import WORDS, parse_variant
from cbam.errors import CBAMError
from cbam.evaluate.paper_tables import PaperRow, paper_table
from cbam.nn.registry import attention_kind

TABLE_NUMBERS = (1, 2, 3)
PRESET = "official"
"""The authors' preset: the only one that gives the paper's parameter counts."""
DEFAULT_KERNEL, DEFAULT_RATIO = 7, 16


@dataclass(frozen=True)
class AblationRow:
    """One network of an ablation, and the row of the paper that it repeats, if there is one."""

    label: str
    variant: str
    paper: PaperRow | None = None


@dataclass(frozen=True)
class Ablation:
    """One ablation: its networks, the one that the paper chose, and notes on the paper's figures."""

    title: str
    rows: tuple[AblationRow, ...]
    choice: str
    notes: tuple[str, ...] = ()


def variant_name(row: PaperRow) -> str:
    """Return the variant of `cbam compare` that is the network of a row of the paper's tables.

    >>> [variant_name(row) for row in paper_table(3).rows][2:]
    ['cbam:official:spatial-channel', 'cbam:official:parallel']
    """
    if row.attention == "none" or "preset" not in attention_kind(row.attention).options:
        return row.attention
    words = [row.attention, PRESET]
    for option in row.switches.items():
        if option == ("kernel_size", DEFAULT_KERNEL):
            continue
        if option[0] == "kernel_size":
            words.append(f"k{option[1]}")
        else:
            words.append(next(text for text, word in WORDS.items() if word.option == option))
    return ":".join(words)


def table(number: int) -> Ablation:
    """Return the networks of the paper's Table 1, 2 or 3.

    Raises:
        CBAMError: another number.

    >>> [row.variant for row in table(1).rows]
    ['none', 'se', 'channel:official:max', 'channel:official']
    """
    if number not in TABLE_NUMBERS:
        raise CBAMError(f"--table takes 1, 2 or 3, the paper's ablations; given {number}")
    printed = paper_table(number)
    rows = tuple(AblationRow(row.label, variant_name(row), row) for row in printed.rows)
    chosen = min(printed.rows, key=lambda row: row.top1)
    return Ablation(f"Table {number}: {printed.title}", rows, variant_name(chosen), printed.notes)


def reductions(ratios: Sequence[int]) -> Ablation:
    """Return CBAM with several reduction ratios, 16 always among them: the paper uses that one only.

    >>> [row.variant for row in reductions([4]).rows]
    ['cbam:official:r4', 'cbam:official']
    """
    return _one_option("reduction ratio r of the channel gate", "r", ratios, DEFAULT_RATIO)


def kernels(sizes: Sequence[int]) -> Ablation:
    """Return CBAM with several kernels of the spatial gate, 7 always among them; the paper tries 3 and 7.

    >>> [row.variant for row in kernels([3, 7]).rows]
    ['cbam:official:k3', 'cbam:official']
    """
    even = [size for size in sizes if size % 2 == 0]
    if even:
        raise CBAMError(f"--kernel takes odd sizes, e.g. 3,5,7,9; given {even[0]}")
    return _one_option("kernel k of the spatial gate", "k", sizes, DEFAULT_KERNEL)


def _one_option(title: str, letter: str, values: Sequence[int], default: int) -> Ablation:
    if not values or min(values) < 1 or len(set(values)) < len(values):
        option = "--reduction" if letter == "r" else "--kernel"
        raise CBAMError(
            f"{option} takes different whole numbers from 1 up, e.g. 4,8,16; given {list(values)}"
        )
    printed = {variant_name(row): row for row in paper_table(2).rows}
    rows = []
    for value in dict.fromkeys([*values, default]):  # all others are compared with the paper's choice
        variant = f"cbam:{PRESET}" if value == default else f"cbam:{PRESET}:{letter}{value}"
        parse_variant(variant)
        rows.append(AblationRow(f"{letter} = {value}", variant, printed.get(variant)))
    return Ablation(title, tuple(rows), f"cbam:{PRESET}")


def variants(ablations: Sequence[Ablation], further: Sequence[str] = ("none",)) -> tuple[str, ...]:
    """Return the variants of all ablations, each once, after the `further` ones.

    >>> variants([table(1), kernels([3, 7])])
    ('none', 'se', 'channel:official:max', 'channel:official', 'cbam:official:k3', 'cbam:official')
    """
    wanted = [row.variant for ablation in ablations for row in ablation.rows]
    return tuple(dict.fromkeys([*further, *wanted]))


def ablations_of(found: Sequence[str]) -> list[Ablation]:
    """Return the ablations whose networks are all among the variants `found`, each with all the values found.

    >>> [ablation.title[:7] for ablation in ablations_of(variants([table(1), kernels([3, 7])]))]
    ['Table 1', 'kernel ']
    """
    complete = [table(number) for number in TABLE_NUMBERS]
    complete = [one for one in complete if {row.variant for row in one.rows} <= set(found)]
    for letter, default, build in (("r", DEFAULT_RATIO, reductions), ("k", DEFAULT_KERNEL, kernels)):
        start = f"cbam:{PRESET}:{letter}"
        values = [
            int(name[len(start) :])
            for name in found
            if name[len(start) :].isdigit() and name.startswith(start)
        ]
        if values and f"cbam:{PRESET}" in found:
            complete.append(build(sorted({*values, default})))
    return complete
