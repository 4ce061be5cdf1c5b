"""Compile ahead of the measurements, in processes of their own: compiling is slow, and uses one core each time.

Run as `python -m cbam.bench.ahead`; takes the cells as JSON on stdin, answers with a line for each that is done.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import torch

from cbam.bench.cells import Cell
from cbam.bench.modules import Contest


def compile_ahead(cells: Sequence[Cell], processes: int, done: Callable[[Cell], None]) -> None:
    """Fill torch's compile cache with what the cells need.

    What fails here is not lost: the process that measures compiles it again, and says why it cannot.

    Args:
        cells: Of the modules part.
        processes: How many at the same time.
        done: Called for every finished cell, from other threads.
    """
    # One process, one core: no compile workers of Inductor's own.
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    children, readers = [], []
    try:
        for first in range(min(processes, len(cells))):
            share = cells[first::processes]
            child = subprocess.Popen(
                [sys.executable, "-m", "cbam.bench.ahead"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            children.append(child)
            readers.append(threading.Thread(target=_follow, args=(child, share, done), daemon=True))
            readers[-1].start()
        for reader in readers:
            reader.join()
    finally:
        for child in children:
            child.kill()
            child.wait()


def _follow(child: subprocess.Popen[str], share: Sequence[Cell], done: Callable[[Cell], None]) -> None:
    assert child.stdin
    assert child.stdout
    try:
        child.stdin.write(json.dumps([dataclasses.asdict(cell) for cell in share]))
        child.stdin.close()
        for cell, _ in zip(share, child.stdout, strict=False):
            done(cell)
    except (BrokenPipeError, ValueError):  # it died, or we are stopping
        return


def main() -> None:
    """Compile what the cells on stdin need."""
    for content in json.load(sys.stdin):
        cell = Cell(**{**content, "shape": tuple(content["shape"])})
        torch.set_num_threads(cell.threads)  # it is written into the code
        Contest(cell, compiled=True).drop_what_does_not_compile()
        sys.stdout.write(cell.name + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
