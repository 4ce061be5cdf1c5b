"""`cbam detect train`: one detector on one set, on one CPU or many GPUs; stopped at any time, it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from cbam.cli.attention import with_kinds
from cbam.cli.parsing import first_word_is, read_options
from cbam.detect.config import DetectRunConfig
from cbam.detect.recipe import DetectTrainConfig
from cbam.formatting import counted
from cbam.runs.options import with_file

DESCRIPTION = """Train a detector with attention on images with boxes or masks. If it is stopped (Ctrl-C, kill -9,
power), the same command resumes it from the last saved step, on a CPU with exactly the same result. SIGTERM and SIGUSR1
save first, then exit with code 75. Several processes: torchrun or accelerate launch -m cbam detect train ...

Example: cbam detect train --data coco:/data/coco --model maskrcnn_resnet50_fpn --weights resnet50.pth"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = parse(arguments)
    # Heavy imports after parsing, so that a wrong option is reported at once.
    from cbam.cli.running import placed, run_job
    from cbam.detect.run import prepare

    config = placed(config)
    result = run_job(prepare, config, ["cbam", "detect", "train", *arguments])
    if result:
        show(result, config, Console(highlight=False))
    return 0


def parse(arguments: Sequence[str]) -> DetectRunConfig:
    """Read the options, those of a `--config` file first; exits with code 2 and an explanation if they are wrong.

    Args:
        arguments: What follows `cbam detect train`.

    >>> parse(["--data", "coco:photos", "--epochs", "2"]).train.epochs
    2
    """
    arguments = with_file(first_word_is("data", arguments), (DetectRunConfig, DetectTrainConfig))
    return read_options(DetectRunConfig, "cbam detect train", with_kinds(DESCRIPTION), arguments)


def show(result: dict[str, Any], config: DetectRunConfig, console: Console) -> None:
    """Print the scores and where the weights are."""
    figures = [f"AP {result['val_map']:.1%}"] if "val_ap75" in result else []
    figures.append(f"AP50 {result['val_ap50']:.1%}")
    if "val_mask_map" in result:
        figures.append(f"masks AP {result['val_mask_map']:.1%}")
    console.print(
        f"{', '.join(figures)} on {result['images']:,} images after {counted(result['epochs'], 'epoch')}; the best "
        f"epoch is {result['best_epoch']}",
        soft_wrap=True,
    )
    if "val_map_ema" in result:
        console.print(f"moving average: AP {result['val_map_ema']:.1%}, AP50 {result['val_ap50_ema']:.1%}")
    console.print(
        f"weights: {config.folder / 'final'} (last epoch), {config.folder / 'best'}; all figures and curves: "
        f"{config.folder / 'evaluation.json'}",
        soft_wrap=True,
    )
