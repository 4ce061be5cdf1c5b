"""Whether torch.compile compiled anything: switched off, it says nothing and runs the code as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from cbam.errors import CBAMError

_Answer = TypeVar("_Answer")


class NothingCompiled(CBAMError):
    """What should have been compiled was not, so it must not be measured as compiled."""

    exit_code = 1


def first_call(call: Callable[[], _Answer]) -> _Answer:
    """Make the first call of what torch.compile returned.

    Raises:
        NothingCompiled: No graph was compiled in it.

    >>> first_call(lambda: 1)
    Traceback (most recent call last):
    cbam.bench.compiled.NothingCompiled: nothing was compiled: torch.compile ran the code as it is
    """
    before = _graphs()
    answer = call()
    if _graphs() == before:
        raise NothingCompiled(f"nothing was compiled: {_reason()}")
    return answer


def _graphs() -> int:
    from torch._dynamo.utils import counters  # imports the compiler

    return counters["stats"]["unique_graphs"]


def _reason() -> str:
    if os.environ.get("TORCHDYNAMO_DISABLE", "0") != "0":
        return f"the environment says TORCHDYNAMO_DISABLE={os.environ['TORCHDYNAMO_DISABLE']}"
    stance = getattr(getattr(torch._dynamo.eval_frame, "_stance", None), "stance", "default")
    if stance != "default":
        return f"torch.compiler.set_stance({stance!r}) is in force"
    return "torch.compile ran the code as it is"
