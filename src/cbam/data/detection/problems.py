"""The faults of a set: each kind counted, its first cases named, and said what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cbam.data.scan import some

_NAMED = 5


@dataclass
class Fault:
    """One kind of fault: how often it was met, the first cases, and what is done about it."""

    kind: str
    done: str
    count: int = 0
    first: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rest = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return f"{self.count:,} {self.kind} ({self.done}): {some(self.first, _NAMED)}{rest}"


class Problems:
    """Collects faults while a set is read.

    An error is a fault after which nobody knows what was meant: training stops, or the annotation or image is left
    out where the user asked for that. A warning is one that has an obvious repair, which was made.

    >>> problems = Problems()
    >>> problems.warning("boxes partly outside the image", "clipped", "a.jpg")
    >>> problems.error("images of unknown size", "b.jpg")
    >>> print(*problems.errors, *problems.warnings, sep="\\n")
    1 images of unknown size (left out): b.jpg
    1 boxes partly outside the image (clipped): a.jpg
    """

    def __init__(self) -> None:
        self._errors: dict[str, Fault] = {}
        self._warnings: dict[str, Fault] = {}
        self.notices: list[str] = []

    def error(self, kind: str, where: str, done: str = "left out") -> None:
        """Count an error."""
        self._count(self._errors, kind, done, where)

    def warning(self, kind: str, done: str, where: str) -> None:
        """Count a warning; `done` is the repair."""
        self._count(self._warnings, kind, done, where)

    def notice(self, text: str) -> None:
        """Note something that is no fault, once."""
        if text not in self.notices:
            self.notices.append(text)

    @property
    def errors(self) -> tuple[Fault, ...]:
        """The errors, in the order in which each kind was met first."""
        return tuple(self._errors.values())

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """The warnings, likewise."""
        return tuple(self._warnings.values())

    def lines(self) -> Iterator[str]:
        """Yield a line for each kind of fault and each notice, worst first."""
        yield from (f"error: {fault}" for fault in self.errors)
        yield from (f"warning: {fault}" for fault in self.warnings)
        yield from (f"note: {text}" for text in self.notices)

    @staticmethod
    def _count(faults: dict[str, Fault], kind: str, done: str, where: str) -> None:
        fault = faults.setdefault(kind, Fault(kind, done))
        fault.count += 1
        if len(fault.first) < _NAMED:
            fault.first.append(where)
