"""`cbam detect compare`: does attention help this detector on these images, and at what cost?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from cbam.cli.attention import with_kinds
from cbam.cli.parsing import first_word_is, read_options
from cbam.compare.detection.config import DetectCompareConfig
from cbam.detect.recipe import DetectTrainConfig
from cbam.formatting import counted
from cbam.runs.options import with_file

if TYPE_CHECKING:
    from cbam.compare.job import Outcome

DESCRIPTION = """Train a detector plain, with SE and with CBAM, with several seeds. Ends with a table, a verdict and a
report page with detections side by side. If it is stopped, the same command resumes it.

Example: cbam detect compare --data voc:/data/VOCdevkit --model ssd300_vgg16 --sites head --seeds 3"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = parse(arguments)
    # Heavy imports after parsing, so that a wrong option is reported at once.
    from cbam.cli.running import placed, run_job
    from cbam.compare.detection.run import prepare

    config = placed(config)
    outcome = run_job(prepare, config, ["cbam", "detect", "compare", *arguments])
    if outcome:
        show(outcome, config, Console(highlight=False))
    return 0


def parse(arguments: Sequence[str]) -> DetectCompareConfig:
    """Read the options, those of a `--config` file first; exits with code 2 and an explanation if they are wrong.

    Args:
        arguments: What follows `cbam detect compare`.

    >>> parse(["--data", "coco:photos", "--seeds", "2"]).seeds
    2
    """
    arguments = with_file(first_word_is("data", arguments), (DetectCompareConfig, DetectTrainConfig))
    return read_options(DetectCompareConfig, "cbam detect compare", with_kinds(DESCRIPTION), arguments)


def show(outcome: Outcome, config: DetectCompareConfig, console: Console) -> None:
    """Print the table, the verdict and where the report is."""
    from cbam.cli.compare import show_summary

    length = (
        counted(config.train.epochs, "epoch")
        if config.train.iterations is None
        else counted(config.train.iterations, "step")
    )
    title = f"{config.model} on {outcome.data}, average precision after {length}"
    show_summary(outcome, title, "AP", "4", config, console)
