"""`cbam plan` and `cbam cost`: what they print."""

from __future__ import annotations

import pytest

from cbam.cli import cost, plan
from cbam.errors import CBAMError


def test_plan_prints_the_table(capsys):
    config = plan.PlanConfig("resnet20", preset="official", exclude=("layer1.*.bn2",), reduction_ratio=8)
    assert plan.run(config) == 0
    out = capsys.readouterr().out
    assert "cbam (preset official, r=8, k=7) in CifarResNet: 6 sites" in out
    assert "layer3.2.bn2" in out
    assert "8x8" in out, "the map of a 32 x 32 image"
    assert "269,722 ->" in out


def test_plan_of_squeeze_and_excitation_at_named_sites(capsys):
    config = plan.PlanConfig(
        "resnet18", attention="se", sites=("layer4",), input_size=(1, 64, 64), num_classes=7
    )
    assert plan.run(config) == 0
    out = capsys.readouterr().out
    assert "1 sites" in out or "1 site" in out
    assert "2x2" in out


def test_cost_of_the_plain_model(capsys):
    assert cost.run(cost.CostConfig("paper_resnet50")) == 0
    out = capsys.readouterr().out
    assert "25,557,032" in out
    assert "3.858 G" in out
    assert "added" not in out


def test_cost_with_attention_beside_it(capsys):
    assert cost.run(cost.CostConfig("paper_resnet50", attention="cbam", preset="official", depth=2)) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.rsplit("  ", 4)[0].strip(): line.split() for line in lines[-5:]}
    assert lines[-6].split() == ["plain", "cbam", "added"]
    assert table["parameters"][1:] == ["25,557,032", "28,089,624", "2,532,592", "+9.91%"]
    assert "3.858       3.864      0.006   +0.17%" in lines[-4]
    assert any(line.startswith("layer1.0 ") for line in lines)


def test_wrong_names_come_through_as_errors():
    with pytest.raises(CBAMError, match="unknown model 'resnet5'"):
        plan.run(plan.PlanConfig("resnet5"))
    with pytest.raises(CBAMError, match=r"unknown attention 'cbma'. Did you mean 'cbam'"):
        cost.run(cost.CostConfig("resnet20", attention="cbma"))
    with pytest.raises(CBAMError, match="layer5"):
        plan.run(plan.PlanConfig("resnet20", sites=("layer5",)))
