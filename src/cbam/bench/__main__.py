"""`python -m cbam.bench FOLDER`: results of `cbam bench` next to the speed and memory that this library promises."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cbam.bench.folder import load
from cbam.bench.report import promises
from cbam.bench.targets import targets
from cbam.errors import CBAMError
from cbam.runs.tables import show


def main(arguments: Sequence[str]) -> int:
    """Print the table; return 1 if something that must be kept is missed or was not measured."""
    console = Console(highlight=False)
    try:
        results = load(Path(arguments[0] if arguments else "runs/bench"))
    except CBAMError as error:
        console.print(f"cbam.bench: {error}", soft_wrap=True)
        return 2
    show([promises(results)], console)
    return int(any(not target.verdict.endswith("met") for target in targets(results)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
