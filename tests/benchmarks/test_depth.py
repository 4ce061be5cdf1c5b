"""The study of depth, small: every kind of cell, going on where it was stopped, and the report."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import depth
import depth_cells
import depth_report

import cbam
from cbam.runs.rows import Rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    depth.run(depth.TINY, folder / "runs" / "depth.jsonl", "digits", torch.get_num_threads())
    return folder / "runs" / "depth.jsonl"


def _cells(path, kind):
    return {row["variant"]: row for row in Rows(path).read() if row.get("kind") == kind}


def test_what_is_found(finished):
    cost, start, train = (_cells(finished, kind) for kind in ("cost", "start", "train"))
    assert {variant: row["parameters"] for variant, row in cost.items()} == {
        "plain": 269_722, "SE": 272_095, "cbam, identity init": 272_620,
    }  # fmt: skip
    assert len(start["plain"]["gradients"]) == cost["plain"]["blocks"] == 9
    assert start["cbam, identity init"]["gradients"] == pytest.approx(start["plain"]["gradients"], rel=1e-3)
    quarter = start[depth_cells.QUARTERED]
    assert quarter["gates"] == []
    assert quarter["gradients"][0] < 0.5 * start["plain"]["gradients"][0]
    paper, identity = start["cbam, paper init"], start["cbam, identity init"]
    assert paper["loss"] != pytest.approx(identity["loss"], rel=1e-3)
    assert all(gate["channel dead"] == 1 and gate["spatial mean"] == 0.5 for gate in identity["gates"])
    assert any(gate["spatial dead"] < 1 for gate in paper["gates"])
    assert len(train["plain"]["losses"]) == 3
    assert [len(gates) for gates in train["cbam, paper init"]["gates"].values()] == [9, 9, 9]
    assert train["cbam, identity init"]["losses"][0] == pytest.approx(train["plain"]["losses"][0], rel=1e-4)


def test_gates_are_told_apart():
    sigmoid = torch.tensor([[0.5, 0.99, 0.2], [0.5, 0.96, 0.3]])
    assert depth_cells.describe(sigmoid) == pytest.approx(
        {"mean": 0.575, "saturated": 1 / 3, "dead": 1 / 3, "spread": (0 + 0.03 + 0.1) / 3}
    )


def test_gates_are_described_before_their_scale():
    model, images = nn.Sequential(cbam.CBAM(8), nn.ReLU(), cbam.CBAM(8)).eval(), torch.randn(2, 8, 5, 5)
    scores, rows = depth_cells.looked_at(model, images)
    assert torch.equal(scores, model(images))
    assert len(rows) == 2
    channel, spatial = model[0].gates
    spatial.set_gate_scale(2.0)
    assert depth_cells.looked_at(model[:1], images)[1][0] == pytest.approx(rows[0], rel=1e-4)
    channel.set_gate_scale(2.0)
    again = depth_cells.looked_at(model[:1], images)[1][0]
    assert again["channel mean"] == pytest.approx(rows[0]["channel mean"], rel=1e-4)


def test_a_run_goes_on_behind_a_line_that_was_cut_off(finished, tmp_path):
    lines = finished.read_text().splitlines()
    copy = tmp_path / "depth.jsonl"
    copy.write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    depth.run(depth.TINY, copy, "digits", torch.get_num_threads())
    again, before = Rows(copy).read(), Rows(finished).read()
    assert [depth.cell_of(row) for row in again[1:]] == [depth.cell_of(row) for row in before[1:]]
    assert again[-1]["losses"] == before[-1]["losses"], "the seed decides"


def test_another_setting_needs_another_file(finished):
    with pytest.raises(SystemExit, match=r"holds a run with other threads\. Give another --output"):
        depth.run(depth.TINY, finished, "digits", 99)


def test_a_grid_that_has_grown_goes_on_in_the_same_file(finished, tmp_path):
    """More networks to train are no other run; other settings of one that was trained are."""
    copy = tmp_path / "depth.jsonl"
    copy.write_text(finished.read_text())
    (model, settings), *_ = depth.TINY.train
    grown = replace(depth.TINY, train=(*depth.TINY.train, ("resnet56", settings)), train_seeds=(1, 0))
    depth.run(grown, copy, "digits", torch.get_num_threads())
    assert len([row for row in Rows(copy).read() if "kind" in row]) == len(list(depth.TINY.cells()))
    assert list(depth.about_of(Rows(copy).read())["training"]) == [model, "resnet56"]
    changed = replace(depth.TINY, train=((model, replace(settings, steps=4)),))
    with pytest.raises(SystemExit, match=f"other training of {model}"):
        depth.run(changed, copy, "digits", torch.get_num_threads())


def test_the_report(finished, tmp_path):
    target = tmp_path / "docs" / "results" / "depth.md"
    target.parent.mkdir(parents=True)
    target.write_text("# Old\n\n## Reading it\n\nIt trains.\n\n## Gone\n\nold\n")
    rows = Rows(finished).read()
    depth_report.write_report(depth.about_of(rows), [row for row in rows if "kind" in row], target, finished)
    text = target.read_text()
    assert "## Reading it\n\nIt trains.\n\n## What it costs" in text
    assert "old" not in text
    assert "0.273 (+1.1%)" in text
    assert text.count("| resnet20 |") == 1 + 4 + 4 + 6
    for name in ("gradients", "gates", "training"):
        assert (tmp_path / "docs" / "images" / f"depth-{name}.png").stat().st_size > 5000


def test_nothing_to_report(tmp_path):
    with pytest.raises(SystemExit, match="run the study first"):
        depth_report.write_report({}, [], tmp_path / "x.md", tmp_path / "none.jsonl")


def test_the_gradient_is_relative_to_the_weights():
    block = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    block[0].weight.data.fill_(4.0)
    block[0].weight.grad = torch.full((1, 1, 1, 1), 2.0)
    assert depth_cells.relative_gradient(block) == 0.5


def test_the_whole_grid():
    cells = list(depth.Grid().cells())
    assert len(cells) == len(set(cells)) == 9 * 3 + 7 * 2 * 4 + 4 * (3 + 3 + 2 + 1 + 1)
    assert json.dumps(depth.environment(depth.Grid(), "digits", 2))
