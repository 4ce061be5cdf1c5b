"""The section of a report about mistakes, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from tests.compare.conftest import write_json, write_run
from tests.page.parsed import Page

from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell
from cbam.compare.mistakes import draw_mistakes, hardest
from cbam.compare.report import write_report
from cbam.errors import CBAMError
from cbam.evaluate.predictions import FILE, Predictions

CLASSES = ("ant", "bee", "cat")
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
# Both seeds of a variant; the images 3 and 11 are wrong for all four networks.
PREDICTED = {
    "none": ([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0]),
    "cbam": ([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 1], [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 0]),
}
LOW = {3: 0.05, 11: 0.01, 2: 0.3}


def predictions(row):
    labels, predicted = torch.tensor(LABELS), torch.tensor(row)
    of_label = torch.tensor(
        [0.8 if a == b else LOW[i] for i, (a, b) in enumerate(zip(LABELS, row, strict=True))]
    )
    return Predictions(labels, predicted, torch.full((12,), 0.8), of_label)


class Images:
    labels = LABELS

    def identifier(self, index):
        return f"photo {index}.png"

    def picture(self, index):
        return Image.new("RGB", (8, 8), (index, 0, 0))


class Data:
    val, classes = Images(), CLASSES


@pytest.fixture
def run(tmp_path):
    scores = {variant: [0.8, 0.8] for variant in PREDICTED}
    return write_run(tmp_path / "run", scores, seeds=2, classes=CLASSES)


def keep(run, *, what):
    """Write confusions, or the predictions too."""
    for variant, rows in PREDICTED.items():
        for seed, row in enumerate(rows):
            file = run / "cells" / f"{variant}-seed{seed}" / "result.json"
            confusion = predictions(row).confusion(3).tolist()
            write_json(file, {**json.loads(file.read_text()), "confusion": confusion})
            if what == "predictions":
                predictions(row).write(file.with_name(FILE))
    return run


def page_of(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


def table(page, heading):
    """The rows below the heading of a table."""
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    start = next(number for number, row in enumerate(rows) if heading in row)
    return rows[start : start + 4]


def test_scores_pairs_and_matrices(run):
    page = page_of(keep(run, what="predictions"))
    # Recalls of plain: 3/4, 1, 3/4 and 2/4, 1, 3/4: means 83.33 and 75.00, sd 5.89.
    rows = table(page, "balanced accuracy")
    assert rows[1][:2] == ["plain", "79.17 ± 5.89"]
    assert rows[2][:2] == ["CBAM", "83.33 ± 0.00"]
    # All are 80 % sure: |0.8 - 10/12| and |0.8 - 9/12| are 3.33 and 5.00 points.
    assert rows[1][3] == "4.17 ± 1.18"
    pairs = table(page, "true class")
    # ant as bee: 3 of 8 by plain, 2 of 8 by CBAM; cat as ant: 2 of 8 and 1 of 8.
    assert pairs[1] == ["ant", "bee", "37.50", "25.00"]
    assert pairs[2] == ["cat", "ant", "25.00", "12.50"]
    described = [svg["aria-label"] for svg in page.all("svg")]
    assert any(
        "Confusion matrix: 19 of 24 images are right. ant as bee: 3 (37.5 %)" in each for each in described
    )
    assert any("Expected calibration error in percent: plain 4.17; CBAM 3.33." in each for each in described)
    assert "left out" not in page.text[page.text.index("Mistakes") : page.text.index("Where the networks")]


def test_a_run_of_an_earlier_version_has_what_its_results_tell(run):
    page = page_of(keep(run, what="confusion"))
    row = table(page, "balanced accuracy")[1]
    assert (row[0], row[1], row[3]) == ("plain", "79.17 ± 5.89", "–")
    assert "what the networks said of each image was not kept" in page.words
    assert not any("calibration" in svg["aria-label"] for svg in page.all("svg"))


def test_a_run_without_confusions_says_so(run):
    assert "do not say what was predicted as what" in page_of(run).words


def test_a_matrix_of_other_classes_is_told(run):
    file = keep(run, what="confusion") / "cells" / "none-seed0" / "result.json"
    write_json(file, {**json.loads(file.read_text()), "confusion": [[1, 0], [0, 1]]})
    with pytest.raises(CBAMError, match="confusion of none, seed 0, is not one of 3 classes"):
        write_report(run)


def test_a_thousand_classes_have_pairs_and_no_matrix(tmp_path):
    names = [f"class {number}" for number in range(1000)]
    run = write_run(tmp_path / "run", {"none": [0.5]}, seeds=1, classes=names)
    file = run / "cells" / "none-seed0" / "result.json"
    confusion = torch.eye(1000, dtype=torch.int64) * 3
    confusion[7, 9] = 2
    write_json(file, {**json.loads(file.read_text()), "confusion": confusion.tolist()})
    page = page_of(run)
    assert table(page, "true class")[1] == ["class 7", "class 9", "40.00"]
    assert not any("Confusion matrix" in svg["aria-label"] for svg in page.all("svg"))


def test_the_hardest_images_are_those_that_most_networks_miss():
    said = {variant: [predictions(row) for row in rows] for variant, rows in PREDICTED.items()}
    assert hardest(said, 8) == [11, 3], "image 2 is wrong for one of four"
    assert hardest(said, 1) == [11]


def test_they_are_drawn_with_what_each_network_says(run):
    keep(run, what="predictions")
    cells = [Cell(variant, seed) for variant in PREDICTED for seed in range(2)]
    draw_mistakes(CompareFolder(run), cells, Data)
    page = page_of(run)
    alts = [image["alt"] for image in page.all("img") if image["alt"].startswith("Validation image photo")]
    assert alts == ["Validation image photo 11.png, class cat", "Validation image photo 3.png, class ant"]
    assert "plain: ✗ ant (2 of 2), 1.0 %" in page.words
    assert "CBAM: ✗ bee (1 of 2), 1.0 %" in page.words
    assert "CBAM: ✗ bee (2 of 2), 5.0 %" in page.words


def test_predictions_of_other_images_do_not_count(run, tmp_path):
    keep(run, what="predictions")

    class Others(Data):
        val = Images()

    Others.val.labels = LABELS[::-1]
    draw_mistakes(CompareFolder(run), [Cell("none", 0)], Others)
    assert not (run / "mistakes").exists()
