"""The folder of a comparison: its settings, its cells and their results."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cbam.compare.grid import Cell
from cbam.runs.folder import RunFolder

logger = logging.getLogger(__name__)


class CompareFolder(RunFolder):
    """Reads and writes the files of one comparison.

    Args:
        path: The folder.
        score_name: The score without which a cell's result is damaged.
        overwrite: See `RunFolder`.
    """

    def __init__(self, path: Path, score_name: str = "val_accuracy", *, overwrite: bool = False):
        super().__init__(path, overwrite=overwrite)
        self.score_name = score_name

    def cell(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.path / "cells" / cell.name

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Return the result of a finished cell whose weights are there too, else None."""
        result = self.read_json(f"cells/{cell.name}/result.json", "variant", "seed", self.score_name)
        weights = self.cell(cell) / "model.safetensors"
        try:
            if result is not None:
                with safe_open(weights, framework="pt"):  # reads the header and compares the file's length
                    pass
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be read (%s); the model is trained again", weights, error)
            return None
        return result
