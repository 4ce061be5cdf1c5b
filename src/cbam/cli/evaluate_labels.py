"""What `cbam evaluate` shows and writes of a network for several labels an image."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.formatting import columns, counted

if TYPE_CHECKING:
    from cbam.data import ImageData
    from cbam.train.multilabel import LabelEvaluation

_COLUMNS = ("label", "images", "average_precision", "precision", "recall", "f1")


@dataclass(frozen=True)
class LabelsFound:
    """What was scored, and the scores.

    Attributes:
        network: Where it is from.
        data: The images.
        evaluation: The scores.
        notices: For the user.
    """

    network: str
    data: ImageData
    evaluation: LabelEvaluation
    notices: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return the scores of each label; None where there is nothing to divide by."""
        scores = self.evaluation.scores
        values = (
            self.data.classes,
            scores.images,
            scores.average_precision,
            scores.precision,
            scores.recall,
            scores.f1,
        )
        return [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*values, strict=True)]

    def show(self, console: Console) -> None:
        """Print the scores as a whole, and those of each label."""
        found, scores = self.evaluation, self.evaluation.scores
        lines = [*(f"note: {notice}" for notice in self.notices), f"from {self.data.source}"]
        lines.append(
            f"mean average precision {scores.mean_ap:.2%}, macro F1 {scores.macro_f1:.2%}, all labels right "
            f"{scores.exact:.2%}, binary cross-entropy {found.loss:.4f} on {counted(found.images, 'image')}"
        )
        heads = ["label", "images", "average precision", "precision", "recall", "F1"]
        table = [[_cell(value) for value in row.values()] for row in self.rows()]
        console.print("\n".join([*lines, "", *columns([heads, *table])]), soft_wrap=True, markup=False)
        console.print("Precision, recall and F1 are those of a probability of one half.", soft_wrap=True)

    def write(self, output: Path) -> Path:
        """Write the scores as JSON, or those of each label as CSV; return the file.

        Args:
            output: A file that ends in .json or .csv, or a folder, which gets scores.json.

        Raises:
            CBAMError: A page is asked for.
        """
        file = output / "scores.json" if output.is_dir() or not output.suffix else output
        if file.suffix == ".html":
            raise CBAMError(
                f"--output {output}: several labels have no page yet. Type: {file.with_suffix('.json')}"
            )
        if file.suffix == ".csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows())
            return write_atomically(file, text.getvalue())
        about = {"source": self.network, "data": self.data.identity, "labels": self.rows()}
        return write_atomically(file, json.dumps({**about, **self.evaluation.figures()}, indent=1) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2%}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
