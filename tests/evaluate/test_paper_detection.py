"""The paper's tables of detectors: what is printed, and how our counts stand beside it."""

import pytest

from cbam.errors import CBAMError
from cbam.evaluate.paper_detection import DETECTOR_TABLES, count_detector, render_detectors

# The regions' proposals (a 3x3 convolution of 1024 channels, 15 anchors) and the predictors of 81 classes.
HEAD = (1024 * 1024 * 9 + 1024) + (1024 + 1) * 15 * 5 + (2048 + 1) * 81 * 5
R50, R101 = 23_508_032 + HEAD, 42_500_160 + HEAD
COUNTED = {
    6: [R50, R50 + 2_532_592, R101, R101 + 4_781_012],
    7: [26_515_936, 32_005_600, 32_056_384, 32_056_984, 5_815_264, 5_976_672, 5_989_776, 5_990_376],
}


@pytest.mark.parametrize(("number", "differing"), [(6, 0), (7, 2)])
def test_what_is_shown(number, differing):
    text = render_detectors(number, COUNTED[number])
    lines, table = text.splitlines(), DETECTOR_TABLES[number]
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    rows = lines[4 : 4 + len(table.rows)]
    for row, parameters, line in zip(table.rows, COUNTED[number], rows, strict=True):
        assert line.startswith(row.label)
        assert f"{parameters:,}" in line
        assert ("%" in line) == (row.attention != "none")
    assert sum("!" in line for line in rows) == differing
    assert ("6 of 8 printed figures" in text) == (number == 7)


@pytest.mark.parametrize("number", DETECTOR_TABLES)
def test_what_is_printed_is_plausible(number):
    table = DETECTOR_TABLES[number]
    for row in table.rows:
        assert len(row.figures) == len(table.figures)
        assert all(20 < figure < 85 for figure in row.figures)
        assert (row.params is None) == (number == 6)


@pytest.mark.parametrize(("number", "index"), [(7, 7), (6, 1)])
def test_rows_build_what_they_say(number, index):
    table = DETECTOR_TABLES[number]
    assert count_detector(table.rows[index], table.classes) == COUNTED[number][index]


def test_a_table_that_is_not_there():
    with pytest.raises(CBAMError, match="Tables 1 to 7, given 8"):
        render_detectors(8)
