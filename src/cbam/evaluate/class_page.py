"""The page of an evaluation: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from cbam.evaluate.class_figures import calibration_figure, confusion_figure
from cbam.evaluate.class_report import ClassReport
from cbam.evaluate.metrics import BINS, sampling_error
from cbam.page import embedded_picture, environment, shell_lines
from cbam.version import __version__

_IN_PAGE = 224


def render(
    report: ClassReport,
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
    found = report.calibration
    facts = [
        ("balanced accuracy", f"{100 * report.scores.balanced_accuracy:.2f} %"),
        ("macro F1", f"{100 * report.scores.macro_f1:.2f} %"),
        *([("top-5", f"{100 * report.top5:.2f} %")] if report.top5 is not None else []),
        ("cross-entropy", f"{report.loss:.4f}"),
        *([("calibration error", f"{100 * found.ece:.2f} %")] if found else []),
    ]
    mistakes = [
        {**report.mistake(index), "picture": embedded_picture(picture(index), _IN_PAGE)}
        for index in report.mistakes
    ]
    template = environment("cbam.evaluate").get_template("evaluate.html.j2")
    return template.render(
        report=report,
        facts=facts,
        rows=report.class_rows(),
        matrix=confusion_figure(report.confusion, report.classes, "confusion", variant),
        curve=calibration_figure({variant: found} if found else {}, "calibration"),
        mistakes=mistakes,
        bins=BINS,
        sampling=sampling_error(report.accuracy, report.images),
        notices=notices,
        command=shell_lines(command) if command else "",
        version=__version__,
    )
