"""`cbam compare`: does attention help on these images, and at what cost?"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from cbam.cli.attention import with_kinds
from cbam.cli.parsing import first_word_is, read_options
from cbam.compare.config import CompareConfig, GridConfig
from cbam.runs.options import with_file
from cbam.train.config import TrainConfig

if TYPE_CHECKING:
    from cbam.compare.job import Outcome
    from cbam.compare.statistics import PairedDifference

Form = TypeVar("Form", bound=CompareConfig)
DESCRIPTION = """Train one network plain, with SE, with CBAM, and plain but widened to the size of CBAM, with several
seeds. Ends with a table, a verdict and a report page. If it is stopped, the same command resumes it.

Most runs need no more than --data, --model, --pretrained, --epochs, --batch-size and --seeds; the rest has defaults.

Example: cbam compare --data fashion-mnist --model resnet20 --seeds 3 --epochs 10"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = parse(arguments)
    # Heavy imports after parsing, so that a wrong option is reported at once.
    from cbam.cli.running import placed, run_job
    from cbam.compare.run import prepare

    config = placed(config)
    outcome = run_job(prepare, config, ["cbam", "compare", *arguments])
    if outcome:
        show(outcome, config, Console(highlight=False))
    return 0


def parse(arguments: Sequence[str]) -> CompareConfig:
    """Read the options, those of a `--config` file first; exits with code 2 and an explanation if they are wrong.

    Args:
        arguments: What follows `cbam compare`.

    >>> parse(["--data", "digits", "--epochs", "2"]).train.epochs
    2
    """
    return parse_as(CompareConfig, arguments, "cbam compare", with_kinds(DESCRIPTION))


def parse_as(form: type[Form], arguments: Sequence[str], program: str, description: str) -> Form:
    """Read `arguments` as the fields of `form`, a `CompareConfig` or one with more options."""
    arguments = with_file(first_word_is("data", arguments), (form, TrainConfig))
    return read_options(form, program, description, arguments)


def show(outcome: Outcome, config: CompareConfig, console: Console) -> None:
    """Print the table, the verdict and where the report is."""
    from cbam.formatting import counted

    title = (
        f"{config.model} on {outcome.data}, validation {outcome.score} after "
        f"{counted(config.train.epochs, 'epoch')}"
    )
    show_summary(outcome, title, outcome.score, "32", config, console)
    chosen = "cbam" if "cbam" in config.variants else config.variants[-1]
    console.print(f"use one: cbam predict {outcome.report.parent} IMAGES --variant {chosen}", soft_wrap=True)


def show_summary(
    outcome: Outcome, title: str, score: str, batch: str, config: GridConfig, console: Console
) -> None:
    """Print the table of any comparison, the verdict, how to train each network alone and where the report is.

    Args:
        outcome: Of the comparison.
        title: Of the table.
        score: What was compared, in a word.
        batch: The batch size whose latency is shown.
        config: Of the comparison.
        console: Where to print.
    """
    from cbam.attach.variants import label
    from cbam.compare.commands import train_commands
    from cbam.compare.verdict import verdict

    summary = outcome.summary
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", padding=(0, 1, 0, 0))
    table.add_column("variant", no_wrap=True)
    timed = [f"ms, batch {batch}"] if all("latency" in cost for cost in outcome.costs.values()) else []
    for heading in (score, f"vs {label(summary.baseline)}", "parameters", "MACs", *timed):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.variants:
        cost = outcome.costs[row.variant]
        table.add_row(
            label(row.variant),
            _mean_and_spread(row.mean, row.sd),
            _difference(row.to_baseline),
            f"{cost['parameters']:,}",
            f"{cost['macs'] / 1e6:,.2f} M",
            *(f"{cost['latency'][batch]['median_ms']:.2f}" for _ in timed),
        )
    console.print(table)
    seeds = max((len(row.seeds) for row in summary.variants), default=0)
    if seeds > 1:
        console.print(
            "± standard deviation over the seeds; [ ] 95 % interval of the paired difference, in points"
        )
    console.print(f"\n{verdict(summary)}")
    if seeds < 3:
        console.print("Add seeds with --seeds 3; what is trained is kept.")
    console.print("\nto train one of them alone:")
    parameters = {variant: cost["parameters"] for variant, cost in outcome.costs.items()}
    for words in train_commands(config.resolved(), config.variants, parameters).values():
        console.print(f"  {shlex.join(words)}", soft_wrap=True, markup=False)
    console.print(f"\nreport: {outcome.report}", soft_wrap=True)


def _mean_and_spread(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return ""
    # The spread below the mean: one line of both is cut off at the end of an 80-column terminal.
    return f"{100 * mean:.2f} %" if sd is None else f"{100 * mean:.2f} %\n± {100 * sd:.2f}  "


def _difference(difference: PairedDifference | None) -> str:
    from cbam.compare.statistics import points

    if difference is None or difference.mean is None:
        return ""
    return f"{points(difference.mean)}\n{difference.bracketed}"
