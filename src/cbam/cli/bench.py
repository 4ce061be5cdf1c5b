"""`cbam bench`: time the attention against other implementations and a plain copy of the map."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.console import Console

from cbam.bench.config import ASKED_FOR, BenchConfig, defaults
from cbam.cli.parsing import read_options

DESCRIPTION = """Time CBAM as a module, in a network, and over sizes and threads, next to the textbook module, a careful
one, timm's, and torch.compile of each. Writes tables, JSON, CSV and a picture. Takes a few minutes; nothing else should
run on the machine. --parts compiled adds whole networks under torch.compile, and --parts code what compiled code says
of the GPU kernels without a GPU: each takes minutes more, most of it the compiler's.

Examples: cbam bench --parts modules --memory-formats channels_last; cbam bench --parts compiled --model resnet18
--seconds 240; cbam bench --device cuda --budget 480"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code: 1 if a check on the GPU failed."""
    config = read_options(
        BenchConfig, "cbam bench", DESCRIPTION, arguments, default=defaults(_device(arguments))
    )
    # Heavy imports after parsing, so that a wrong option is reported at once.
    from cbam.bench.report import promises, sections, trust
    from cbam.bench.run import prepare
    from cbam.cli.running import run_job
    from cbam.runs.tables import show

    outcome = run_job(prepare, config, ["cbam", "bench", *arguments])
    assert outcome is not None
    console = Console(highlight=False)
    show(sections(outcome.results), console)
    if any(result.case.asked_by in ASKED_FOR for result in outcome.results):
        show([promises(outcome.results)], console)
    console.print(trust(outcome.results), soft_wrap=True)
    for name, why in outcome.left.items():
        console.print(f"not measured: {name}: {why}", soft_wrap=True)
    if config.in_effect().small:
        console.print(
            "A run with --quick or dry-run only checks that everything works: these numbers mean nothing."
        )
    for name in ("bench.json", "bench.csv", "bench.md", *(["bench.png"] if outcome.picture else [])):
        console.print(f"{config.output / name}", soft_wrap=True)
    return int(outcome.wrong)


def _device(arguments: Sequence[str]) -> str:
    """Return the device that is asked for, which decides the defaults."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return next((after for word, after in itertools.pairwise(words) if word == "--device"), "cpu")
