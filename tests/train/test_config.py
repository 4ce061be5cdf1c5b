"""Options outside their range, or that would be ignored, are refused by name."""

from __future__ import annotations

import pytest

from cbam.errors import CBAMError
from cbam.train.config import TrainConfig, TrainRunConfig


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epochs", 0, "--epochs must be at least 1, given 0"),
        ("batch_size", -2, "--batch-size must be at least 1"),
        ("lr", -0.1, "--lr must be above 0"),
        ("lr", float("nan"), "--lr must be above 0"),
        ("lr", float("inf"), "--lr must be above 0"),
        ("weight_decay", -1.0, "--weight-decay must be at least 0"),
        ("label_smoothing", 1.0, "--label-smoothing must be from 0 to below 1"),
        ("ema", 1.0, "--ema must be from 0"),
        ("workers", -1, "--workers must be at least 0"),
        ("precision", "bf61", "Did you mean 'bf16'"),
        ("device", "gpu", "unknown --device 'gpu'"),
        ("optimizer", "adam", "Did you mean 'adamw'"),
    ],
)
def test_refuses_what_cannot_work(field, value, expected):
    with pytest.raises(CBAMError, match=expected):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("settings", "fine_tuning", "lr"),
    [
        ({}, False, 0.1),
        ({}, True, 0.01),
        ({"optimizer": "adamw"}, False, 1e-3),
        ({"optimizer": "adamw"}, True, 1e-4),
        ({"lr": 0.3}, True, 0.3),
    ],
)
def test_the_default_learning_rate_depends_on_start_and_optimizer(settings, fine_tuning, lr):
    assert TrainConfig(**settings).peak_lr(fine_tuning=fine_tuning) == lr


def run(attention="none", model="resnet20", gate_lr_scale=1.0, gate_weight_decay=None, **settings):
    recipe = TrainConfig(gate_lr_scale=gate_lr_scale, gate_weight_decay=gate_weight_decay)
    return TrainRunConfig(data="digits", model=model, attention=attention, train=recipe, **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"attention": "se", "kernel_size": 3}, "--kernel-size 3 has no effect with --attention se"),
        ({"attention": "se", "preset": "timm"}, "--preset timm has no effect with --attention se"),
        (
            {"attention": "channel", "kernel_size": 3},
            "--kernel-size 3 has no effect with --attention channel",
        ),
        ({"attention": "spatial", "reduction_ratio": 8}, "--reduction-ratio 8 has no effect with"),
        ({"sites": ("conv",)}, "--sites conv has no effect with --attention none. Leave it out"),
        ({"replace": "se"}, "--replace se has no effect with --attention none. Leave it out"),
        ({"attention": "cbam", "replace": "norm"}, "unknown replace 'norm'. Valid: 'se'"),
        ({"reduction_ratio": 8}, "--reduction-ratio 8 has no effect with --attention none"),
        ({"kernel_size": 3}, "--kernel-size 3 has no effect with --attention none"),
        ({"preset": "timm"}, "--preset timm has no effect with --attention none"),
        ({"gate_lr_scale": 0.1}, "--gate-lr-scale 0.1 has no effect with --attention none"),
        ({"gate_weight_decay": 0.0}, "--gate-weight-decay 0.0 has no effect with --attention none"),
        (
            {"sites": ("conv",), "preset": "timm"},
            "--sites conv, --preset timm have no effect .* Leave them out",
        ),
        ({"model": "resnet20_se", "preset": "timm"}, r"--attention none\. Leave it out$"),
        ({"attention": "control", "preset": "timm"}, "--preset timm has no effect with --attention control"),
        ({"attention": "control", "sites": ("conv",)}, "--sites conv has no effect with --attention control"),
        (
            {"attention": "cbam", "widened_to": 9},
            "--widened-to 9 has no effect with --attention cbam.*use --att",
        ),
        ({"widened_to": 9}, "--widened-to 9 has no effect with --attention none"),
        ({"attention": "control", "widened_to": 0}, "--widened-to 0 must be at least 1"),
    ],
)
def test_what_would_be_ignored_is_refused(settings, expected):
    with pytest.raises(CBAMError, match=expected):
        run(**settings)


@pytest.mark.parametrize("words", ["cbam:official", "cbam:k3", "cbam:r8"])
def test_what_a_word_of_the_attention_sets_is_not_set_again(words):
    config = run(words)
    stored = {name: config.resolved()[name] for name in ("preset", "reduction_ratio", "kernel_size")}
    run(words, **stored)  # as `config.yaml` gives it back
    name, value = {"o": ("preset", "timm"), "k": ("kernel_size", 5), "r": ("reduction_ratio", 4)}[
        words.split(":")[-1][0]
    ]
    with pytest.raises(CBAMError, match=f"sets the {name.replace('_', ' ')} already. Leave out --"):
        run(words, **{name: value})


def test_a_run_of_an_earlier_version_without_a_preset_goes_on():
    """It holds the default of its time, where no attention reads it."""
    for attention in ("none", "se"):
        config = run(attention, preset="official")
        assert TrainRunConfig.differences(config.resolved(), run(attention).resolved()) == []
    there, now = run("cbam", preset="official").resolved(), run("cbam")
    assert TrainRunConfig.differences(there, now.resolved()) == ["preset: official there, paper now"]
    assert now.begun(there) == now
    earlier = {name: value for name, value in there.items() if name != "replace"}
    assert TrainRunConfig.differences(earlier, now.resolved()) == []
    assert now.begun(earlier).resolved()["preset"] == "official", "the default at that time"
    assert run("cbam:timm").begun(earlier).resolved()["preset"] == "timm"


@pytest.mark.parametrize("attention", ["cbam", "se", "channel", "spatial", "none"])
def test_what_stays_at_its_default_is_no_error(attention):
    run(attention, sites=("auto",), preset="paper", reduction_ratio=16, kernel_size=7)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "se", "sites": ("conv",), "reduction_ratio": 8, "gate_lr_scale": 0.1},
        {"attention": "channel", "preset": "paper", "reduction_ratio": 8},
        {"attention": "spatial", "preset": "paper", "kernel_size": 3},
        {"model": "resnet20_se", "gate_lr_scale": 0.1, "gate_weight_decay": 0.0},
        {"model": "paper_resnet50_cbam", "gate_lr_scale": 0.1},
    ],
)
def test_what_has_an_effect_stays_possible(settings):
    run(**settings)
