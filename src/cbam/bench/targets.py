"""A figure that is promised, beside what a run measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One promise.

    Args:
        figure: What is measured.
        must: The bound to be kept.
        aim: The bound hoped for.
        faster: True if more is better.
        measured: What the run says; None if it did not measure that.
    """

    figure: str
    must: float
    aim: float
    faster: bool
    measured: float | None

    @property
    def verdict(self) -> str:
        """Say whether the bounds are kept, and by how much the first one is missed."""
        if self.measured is None:
            return "not measured"
        for name, bound in (("aim met", self.aim), ("must met", self.must)):
            if self.measured >= bound if self.faster else self.measured <= bound:
                return name
        return f"MISSED by {abs(self.measured / self.must - 1):.0%}"
