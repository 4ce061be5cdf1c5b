"""The speed of training: warm-up does not count, and like is compared with like."""

import json

import pytest

from cbam.compare.reading import read_run
from cbam.compare.speed import TrainingSpeed, training_speed
from cbam.compare.tables import cost_table


def rows(**speeds):
    return [
        {"variant": variant, "seed": seed, "epoch": epoch, "images_per_s": speed}
        for variant, seeds in speeds.items()
        for seed, epochs in enumerate(seeds)
        for epoch, speed in enumerate(epochs, start=1)
    ]


def test_the_first_model_s_warm_up_is_no_gain_of_the_others():
    """A run as it was reported: 21 images/s while the first model began, 100 later; the page said x 1.65."""
    found = rows(none=[[21, 100, 100], [98, 100, 102]], cbam=[[90, 95, 95], [91, 95, 97]])
    speed = training_speed(found, "cbam", "none")
    assert speed.ratio == pytest.approx(0.95)
    assert (speed.low, speed.high) == pytest.approx((0.95, 97 / 102))
    assert speed.images_per_s == 95


def test_pairs_are_of_the_same_seed_and_epoch():
    found = rows(none=[[1, 10, 20], [1, 40]], cbam=[[1, 20, 40], [1, 80, 7]])
    assert training_speed(found, "cbam", "none").ratio == 2, "the speed itself changed in between"


@pytest.mark.parametrize(
    ("found", "speed"),
    [
        (rows(none=[[5], [5]], cbam=[[9], [9]]), None),
        (rows(none=[[5, 5, 5]], cbam=[[9, 9, 9]]), 9),
        (rows(none=[[5, float("nan")], [5, 5]], cbam=[[9, 9], [9, 9]]), 9),
    ],
)
def test_one_epoch_has_no_speed_and_one_seed_no_ratio(found, speed):
    assert training_speed(found, "cbam", "none") == TrainingSpeed(speed)


def test_the_table_has_it_and_machines_of_a_cluster_are_not_compared(make_run):
    folder = make_run()
    text = (folder / "metrics.jsonl").read_text().splitlines()
    slow = [{**json.loads(line)} for line in text]
    for row in slow:
        if row["variant"] == "cbam":
            row["images_per_s"] = 21.0 if row["epoch"] == 1 else 400.0 + row["epoch"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slow))
    cell = dict(cost_table(read_run(folder), "none"))["training images/s"][2]
    assert (cell.text, cell.ratio, cell.ratios) == ("404", "×0.51", "0.50–0.51")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "ray: auto\n")
    assert dict(cost_table(read_run(folder), "none"))["training images/s"][2].ratio == ""
