"""Run all cases of a kind, and show what came of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import SkipTest

from cbam.formatting import columns, counted
from cbam.nn.kind import Builder
from cbam.testing.cases import CHECKS, Case, cases

_MOST_SHOWN = 20


class Row(NamedTuple):
    """What came of one case: "passed", "failed" or "not applicable", and why."""

    case: Case
    outcome: str
    why: str = ""


@dataclass(frozen=True)
class Results:
    """What came of the cases; prints as a table, one line a check, and the cases that failed."""

    rows: tuple[Row, ...]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.outcome == "failed")

    def __str__(self) -> str:
        table = [("check", "cases", "passed", "failed", "")]
        for check in CHECKS:
            rows = [row for row in self.rows if row.case.check == check]
            if not rows:
                continue
            count = Counter(row.outcome for row in rows)
            notes = sorted({row.why for row in rows if row.outcome == "not applicable"})
            numbers = (str(len(rows)), str(count["passed"]), str(count["failed"]))
            table.append((check, *numbers, "; ".join(f"not applicable: {note}" for note in notes)))
        lines = columns(table, left=(0, 4))
        for row in self.failed[:_MOST_SHOWN]:
            lines += ["", f"FAILED {row.case}", f"  {row.why}"]
        if len(self.failed) > _MOST_SHOWN:
            lines += ["", f"and {len(self.failed) - _MOST_SHOWN} more"]
        return "\n".join(lines)


class ChecksFailed(AssertionError):
    """Some cases failed; `results` holds all of them."""

    def __init__(self, results: Results):
        self.results = results
        count = counted(len(results.rows), "case")
        super().__init__(f"{len(results.failed)} of {count} failed\n\n{results}")


def check_attention(attention: str | Builder, **arguments: Any) -> Results:
    """Check a kind of attention, registered or not, in every way in which this library checks its own.

    Args:
        attention: a registered name, or a class or function channels -> module.
        **arguments: as `cbam.testing.cases` takes them: `checks`, `backends`, `dtypes`, `memory_formats`, `shapes`,
            `device`, and the options of the attention.

    Returns:
        What came of every case; `print` shows it as a table.

    Raises:
        ChecksFailed: an `AssertionError` that names the cases that failed; its `results` hold all of them.
        CBAMError: an unknown name, see `cases`.

    >>> print(check_attention("eca", checks=["deepcopy", "state dict"]))
    check       cases  passed  failed
    deepcopy        1       1       0
    state dict      1       1       0
    """
    results = Results(tuple(map(_row, cases(attention, **arguments))))
    if results.failed:
        raise ChecksFailed(results)
    return results


def _row(case: Case) -> Row:
    try:
        case.run()
    except SkipTest as reason:
        return Row(case, "not applicable", str(reason))
    except AssertionError as error:
        return Row(case, "failed", _first_line(error) or "an assertion without a message")
    except Exception as error:  # of the user's module
        return Row(case, "failed", f"{type(error).__name__}: {_first_line(error)}")
    return Row(case, "passed")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else ""
