"""benchmarks/insertion.py: the networks' names in its table."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import insertion


def test_what_cbam_was_depends_on_what_stood_beside_it():
    before, now = ("none", "cbam", "cbam_scaled"), ("none", "cbam_unscaled", "cbam")
    as_it_is, divided = "identity, kernel as it is", "identity, kernel / √fan-in"
    assert [insertion.shown(name, before) for name in before] == ["plain", as_it_is, divided]
    assert [insertion.shown(name, now) for name in now] == ["plain", as_it_is, divided]
