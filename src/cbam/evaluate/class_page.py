"""The page of an evaluation: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from cbam.evaluate.class_figures import calibration_figure, confusion_figure, labels_figure
from cbam.evaluate.class_report import ClassReport
from cbam.evaluate.label_report import LabelReport
from cbam.evaluate.metrics import BINS, sampling_error
from cbam.page import embedded_picture, environment, shell_lines
from cbam.version import __version__

_IN_PAGE = 224


def render(
    report: ClassReport | LabelReport,
    picture: Callable[[int], Image.Image],
    *,
    variant: str = "none",
    notices: Sequence[str] = (),
    command: Sequence[str] = (),
) -> str:
    """Return the text of the page.

    Args:
        report: What was found.
        picture: Gives an image as the network sees it, by its number.
        variant: The network's attention, whose colour is used.
        notices: For the reader.
        command: That made it; may be empty.
    """
    mistakes = [
        {**report.mistake(index), "picture": embedded_picture(picture(index), _IN_PAGE)}
        for index in report.mistakes
    ]
    if isinstance(report, LabelReport):
        template, own = "labels.html.j2", _of_labels(report, variant)
    else:
        template, own = "evaluate.html.j2", _of_classes(report, variant)
    return (
        environment("cbam.evaluate")
        .get_template(template)
        .render(
            report=report,
            rows=report.class_rows(),
            mistakes=mistakes,
            bins=BINS,
            notices=notices,
            command=shell_lines(command) if command else "",
            version=__version__,
            **own,
        )
    )


def _of_classes(report: ClassReport, variant: str) -> dict[str, Any]:
    found, scores = report.calibration, report.scores
    shares = {
        "balanced accuracy": scores.balanced_accuracy,
        "macro F1": scores.macro_f1,
        "top-5": report.top5,
    }
    return {
        "facts": [*_in_percent(shares), ("cross-entropy", f"{report.loss:.4f}"), *_error(report)],
        "matrix": confusion_figure(report.confusion, report.classes, "confusion", variant),
        "curve": calibration_figure({variant: found} if found else {}, "calibration"),
        "sampling": sampling_error(report.accuracy, report.images),
    }


def _of_labels(report: LabelReport, variant: str) -> dict[str, Any]:
    found, scores = report.calibration, report.scores
    shares = {
        "macro F1": scores.macro_f1,
        "micro F1": scores.micro_f1,
        "all labels right": scores.exact,
    }
    axes = ("probability of a label", "images that have it")
    return {
        "facts": [*_in_percent(shares), ("binary cross-entropy", f"{report.loss:.4f}"), *_error(report)],
        "figure": labels_figure(scores, report.classes, report.images, "labels", variant),
        "curve": calibration_figure({variant: found} if found else {}, "calibration", axes),
    }


def _in_percent(shares: dict[str, float | None]) -> list[tuple[str, str]]:
    return [(name, f"{100 * share:.2f} %") for name, share in shares.items() if share is not None]


def _error(report: ClassReport | LabelReport) -> list[tuple[str, str]]:
    found = report.calibration
    return _in_percent({"calibration error": found.ece if found else None})
