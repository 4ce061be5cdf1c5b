"""Where and in which precision to compute."""

from __future__ import annotations

import logging
import os

import torch
from accelerate import Accelerator

from cbam.errors import CBAMError
from cbam.train.recipe import Recipe

logger = logging.getLogger(__name__)


def make_accelerator(config: Recipe) -> Accelerator:
    """Return the accelerator that `config` asks for.

    Args:
        config: Its `device`, `precision`, `batch_size` and `sync_bn` matter.

    Raises:
        CBAMError: The device does not exist or lacks the precision, the processes cannot share a batch, or
            their batch norms cannot be joined on it.

    >>> from cbam.train.config import TrainConfig
    >>> make_accelerator(TrainConfig(device="cpu")).device
    device(type='cpu')
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(config.device, True):
        usable = " or ".join(name for name, yes in available.items() if yes)
        raise CBAMError(f"--device {config.device}: torch finds none here. Type: --device {usable}")
    if config.precision == "fp16" and (config.device == "cpu" or not (available["cuda"] or available["mps"])):
        raise CBAMError("--precision fp16 needs a GPU. Type: --precision bf16, or leave it out")
    try:
        accelerator = Accelerator(
            # Left to find out that there is no GPU, accelerate does not join the processes of torchrun.
            cpu=config.device == "cpu" or not torch.accelerator.is_available(),
            mixed_precision=config.precision,
            dynamo_backend="inductor" if config.compiled else None,
        )
    except ValueError as error:
        raise CBAMError(f"--device {config.device} --precision {config.precision}: {error}") from None
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > 1 and accelerator.num_processes == 1:
        raise CBAMError(
            f"{started} processes were started and cannot work together on {accelerator.device.type}: each would train"
            " alone, into the same folder. Type: --device cpu, or start one"
        )
    # batch_size counts the images of all processes together; batch norm sees those of one part of one process.
    if config.batch_size % (accelerator.num_processes * config.accumulate):
        parts = f" in {config.accumulate} parts each" if config.accumulate > 1 else ""
        raise CBAMError(
            f"--batch-size {config.batch_size} cannot be shared by {accelerator.num_processes} processes{parts}: "
            "give a multiple"
        )
    if config.sync_bn and accelerator.num_processes == 1:
        logger.info("--sync-bn changes nothing with one process")
    elif config.sync_bn and accelerator.device.type == "cpu":
        # torch's SyncBatchNorm raises too, but not before the first step.
        raise CBAMError(
            f"--sync-bn needs GPUs, and these {accelerator.num_processes} processes compute on the CPU. Leave it out"
        )
    return accelerator
