"""The paper's tables: what is printed, and that our networks cost what is printed."""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar

import pytest

from cbam.attach import plan
from cbam.errors import CBAMError
from cbam.evaluate.paper_costs import CountedRow, count_row, render_table
from cbam.evaluate.paper_tables import TABLES, PaperRow, paper_table
from cbam.models import build_model


class _Counted(dict):
    """Tables by number, counted when asked for; a network that stands in several tables is counted once."""

    known: ClassVar[dict[tuple, CountedRow]] = {}

    def __missing__(self, number):
        self[number] = [self._count(row) for row in TABLES[number].rows]
        return self[number]

    def _count(self, row):
        if _network(row) not in self.known:
            self.known[_network(row)] = count_row(row)
        found = self.known[_network(row)]
        return CountedRow(row, found.parameters, found.macs)


def _network(row):
    switches = set(row.switches.items()) - {("kernel_size", 7)}  # that is the default
    return row.backbone, row.attention, *sorted(switches)


@pytest.fixture(scope="module")
def counted():
    return _Counted()


def _different(rows):
    """{label: (our parameters, our GFLOPs)} where ours are other digits than the printed ones."""
    return {
        row.printed.label: (row.params_differ and row.params, row.gflops_differ and row.gflops)
        for row in rows
        if row.params_differ or row.gflops_differ
    }


def test_every_cost_of_table_4_is_the_printed_one(counted):
    assert len(counted[4]) == 24
    for row in counted[4]:
        assert (row.params, row.gflops) == (row.printed.params, row.printed.gflops), row.printed.label


def test_every_cost_of_table_5_is_the_printed_one_but_for_a_hidden_width(counted):
    assert len(counted[5]) == 6
    assert _different(counted[5]) == {"MobileNet alpha=0.7 + SE": ("2.70", False)}
    # C / 16 is no whole number there: rounded to the nearest instead of down it gives what is printed.
    sites = plan(build_model("mobilenet_v1_0.7", 1000), "se", "conv", input_size=(3, 64, 64)).sites
    hidden = {site.channels: round(site.channels / 16) for site in sites}
    nearest = sum(2 * s.channels * hidden[s.channels] + s.channels + hidden[s.channels] for s in sites)
    plain, _, cbam = (row.parameters for row in counted[5][:3])
    assert (plain, plain + nearest) == (2_298_747, 2_709_854)
    assert round((plain + nearest) / 1e6, 2) == round((plain + nearest + 27 * 100) / 1e6, 2) == 2.71
    assert cbam == 2_707_361


def test_where_the_ablations_print_other_costs(counted):
    assert _different(counted[1]) == {
        "+ AvgPool (SE)": ("28.09", "3.86"),
        "+ MaxPool": ("28.09", "3.86"),
        "+ AvgPool & MaxPool": ("28.09", "3.86"),
    }
    assert _different(counted[2]) == {
        "channel": (False, "3.863"),
        "channel + spatial (1x1 conv, k=3)": (False, "3.869"),
    }
    assert _different(counted[3]) == {}, "there is nothing printed to differ from"


# Counted by hand: the base, and what the gates of r = 16 add to it.
@pytest.mark.parametrize(
    ("label", "parameters"),
    [
        ("ResNet18 + CBAM", 11_689_512 + 89_880),
        ("ResNet34 + SE", 21_797_672 + 161_196),
        ("ResNet34 + CBAM", 21_797_672 + 162_796),
        ("ResNet50", 25_557_032),
        ("ResNet50 + CBAM", 28_089_624),
        ("ResNet101 + SE", 44_549_160 + 4_777_712),
        ("ResNet101 + CBAM", 44_549_160 + 4_781_012),
    ],
)
def test_exact_counts(counted, label, parameters):
    found = {row.printed.label: row for row in counted[4]}[label]
    assert found.parameters == parameters
    assert (found.params, found.gflops) == (found.printed.params, found.printed.gflops)


@pytest.mark.parametrize("number", list(TABLES))
def test_what_is_printed_is_plausible(number):
    table = paper_table(number)
    assert table.number == number
    for row in table.rows:
        assert 0 < row.top5 < row.top1 < 100
        for cell in (row.params, row.gflops):
            assert (cell is None) == (number == 3)
            assert cell is None or Decimal(cell) > 0


def test_the_same_network_has_the_same_errors_in_every_table():
    errors: dict[tuple, set] = {}
    for table in TABLES.values():
        for row in table.rows:
            errors.setdefault(_network(row), set()).add((row.top1, row.top5))
    assert [key for key, found in errors.items() if len(found) > 1] == []
    assert errors["paper_resnet50", "cbam"] == {(22.66, 6.31)}


@pytest.mark.parametrize("number", list(TABLES))
def test_what_is_shown(counted, number):
    text = render_table(number, counted[number])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    rows = lines[4 : 4 + len(counted[number])]
    assert len({line.rindex(".") for line in rows}) == 1, "columns are aligned"
    for row, line in zip(counted[number], rows, strict=True):
        assert line.startswith(row.printed.label)
        assert f"{row.parameters:,}" in line
        assert line.count("!") == row.params_differ + row.gflops_differ
    assert {1: "2 of 8", 2: "10 of 12", 3: "gives no costs", 4: "all 48", 5: "11 of 12"}[number] in text
    assert "the 1 that differs." in text or number != 5


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "1, 2, 3, 4 and 5, given 0"),
        (6, "of classifiers.* given 6"),
    ],
)
def test_tables_that_are_not_there(number, message):
    with pytest.raises(CBAMError, match=message):
        render_table(number)


def test_rounding_is_half_up_and_keeps_zeros():
    row = CountedRow(PaperRow("x", "resnet20", "none", "0.01", "0.10", 20.0, 10.0), 5_000, 1_005 * 10**5)
    assert (row.params, row.gflops) == ("0.01", "0.10")
    assert CountedRow(row.printed, 4_999, 105 * 10**6).params == "0.00"
    assert CountedRow(row.printed, 4_999, 105 * 10**6).gflops == "0.11"
