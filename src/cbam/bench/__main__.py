"""`python -m cbam.bench FOLDER`: results of `cbam bench` next to the speed and memory that this library promises."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cbam.bench.folder import load
from cbam.bench.targets import HEAD, deviations, targets
from cbam.errors import CBAMError
from cbam.runs.tables import Section, show


def main(arguments: Sequence[str]) -> int:
    """Print the table; return 1 if something that must be kept is missed or was not measured."""
    console = Console(highlight=False)
    try:
        results = load(Path(arguments[0] if arguments else "runs/bench"))
    except CBAMError as error:
        console.print(f"cbam.bench: {error}", soft_wrap=True)
        return 2
    found = list(targets(results))
    others = deviations(results) if results[0].case.threads else ()
    notes = [f"The promises are for other options: {text}." for text in others]
    table = Section("Promises", HEAD, [t.cells for t in found], notes)
    show([table], console)
    return int(any(not target.verdict.endswith("met") for target in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
