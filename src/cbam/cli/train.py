"""`cbam train`: one network on one data set, on one CPU or many GPUs; stopped at any time, it goes on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from cbam.cli.notices import log_to
from cbam.formatting import counted
from cbam.runs.options import with_file
from cbam.train.config import TrainConfig
from cbam.train.settings import TrainRun

if TYPE_CHECKING:
    from cbam.train.stopping import Preempted

DESCRIPTION = """Train a network with attention on your images. Stopped at any time (Ctrl-C, kill -9, power), the same
command goes on from the last saved step, to the same bits on a CPU. SIGTERM and SIGUSR1 save first, then exit with
code 75. Several processes: torchrun or accelerate launch -m cbam train ...

Example: cbam train --data fashion-mnist --model resnet20 --epochs 10 --save-every 200"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the `arguments` after it; return the exit code."""
    run = parse(arguments)
    # Heavy imports after the options are known to be right: a typing error is answered at once.
    from cbam.cli.training import Display
    from cbam.train.run import execute, prepare
    from cbam.train.stopping import Preempted

    command = ["cbam", "train", *arguments]
    # Of several processes (torchrun, accelerate launch) only the first one talks.
    console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")
    with Display(console, run.train.epochs) as display:
        log_to(display.notice)
        try:
            result = execute(prepare(run, command, display.told))
        except Preempted as stop:
            raise _with_command(stop, command) from None
        except KeyboardInterrupt as stop:
            if not run.folder.is_dir():
                raise
            raise type(stop)(f"stopped. To go on, type the same again:\n  {shlex.join(command)}") from None
    if result:
        show(result, run, Console(highlight=False))
    return 0


def parse(arguments: Sequence[str]) -> TrainRun:
    """Read the options, those of a `--config` file first; exits with code 2 and an explanation if they are wrong.

    Args:
        arguments: What follows `cbam train`.

    >>> parse(["--data", "digits", "--epochs", "2"]).train.epochs
    2
    """
    arguments = with_file(arguments, (TrainRun, TrainConfig))
    flat = tyro.conf.OmitArgPrefixes
    return tyro.cli(Annotated[TrainRun, flat], prog="cbam train", description=DESCRIPTION, args=arguments)


def show(result: dict[str, Any], run: TrainRun, console: Console) -> None:
    """Print the scores and where the weights are."""
    console.print(
        f"top-1 {result['val_accuracy']:.2%}, top-5 {result['val_top5']:.2%} of {result['images']:,} images after "
        f"{counted(result['epochs'], 'epoch')}; best top-1 {result['best_val_accuracy']:.2%} after epoch "
        f"{result['best_epoch']}",
        soft_wrap=True,
    )
    if "val_accuracy_ema" in result:
        console.print(
            f"moving average: top-1 {result['val_accuracy_ema']:.2%}, top-5 {result['val_top5_ema']:.2%}"
        )
    console.print(f"weights: {run.folder / 'final'} (last epoch), {run.folder / 'best'}", soft_wrap=True)


def _with_command(stop: Preempted, command: list[str]) -> Preempted:
    return type(stop)(f"{stop}. To go on, type the same again:\n  {shlex.join(command)}")
