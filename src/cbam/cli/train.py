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

Most runs need no more than --data, --model, --pretrained, --epochs, --batch-size and --lr; the rest has defaults.

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
    key, name = ("val_map", "mAP") if "val_map" in result else ("val_accuracy", "top-1")
    console.print(
        f"{_scores(result)} of {result['images']:,} images after {counted(result['epochs'], 'epoch')}; "
        f"best {name} {result[f'best_{key}']:.2%} after epoch {result['best_epoch']}",
        soft_wrap=True,
    )
    if result["epochs"] < config.train.epochs:
        console.print(
            f"stopped early: no better score in {counted(result['epochs'] - result['best_epoch'], 'epoch')}, "
            f"{result['epochs']} of {config.train.epochs} trained; keep best/, the network of epoch "
            f"{result['best_epoch']}",
            soft_wrap=True,
        )
    if f"{key}_ema" in result:
        console.print(f"moving average: {name} {result[f'{key}_ema']:.2%}")
    console.print(
        f"weights: {config.folder / 'final'} (last epoch), {config.folder / 'best'}", soft_wrap=True
    )


def _scores(result: dict[str, Any]) -> str:
    if "val_map" in result:
        labels = f"F1 {result['val_f1']:.2%}, all labels right {result['val_exact']:.2%}"
        return f"mean average precision {result['val_map']:.2%}, {labels}"
    # Of five classes or fewer the right one is always among the first five.
    top5 = f", top-5 {result['val_top5']:.2%}" if len(result["per_class_accuracy"]) > 5 else ""
    return f"top-1 {result['val_accuracy']:.2%}{top5}"
