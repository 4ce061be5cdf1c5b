"""Options of `cbam train` that would be ignored are refused by name."""

from __future__ import annotations

import pytest

from cbam.errors import CBAMError
from cbam.train.config import TrainConfig, TrainRunConfig


def run(attention="none", model="resnet20", gate_lr_scale=1.0, gate_weight_decay=None, **settings):
    recipe = TrainConfig(gate_lr_scale=gate_lr_scale, gate_weight_decay=gate_weight_decay)
    return TrainRunConfig(data="digits", model=model, attention=attention, train=recipe, **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"attention": "se", "kernel_size": 3}, "--kernel-size 3 has no effect with --attention se"),
        ({"attention": "se", "preset": "paper"}, "--preset paper has no effect with --attention se"),
        (
            {"attention": "channel", "kernel_size": 3},
            "--kernel-size 3 has no effect with --attention channel",
        ),
        ({"attention": "spatial", "reduction_ratio": 8}, "--reduction-ratio 8 has no effect with"),
        ({"sites": "conv"}, "--sites conv has no effect with --attention none. Leave it out"),
        ({"reduction_ratio": 8}, "--reduction-ratio 8 has no effect with --attention none"),
        ({"kernel_size": 3}, "--kernel-size 3 has no effect with --attention none"),
        ({"preset": "timm"}, "--preset timm has no effect with --attention none"),
        ({"gate_lr_scale": 0.1}, "--gate-lr-scale 0.1 has no effect with --attention none"),
        ({"gate_weight_decay": 0.0}, "--gate-weight-decay 0.0 has no effect with --attention none"),
        ({"sites": "conv", "preset": "timm"}, "--sites conv, --preset timm have no effect .* Leave them out"),
        ({"model": "resnet20_se", "preset": "timm"}, r"--attention none\. Leave it out$"),
    ],
)
def test_what_would_be_ignored_is_refused(settings, expected):
    with pytest.raises(CBAMError, match=expected):
        run(**settings)


@pytest.mark.parametrize("attention", ["cbam", "se", "channel", "spatial", "none"])
def test_what_stays_at_its_default_is_no_error(attention):
    run(attention, sites="auto", preset="official", reduction_ratio=16, kernel_size=7)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "se", "sites": "conv", "reduction_ratio": 8, "gate_lr_scale": 0.1},
        {"attention": "channel", "preset": "paper", "reduction_ratio": 8},
        {"attention": "spatial", "preset": "paper", "kernel_size": 3},
        {"model": "resnet20_se", "gate_lr_scale": 0.1, "gate_weight_decay": 0.0},
        {"model": "paper_resnet50_cbam", "gate_lr_scale": 0.1},
    ],
)
def test_what_has_an_effect_stays_possible(settings):
    run(**settings)
