"""What `cbam evaluate` prints of its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cbam.formatting import columns, counted

if TYPE_CHECKING:
    from cbam.evaluate.class_report import ClassReport
    from cbam.evaluate.label_report import LabelReport

MOST_CLASSES, _PAIRS, _MISTAKES = 20, 5, 5
"""In the terminal; the files have all."""
_NAMES = {"f1": "F1", "average_precision": "average precision"}


def show(report: ClassReport | LabelReport, notices: Sequence[str], console: Console) -> None:
    """Print the scores: as a whole, of each class, and what is wrong most."""
    from cbam.evaluate.class_report import ClassReport

    for notice in notices:
        console.print(f"note: {notice}", soft_wrap=True, markup=False)
    console.print(report.data, soft_wrap=True, markup=False)
    lines = _of_classes(report) if isinstance(report, ClassReport) else _of_labels(report)
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def _of_classes(report: ClassReport) -> list[str]:
    from cbam.evaluate.class_figures import pair_in_words

    scores = report.scores
    top5 = "" if report.top5 is None else f"top-5 {report.top5:.2%}, "
    images = counted(report.images, "image")
    lines = [
        f"top-1 {report.accuracy:.2%}, {top5}cross-entropy {report.loss:.4f} on {images}",
        f"balanced accuracy {scores.balanced_accuracy:.2%}, macro F1 {scores.macro_f1:.2%}{_calibration(report)}",
        "",
        *_table(report.class_rows(), "f1", "classes"),
    ]
    if report.pairs:
        pairs = [pair_in_words(pair, report.classes) for pair in report.pairs[:_PAIRS]]
        lines += ["", "most confused:", *(f"  {pair}" for pair in pairs), "", "wrong, and surest about it:"]
        for mistake in map(report.mistake, report.mistakes[:_MISTAKES]):
            said = f"{mistake['class']} as {mistake['predicted']}, {mistake['confidence']:.1%}"
            lines.append(f"  {mistake['image']}: {said}")
    return lines


def _of_labels(report: LabelReport) -> list[str]:
    scores = report.scores
    micro = "" if scores.micro_f1 is None else f", micro F1 {scores.micro_f1:.2%}"
    images = counted(report.images, "image")
    lines = [
        f"mean average precision {scores.mean_ap:.2%}, binary cross-entropy {report.loss:.4f} on {images}",
        f"macro F1 {scores.macro_f1:.2%}{micro}, all labels right {scores.exact:.2%}{_calibration(report)}",
        "",
        *_table(report.class_rows(), "average_precision", "labels"),
        "precision, recall and F1: of a probability of one half or more",
    ]
    if report.mistakes:
        lines += ["", "wrong, and surest about it:"]
        for mistake in map(report.mistake, report.mistakes[:_MISTAKES]):
            what = "misses" if mistake["has_worst"] else "finds"
            said = f"{what} {mistake['worst']}, {mistake['probability_of_worst']:.1%}"
            lines.append(f"  {mistake['image']}: {said}")
    return lines


def _calibration(report: ClassReport | LabelReport) -> str:
    from cbam.evaluate.metrics import BINS

    found = report.calibration
    return f", calibration error {found.ece:.2%} ({BINS} bins)" if found else ""


def _table(rows: list[dict[str, Any]], score: str, kinds: str) -> list[str]:
    """Return the rows of a table; of many only those with images and the lowest score."""
    lines = []
    if len(rows) > MOST_CLASSES:
        said = f"the {MOST_CLASSES} {kinds} with the lowest {_NAMES[score]}, of {len(rows)}:"
        rows = sorted((row for row in rows if row["images"]), key=lambda row: row[score])[:MOST_CLASSES]
        lines.append(said if len(rows) == MOST_CLASSES else f"the {len(rows)} {kinds} with images:")
    names = list(rows[0])
    return lines + columns(
        [[_NAMES.get(n, n) for n in names], *([_cell(row[n]) for n in names] for row in rows)]
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return (
        f"{value:.2%}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
