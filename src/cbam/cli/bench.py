"""`cbam bench`: how fast the attention is beside its rivals, and beside a plain copy of the map."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import tyro
from rich.console import Console

from cbam.bench.settings import BenchConfig

DESCRIPTION = """Time CBAM as a module, in a network, and over sizes and threads, beside the textbook module, a careful
one, timm's, and torch.compile of each. Writes tables, JSON, CSV and a picture. Some minutes; the machine should have
nothing else to do.

Example: cbam bench --parts modules --memory-formats channels_last"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the `arguments` after it; return the exit code."""
    config = tyro.cli(BenchConfig, prog="cbam bench", description=DESCRIPTION, args=list(arguments))
    # Heavy imports after the options are known to be right: a typing error is answered at once.
    from cbam.bench.progress import Progress
    from cbam.bench.run import execute
    from cbam.bench.tables import show

    command = ["cbam", "bench", *arguments]
    try:
        with Progress(Console(stderr=True, highlight=False)) as progress:
            outcome = execute(config, command, progress)
    except KeyboardInterrupt as stop:
        if not config.output.is_dir():
            raise
        again = shlex.join(word for word in command if word != "--restart")
        raise type(stop)(
            f"stopped. What is measured is kept in {config.output}. To go on, type:\n  {again}"
        ) from None
    console = Console(highlight=False)
    show(outcome.results, console)
    if config.quick:
        console.print("--quick only tries whether everything works: these numbers mean nothing.")
    for name in ("bench.json", "bench.csv", *(["bench.png"] if outcome.picture else [])):
        console.print(f"{config.output / name}", soft_wrap=True)
    return 0
