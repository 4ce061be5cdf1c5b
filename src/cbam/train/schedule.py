"""The learning rate as a function of the number of steps, so that no schedule's state has to be saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.scheduler import CosineLRScheduler, StepLRScheduler

from cbam.train.config import TrainConfig

STEP_FACTOR = 0.1


def make_schedule(
    optimizer: Any, steps: int, config: TrainConfig, peak: float
) -> CosineLRScheduler | StepLRScheduler:
    """Return timm's schedule; `step_update(n)` sets the rates of step n of the whole training, from 0.

    Args:
        optimizer: Its groups begin at `peak`; a group's `lr_scale` multiplies its rate.
        steps: Of an epoch.
        config: `schedule`, `epochs`, `step_epochs` and `warmup_epochs` matter.
        peak: The rate after the warm-up.

    >>> from torch import nn, optim
    >>> optimizer = optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    >>> schedule = make_schedule(optimizer, 10, TrainConfig(epochs=90, schedule="step"), 0.1)
    >>> schedule.step_update(30 * 10); round(optimizer.param_groups[0]["lr"], 6)
    0.01
    """
    if config.warmup_epochs is not None:
        warmup = round(config.warmup_epochs * steps)
    elif config.schedule == "step":
        warmup = 0
    else:  # the first epoch, or a tenth of all steps where that is less
        warmup = min(steps, steps * config.epochs // 10)
    # A first step with a rate of zero would be wasted.
    shared: dict[str, Any] = {"warmup_t": warmup, "warmup_lr_init": peak / (warmup + 1), "t_in_epochs": False}
    if config.schedule == "step":
        return StepLRScheduler(
            optimizer,
            decay_t=config.step_epochs * steps,
            decay_rate=STEP_FACTOR,
            warmup_prefix=False,  # the warm-up is part of the first epochs: the drops stay where they are
            **shared,
        )
    # A single step has no schedule; timm's warning is about t_initial, which the user did not give.
    with _without("Cosine annealing scheduler will have no effect"):
        return CosineLRScheduler(
            optimizer, t_initial=max(1, steps * config.epochs - warmup), warmup_prefix=True, **shared
        )


@contextmanager
def _without(start: str) -> Iterator[None]:
    """Keep back what timm's cosine logs with these first words."""

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(start)

    logger = logging.getLogger(CosineLRScheduler.__module__)
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
