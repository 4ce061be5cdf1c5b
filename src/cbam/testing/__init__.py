"""Check a kind of attention as this library checks its own: `check_attention` in one call, `cases` for pytest."""

from cbam.testing.cases import CHECKS, Case, cases
from cbam.testing.results import ChecksFailed, Results, Row, check_attention

__all__ = ["CHECKS", "Case", "ChecksFailed", "Results", "Row", "cases", "check_attention"]
