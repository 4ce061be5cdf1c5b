from __future__ import annotations

import json

import pytest

from cbam.compare.reading import read_run
from cbam.compare.tables import class_changes, cost_table, costed, curve_table, extremes, quantity
from cbam.evaluate.metrics import sampling_error


def test_costs_with_ratios_to_the_baseline(make_run):
    run = read_run(make_run())
    table = dict(cost_table(run, "none"))
    assert costed(run) == ["none", "se", "cbam", "control"]
    assert [cell.text for cell in table["parameters"]] == ["272,474", "275,199", "277,923", "280,648"]
    assert [cell.ratio for cell in table["parameters"]] == ["", "×1.010", "×1.020", "×1.030"]
    assert (table["MACs"][0].text, table["bytes saved for backward"][0].text) == ("40.81 M", "3 MB")
    latency = table["latency, batch 32"][2]
    assert (latency.text, latency.spread, latency.ratio) == ("81.60 ms", "79.56–85.68", "×1.02")
    assert (table["training images/s"][0].text, table["training images/s"][3].ratio) == (
        "800",
        "×1.00",
    )


def test_costs_that_were_not_measured_are_left_out(make_run):
    folder = make_run()
    (folder / "costs.json").write_text(
        json.dumps({"none": {"parameters": 5}, "cbam": {"macs": float("nan")}})
    )
    (folder / "metrics.jsonl").unlink()
    table = cost_table(read_run(folder), "none")
    assert [(title, [cell.text for cell in cells]) for title, cells in table] == [("parameters", ["5", "–"])]


def test_without_the_baseline_there_are_no_ratios(make_run):
    folder = make_run()
    costs = json.loads((folder / "costs.json").read_text())
    del costs["none"]
    (folder / "costs.json").write_text(json.dumps(costs))
    (folder / "metrics.jsonl").unlink()
    assert all(cell.ratio == "" for _, cells in cost_table(read_run(folder), "none") for cell in cells)


def set_classes(folder, cell, values):
    file = folder / "cells" / cell / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "per_class_accuracy": values}))


def test_classes_are_paired_by_seed_and_sorted(make_run):
    folder = make_run({"none": (0.9, 0.9), "cbam": (0.9, 0.9)}, seeds=2, classes=("a", "b", "c"))
    set_classes(folder, "none-seed0", [0.5, 0.5, 0.5])
    set_classes(folder, "none-seed1", [0.6, 0.6, 0.6])
    set_classes(folder, "cbam-seed0", [0.4, 0.7, 0.5])
    set_classes(folder, "cbam-seed1", [0.4, 0.9, 0.6])
    changes = class_changes(read_run(folder), "cbam", "none")
    assert [change.name for change in changes] == ["b", "c", "a"]
    assert changes[0].differences == pytest.approx((0.2, 0.3))
    assert (changes[0].mean, changes[0].sd) == pytest.approx((0.25, 0.0707107))
    assert changes[0].baseline == pytest.approx(0.55)
    assert changes[2].mean == pytest.approx(-0.15)


def test_classes_without_a_number_and_unpaired_seeds_are_left_out(make_run):
    folder = make_run({"none": (0.9, 0.9), "cbam": (0.9,)}, seeds=2, classes=("a", "b", "c"))
    set_classes(folder, "none-seed0", [0.5, None, float("nan")])
    set_classes(folder, "cbam-seed0", [0.6, 0.5, 0.5])
    changes = class_changes(read_run(folder), "cbam", "none")
    assert [(change.name, change.sd) for change in changes] == [("a", None)]


def test_seeds_that_only_the_variant_has_are_left_out(make_run):
    folder = make_run({"none": (0.9,), "cbam": (0.9, 0.9)}, seeds=2)
    assert all(len(change.differences) == 1 for change in class_changes(read_run(folder), "cbam", "none"))


def test_many_classes_show_the_ends_only(make_run):
    names = [f"class {number}" for number in range(100)]
    changes = class_changes(read_run(make_run(classes=names)), "cbam", "none")
    shown = extremes(changes)
    assert len(changes) == 100
    assert shown == [*changes[:6], *changes[-6:]]
    assert shown[0].mean == max(change.mean for change in changes)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "", "999"),
        (1000, "", "1 k"),
        (3_858_000_000, "", "3.858 G"),
        (1.5e12, "B", "1.5 TB"),
    ],
)
def test_quantities(value, unit, text):
    assert quantity(value, unit) == text


def test_long_curves_are_thinned_out_and_end_with_the_last_epoch(make_run):
    folder = make_run({"none": (0.8, 0.9), "cbam": (0.9,)}, epochs=50)
    rows = curve_table(read_run(folder), ("val_accuracy",))
    assert [row["epoch"] for row in rows] == [*range(2, 51, 3)]
    assert rows[-1]["val_accuracy"] == [pytest.approx(0.85), pytest.approx(0.9)]


def test_sampling_error_shrinks_with_the_root_of_the_images():
    assert sampling_error(0.5, 100) == pytest.approx(0.098)
    assert sampling_error(0.5, 400) == pytest.approx(0.049)
