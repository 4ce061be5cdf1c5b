"""The comparison with eager mode, on networks and files made by hand."""

import math

import pytest
import torch
from torch import nn

from cbam.errors import CBAMError
from cbam.export.check import compare, refuse, shapes_to_check
from cbam.export.loading import Loaded

MODEL = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2)).eval()


def loaded(change):
    def run(images):
        with torch.no_grad():
            return change(MODEL(images))

    return Loaded("pt2", run, {})


def shifted(scores):
    return (scores + 0.01 * (scores == scores.max()),)


def test_the_largest_difference():
    (found,) = compare(MODEL, loaded(shifted), [(2, 3, 4, 4)])
    largest = MODEL(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))).abs().max()
    assert found.largest == pytest.approx(0.01, rel=1e-4)
    assert found.relative == pytest.approx(0.01 / largest.item(), rel=1e-4)
    assert 20 < found.decibels < 100
    with pytest.raises(CBAMError, match=r"by 0\.01 for an input of \(2, 3, 4, 4\).*fp32 allows 0\.01%"):
        refuse([found], "fp32")
    refuse([found], "fp16")


def test_each_shape_is_looked_at():
    def wrong_when_larger(scores):
        return (scores * (1.1 if scores.shape[2] > 16 else 1.0),)

    found = compare(
        MODEL, loaded(wrong_when_larger), shapes_to_check(torch.zeros(1, 3, 4, 4), {2: "height"}, 1)
    )
    assert [each.relative > 0.09 for each in found] == [False, True, True]
    for precision in ("fp32", "fp16"):
        with pytest.raises(CBAMError, match=r"for an input of \(1, 3, 36, 4\)"):
            refuse(found, precision)
    refuse(found, "int8")


def test_not_a_number_is_refused():
    found = compare(MODEL, loaded(lambda scores: (scores * math.nan,)), [(1, 3, 4, 4)])
    with pytest.raises(CBAMError, match="differs from eager mode by nan"):
        refuse(found, "fp32")


@pytest.mark.parametrize("change", [lambda s: (s, s), lambda s: (s[:, :2],), lambda s: ()])
def test_other_outputs_are_refused(change):
    with pytest.raises(CBAMError, match=r"eager mode \[\(1, 4, 16\)\]"):
        compare(MODEL, loaded(change), [(1, 3, 4, 4)])


def test_pictures_instead_of_noise():
    seen = []
    pictures = torch.rand(4, 3, 8, 8)

    def run(images):
        seen.append(images)
        return (MODEL(images).detach(),)

    compare(MODEL, Loaded("pt2", run, {}), [(3, 3, 8, 8), (1, 3, 4, 16)], pictures)
    assert torch.equal(seen[0], pictures[:3])
    assert seen[1].shape == (1, 3, 4, 16)
    assert set(seen[1].unique().tolist()) <= set(pictures[0].unique().tolist())
