"""Every dialect of CBAM and every other kind, through the checks that are there for everybody's."""

import pytest

from cbam import testing
from tests.nn import conformance

# gate_scale is no option of a kind; a doubled gate is what the check of the identity looks at.
ROWS = {
    name: ("cbam", {"reduction_ratio": 4, **o}) for name, o, _ in conformance.TABLE if "gate_scale" not in o
}
ROWS |= {name: (name, {}) for name in ("se", "channel", "spatial")}
ROWS |= {f"{name} {options or ''}".strip(): (name, options) for name, options, _ in conformance.KINDS}
SHAPES = [(2, 16, 7, 9), (1, 16, 1, 1), (0, 16, 3, 3)]


@pytest.mark.parametrize("check", testing.CHECKS)
@pytest.mark.parametrize("row", ROWS)
def test_passes(row, check):
    name, options = ROWS[row]
    results = testing.check_attention(name, checks=[check], shapes=SHAPES, **options)
    assert {row.outcome for row in results.rows} == {"passed"}, results


@pytest.mark.parametrize("row", ["paper", "official", "se", "eca"])
@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(row, dims):
    name, options = ROWS[row]
    shape = {1: (2, 16, 11), 3: (2, 16, 3, 5, 4)}[dims]
    checks = [check for check in testing.CHECKS if check not in ("export", "compile")]
    testing.check_attention(name, checks=checks, shapes=[shape], **options)
