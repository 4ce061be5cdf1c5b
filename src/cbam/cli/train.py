"""`cbam train`: one network on one data set, on one CPU or many GPUs; stopped at any time, it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from cbam.cli.attention import with_kinds
from cbam.cli.parsing import first_word_is, read_options
from cbam.formatting import counted
from cbam.runs.options import with_file
from cbam.train.config import TrainConfig, TrainRunConfig

DESCRIPTION = """Train a network with attention on your images. If it is stopped (Ctrl-C, kill -9, power), the same
command resumes it from the last saved step, on a CPU with exactly the same result. SIGTERM and SIGUSR1 save first,
then exit with code 75. Several processes: torchrun or accelerate launch -m cbam train ...

Example: cbam train --data fashion-mnist --model resnet20 --epochs 10 --save-every 200"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = parse(arguments)
    # Heavy imports after parsing, so that a wrong option is reported at once.
    from cbam.cli.running import placed, run_job
    from cbam.train.run import prepare

    config = placed(config)
    result = run_job(prepare, config, ["cbam", "train", *arguments])
    if result:
        show(result, config, Console(highlight=False))
    return 0


def parse(arguments: Sequence[str]) -> TrainRunConfig:
    """Read the options, those of a `--config` file first; exits with code 2 and an explanation if they are wrong.

    Args:
        arguments: What follows `cbam train`.

    >>> parse(["--data", "digits", "--epochs", "2"]).train.epochs
    2
    """
    arguments = with_file(first_word_is("data", arguments), (TrainRunConfig, TrainConfig))
    return read_options(TrainRunConfig, "cbam train", with_kinds(DESCRIPTION), arguments)


def show(result: dict[str, Any], config: TrainRunConfig, console: Console) -> None:
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
    console.print(
        f"weights: {config.folder / 'final'} (last epoch), {config.folder / 'best'}", soft_wrap=True
    )
