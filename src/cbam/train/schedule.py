"""The learning rate as a function of the number of steps, so that no schedule's state has to be saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler

from cbam.train.recipe import Plan

STEP_FACTOR = 0.1


def make_schedule(
    optimizer: Any, plan: Plan, peak: float
) -> CosineLRScheduler | StepLRScheduler | MultiStepLRScheduler:
    """Return timm's schedule; `step_update(n)` sets the rates of step n of the whole training, from 0.

    Args:
        optimizer: Its groups begin at `peak`; a group's `lr_scale` multiplies its rate.
        plan: How the rate changes.
        peak: The rate after the warm-up.

    >>> from torch import nn, optim
    >>> optimizer = optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    >>> schedule = make_schedule(optimizer, Plan(steps=900, warmup=0, cosine=False, every=300), 0.1)
    >>> schedule.step_update(300); round(optimizer.param_groups[0]["lr"], 6)
    0.01
    """
    # A first step with a rate of zero would be wasted.
    shared: dict[str, Any] = {
        "warmup_t": plan.warmup,
        "warmup_lr_init": peak / (plan.warmup + 1),
        "t_in_epochs": False,
    }
    if not plan.cosine:  # the warm-up is part of the first epochs: the drops stay where they are
        shared |= {"decay_rate": STEP_FACTOR, "warmup_prefix": False}
        if plan.every:
            return StepLRScheduler(optimizer, decay_t=plan.every, **shared)
        # timm counts from 1 here.
        return MultiStepLRScheduler(optimizer, decay_t=[drop + 1 for drop in plan.drops], **shared)
    # A single step has no schedule; timm's warning is about t_initial, which the user did not give.
    with _without("Cosine annealing scheduler will have no effect"):
        return CosineLRScheduler(
            optimizer, t_initial=max(1, plan.steps - plan.warmup), warmup_prefix=True, **shared
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
