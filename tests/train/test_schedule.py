from __future__ import annotations

import logging
from itertools import pairwise

import pytest
from torch import nn, optim

from cbam.nn import CBAM
from cbam.train.config import TrainConfig
from cbam.train.parameters import parameter_groups
from cbam.train.schedule import make_schedule

STEPS = 10


def rates(config, groups=None, peak=0.1):
    optimizer = optim.SGD(groups or nn.Linear(2, 2).parameters(), lr=peak)
    schedule = make_schedule(optimizer, config.plan(STEPS), peak)
    found = []
    for update in range(config.epochs * STEPS):
        schedule.step_update(update)
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


def test_the_paper_s_steps_fall_at_30_and_60():
    found = [rate for (rate,) in rates(TrainConfig(epochs=90, schedule="step"))]
    for epoch, expected in ((0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 0.001), (89, 0.001)):
        assert found[epoch * STEPS] == pytest.approx(expected)
        assert found[epoch * STEPS + STEPS - 1] == pytest.approx(expected)


def test_a_warm_up_does_not_move_the_steps():
    found = [rate for (rate,) in rates(TrainConfig(epochs=40, schedule="step", warmup_epochs=5))]
    assert all(a < b for a, b in pairwise(found[: 5 * STEPS + 1]))
    assert found[29 * STEPS] == pytest.approx(0.1)
    assert found[30 * STEPS] == pytest.approx(0.01)


@pytest.mark.parametrize("warmup", [0, 2.5])
def test_the_cosine_ends_near_zero_whatever_the_warm_up(warmup):
    found = [rate for (rate,) in rates(TrainConfig(epochs=10, warmup_epochs=warmup))]
    assert max(found) == pytest.approx(0.1)
    assert found.index(max(found)) == round(warmup * STEPS)
    assert 0 < found[-1] < 1e-3


def test_gates_learn_at_their_own_rate():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), CBAM(16))
    config = TrainConfig(epochs=3, gate_lr_scale=10, gate_weight_decay=0.25)
    groups = parameter_groups(model, config)
    assert {group["weight_decay"] for group in groups} == {0.0, 5e-4, 0.25}
    for slow, *fast in rates(config, groups):
        assert fast[-1] == pytest.approx(10 * slow)


def test_frozen_weights_are_left_out_and_norms_decay_if_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].weight.requires_grad_(False)
    (group,) = parameter_groups(model, TrainConfig(decay_norms=True))
    assert group["weight_decay"] == 5e-4
    assert len(group["params"]) == 3


def test_one_step_gives_no_warning_of_timm(caplog):
    """timm tells of `t_initial`, which nobody typed; what else it has to say comes through."""
    optimizer = optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    schedule = make_schedule(optimizer, TrainConfig(epochs=1).plan(1), 0.1)
    assert caplog.text == ""
    schedule.step_update(0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    logging.getLogger("timm.scheduler.cosine_lr").warning("another one")
    assert "another one" in caplog.text
