"""The state of a training after a finished epoch, from which it goes on bit for bit (on a CPU).

No generator's state is in it: every epoch is seeded by (seed, epoch), see `seeding`. Nor is the schedule's: it is a
function of the number of steps. Tensors, numbers and strings only, so `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import torch

from cbam.files import write_atomically

logger = logging.getLogger(__name__)

FORMAT = 1


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` atomically.

    Args:
        path: The file, `state.pt` of the cell.
        state: Nested dictionaries and lists of tensors, numbers and strings.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, like: dict[str, torch.Tensor]) -> dict[str, Any] | None:
    """Read what `save_state` wrote, or None where there is no file that fits; the log then says why.

    Args:
        path: The file.
        like: The `state_dict` of the model that shall go on; names and shapes must be the same.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}, expected {FORMAT}")
        if {k: v.shape for k, v in state["model"].items()} != {k: v.shape for k, v in like.items()}:
            raise ValueError("its weights have other names or shapes than the model")
    except Exception as error:  # torch, zipfile and pickle raise many types for a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        logger.warning("%s cannot be used (%s): this model starts again from its first epoch", path, reason)
        return None
    return state
