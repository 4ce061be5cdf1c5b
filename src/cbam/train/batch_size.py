"""`--batch-size auto`: the largest power of two whose training step fits into the GPU's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import tyro
from torch import nn

from cbam.errors import CBAMError
from cbam.train.parameters import parameter_groups
from cbam.train.recipe import Recipe
from cbam.train.task import LAYOUT, R

if TYPE_CHECKING:
    from accelerate import Accelerator

AUTO = 0
"""The batch size in a recipe for which one is yet to be found."""
_MOST = 1024


def _read(words: list[str]) -> int:
    if words[0] == "auto":
        return AUTO
    if (number := int(words[0])) == AUTO:
        raise ValueError("a batch has at least one image; auto finds the size")
    return number


BATCH_SIZE = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="INT|auto",
    instance_from_str=_read,
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=lambda value: ["auto" if value == AUTO else str(value)],
)
"""How the option is read: a number, or auto."""


def check_automatic(accelerator: Accelerator) -> None:
    """Refuse to look for a batch size where memory has no limit that could be tried.

    Raises:
        CBAMError: The device is not a GPU of CUDA.
    """
    if accelerator.device.type != "cuda":
        raise CBAMError(
            f"--batch-size auto tries how many images fit into the memory of a GPU, and this run computes on "
            f"{accelerator.device.type}. Type a number, e.g. --batch-size 128"
        )


def found_before(recipe: R, before: dict[str, Any] | None) -> R:
    """Return the recipe with the batch size that a run in the folder has found, where one is to be found.

    Args:
        recipe: Of this call.
        before: The settings stored in the folder, if there are any.
    """
    known = (before or {}).get("batch_size")
    return replace(recipe, batch_size=known) if recipe.batch_size == AUTO and type(known) is int else recipe


def find_batch_size(
    models: Iterable[Callable[[], nn.Module]],
    input_size: tuple[int, ...],
    images: int,
    recipe: Recipe,
    accelerator: Accelerator,
) -> int:
    """Return a batch size, over all processes together, at which every model trains: a power of two for each process.

    Each model does two steps on noise, with its optimizer's memory, for half as many images at a time until they fit.
    A training needs no more, but other programs on the GPU may take what was free.

    Args:
        models: Return the networks, one at a time.
        input_size: (C, H, W).
        images: Of the training set; more are not tried.
        recipe: Optimizer and `accumulate` count.
        accelerator: Device and precision.

    Raises:
        CBAMError: Not even one image fits.
    """
    per_process = max(1, images // accelerator.num_processes)
    most = min(_MOST, 1 << (per_process.bit_length() - 1))
    for make in models:
        most = _largest(make, input_size, most, recipe, accelerator)
    if accelerator.num_processes > 1:
        sizes = accelerator.gather(torch.tensor([most], device=accelerator.device))
        most = int(sizes.min())
    return most * accelerator.num_processes


def _largest(
    make: Callable[[], nn.Module],
    input_size: tuple[int, ...],
    most: int,
    recipe: Recipe,
    accelerator: Accelerator,
) -> int:
    from accelerate.utils import find_executable_batch_size

    size = most

    def halved() -> int:
        nonlocal size
        size //= 2
        return size

    @find_executable_batch_size(starting_batch_size=most, reduce_batch_size_fn=halved)
    def attempt(batch_size: int) -> int:
        _steps(make(), input_size, -(-batch_size // recipe.accumulate), recipe, accelerator)
        return batch_size

    try:
        with torch.random.fork_rng():
            return int(attempt())
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise CBAMError("--batch-size auto: not even one image fits into the GPU's memory") from error


def _steps(
    model: nn.Module, input_size: tuple[int, ...], images: int, recipe: Recipe, accelerator: Accelerator
) -> None:
    from timm.optim import create_optimizer_v2

    model.to(accelerator.device).to(memory_format=LAYOUT).train()
    optimizer: Any = create_optimizer_v2(parameter_groups(model, recipe), opt=recipe.optimizer, lr=0.0)
    noise = torch.randn(images, *input_size, device=accelerator.device)
    for _ in range(2):
        with accelerator.autocast():
            logits = model(noise.contiguous(memory_format=LAYOUT)).float()
        F.cross_entropy(logits, torch.zeros(images, dtype=torch.int64, device=accelerator.device)).backward()
        optimizer.step()
        optimizer.zero_grad()
