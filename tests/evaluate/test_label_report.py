from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from PIL import Image

from cbam.evaluate.class_page import render
from cbam.evaluate.label_report import LabelReport
from tests.page.parsed import Page


@pytest.fixture
def report():
    """Three labels, the last of which no image has; images 1 and 3 are wrong, the second of them more."""
    return LabelReport(
        network="run",
        data="4 images.",
        classes=("cat", "dog", "none"),
        loss=0.5,
        probabilities=torch.tensor([[0.9, 0.1, 0.2], [0.6, 0.7, 0.1], [0.1, 0.8, 0.3], [0.95, 0.05, 0.4]]),
        truth=torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]),
        names=["a.png", "b.png", "c.png", "d.png"],
    )


def test_the_rows_follow_by_hand(report):
    cat, dog, none = report.class_rows()
    assert cat == {
        "label": "cat", "images": 1, "predicted": 3, "average_precision": 0.5,
        "precision": pytest.approx(1 / 3), "recall": 1.0, "f1": 0.5,
    }  # fmt: skip
    assert (dog["images"], dog["predicted"], dog["precision"], dog["recall"]) == (
        3,
        2,
        1.0,
        pytest.approx(2 / 3),
    )
    assert (none["images"], none["average_precision"], none["f1"]) == (0, None, None)
    rows = list(csv.DictReader(io.StringIO(report.classes_csv())))
    assert [row["label"] for row in rows] == ["cat", "dog", "none"]
    assert rows[2]["average_precision"] == ""


def test_the_surest_mistake_comes_first_and_images_without_one_are_left_out(report):
    assert report.mistakes == [3, 1]
    assert report.mistake(3) == {
        "image": "d.png", "labels": ["dog"], "predicted": ["cat"], "worst": "cat", "has_worst": False,
        "probability_of_worst": pytest.approx(0.95),
    }  # fmt: skip
    assert report.mistake(2)["predicted"] == ["dog"]


def test_every_image_and_probability_is_in_the_csv(report):
    rows = list(csv.DictReader(io.StringIO(report.images_csv())))
    assert [row["image"] for row in rows] == ["a.png", "b.png", "c.png", "d.png"]
    assert (rows[1]["labels"], rows[1]["predicted"]) == ("dog", "cat;dog")
    assert float(rows[3]["p(dog)"]) == pytest.approx(0.05)


def test_the_json_file_holds_everything_but_the_images(report):
    content = json.loads(json.dumps(report.content()))
    assert content["mean_average_precision"] == pytest.approx(report.scores.mean_ap)
    assert content["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1)), (
        "three found, two too many, one missed"
    )
    assert content["all_labels_right"] == 0.5
    assert [one["image"] for one in content["most_wrong_images"]] == ["d.png", "b.png"]
    sure = content["calibration"]
    assert sum(one["images"] for one in sure["bins"]) == 12, "every label of every image"
    low = next(one for one in sure["bins"] if one["low"] == 0)
    assert (low["images"], low["accuracy"]) == (1, 1.0), "0.05 for the dog that is there"


def test_the_page_shows_all_of_it(report):
    page = Page(render(report, lambda index: Image.new("RGB", (32, 32)), variant="cbam", notices=("a note",)))
    assert "mean average precision on 4 images" in page.words
    assert page.row("cat") == ["cat", "1", "3", "50.00", "33.33", "100.00", "50.00"]
    assert page.row("none") == ["none", "0", "0", "–", "–", "–", "–"]
    assert "a note" in page.words
    assert "finds cat, 95.0 %" in page.words
    assert "cat 50.00, of a guess 25.00" in page.all("svg")[0]["aria-label"]
    assert page.all("img")[0]["alt"] == "Image d.png, labels dog, found cat"
    assert "accuracy is itself uncertain" not in page.words
