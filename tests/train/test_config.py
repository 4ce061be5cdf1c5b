from __future__ import annotations

import pytest

from cbam.errors import CBAMError
from cbam.train.config import TrainConfig


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epochs", 0, "--epochs must be at least 1, given 0"),
        ("batch_size", 0, "--batch-size must be at least 1"),
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
