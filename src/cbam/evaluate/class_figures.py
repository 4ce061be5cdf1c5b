"""Figures of what a classifier confuses, and of whether it is right as often as it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.patches import Rectangle
from torch import Tensor

from cbam.attach.variants import label
from cbam.evaluate.labels import LabelScores
from cbam.evaluate.metrics import Calibration, ConfusedPair, confused_pairs
from cbam.page.drawing import INK, MUTED, canvas, inline_svg, look, shortened

MOST_CLASSES = 20
"""Of more, a matrix cannot be read; the most confused pairs say more."""
_DARKEST = 0.5  # the number in a cell stays readable, on a light page and on a dark one
_NAME = 16


def confusion_figure(confusion: Tensor, classes: Sequence[str], name: str, variant: str) -> Markup | None:
    """Draw a confusion matrix with the shares of each true class in percent; None for more than `MOST_CLASSES`.

    Args:
        confusion: Counts (n, n), rows are true classes, columns predicted ones.
        classes: Their names.
        name: Of the figure, unique in the page.
        variant: Whose colour is used.
    """
    n = len(classes)
    if n > MOST_CLASSES or not int(confusion.sum()):
        return None
    names = [shortened(each, _NAME) for each in classes]
    left = 26 + 6.2 * max(map(len, names))
    below = 22 + (5.4 * max(map(len, names)) if n > 2 else 14)
    side = (400 - left - 8) / n
    height = min(side, 44) * n + below + 8
    share = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    with canvas(height, left=left, right=8, bottom=below) as axes:
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        for row, column in confusion.nonzero().tolist():
            part = float(share[row, column])
            axes.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, facecolor=look(variant).colour, alpha=_DARKEST * part, linewidth=0
                )
            )  # fmt: skip
            text = f"{100 * part:.0f}" if part >= 0.005 else "<1"
            weight = "bold" if row == column else "normal"
            size = 11 if side >= 24 else 8
            axes.text(
                column, row, text, ha="center", va="center", color=INK, fontsize=size, fontweight=weight
            )
        axes.set_xlim(-0.5, n - 0.5)
        axes.set_ylim(n - 0.5, -0.5)
        axes.set_yticks(range(n), names, color=INK)
        axes.set_xticks(range(n), names, color=INK, rotation=0 if n == 2 else 90)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return inline_svg(axes, name, _in_words(confusion, classes))


def labels_figure(
    scores: LabelScores, labels: Sequence[str], images: int, name: str, variant: str
) -> Markup | None:
    """Draw the average precision of each label, and the share of the images that have it, which a guess reaches.

    Of more than `MOST_CLASSES` labels those with the lowest; None if no image has any label.

    Args:
        scores: Of the labels.
        labels: Their names.
        images: Number of images.
        name: Of the figure, unique in the page.
        variant: Whose colour is used.
    """
    found = [
        (area, count / images, label)
        for area, count, label in zip(scores.average_precision, scores.images, labels, strict=True)
        if area is not None
    ]
    if not found:
        return None
    found = sorted(sorted(found, key=lambda one: one[0])[:MOST_CLASSES], key=lambda one: -one[0])
    names = [shortened(label, 24) for _, _, label in found]
    style = look(variant)
    with canvas(22 * len(found) + 46, left=min(20 + 6.2 * max(map(len, names)), 190), right=16) as axes:
        for row, (area, share, _) in enumerate(found):
            axes.plot([100 * share, 100 * area], [row, row], color=style.colour, linewidth=3, alpha=0.35)
            axes.plot([100 * share], [row], "|", color=INK, markersize=11)
            axes.plot([100 * area], [row], style.marker, color=style.colour, markersize=6)
        axes.set_xlim(-2, 102)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_yticks(range(len(found)), names, color=INK)
        axes.grid(False, axis="y")
        axes.set_xlabel("average precision (%)")
        values = "; ".join(
            f"{label} {100 * area:.2f}, of a guess {100 * share:.2f}" for area, share, label in found
        )
        return inline_svg(axes, name, f"Average precision of labels in percent. {values}.")


def _in_words(confusion: Tensor, classes: Sequence[str]) -> str:
    right, images = int(confusion.trace()), int(confusion.sum())
    pairs = "; ".join(pair_in_words(pair, classes) for pair in confused_pairs(confusion, 5))
    return f"Confusion matrix: {right:,} of {images:,} images are right. {pairs or 'Nothing is confused'}."


def pair_in_words(pair: ConfusedPair, classes: Sequence[str]) -> str:
    """Say what was confused how often.

    >>> pair_in_words(ConfusedPair(0, 1, 6, 0.3), ["cat", "dog"])
    'cat as dog: 6 (30.0 %)'
    """
    return f"{classes[pair.true]} as {classes[pair.predicted]}: {pair.images:,} ({100 * pair.share:.1f} %)"


def calibration_figure(
    found: Mapping[str, Calibration], name: str, axes_of: tuple[str, str] = ("confidence", "accuracy")
) -> Markup | None:
    """Draw how often classifiers are right over how sure they are; the diagonal is a calibrated one.

    Args:
        found: By variant.
        name: Of the figure, unique in the page.
        axes_of: What the axes show.
    """
    if not found:
        return None
    with canvas(300, left=40, right=12) as axes:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1.2, linestyle=":")
        for variant, one in found.items():
            style = look(variant)
            sure = [100 * each.confidence for each in one.bins]
            right = [100 * each.accuracy for each in one.bins]
            axes.plot(sure, right, color=style.colour, linewidth=1.6, linestyle=style.line)
            # The area of a mark is that of its bin's share, so that a few images do not look like many.
            images = sum(each.images for each in one.bins)
            sizes = [12 + 110 * each.images / images for each in one.bins]
            axes.scatter(sure, right, sizes, color=style.colour, marker=style.marker, alpha=0.85, zorder=3)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-4, 104)
        axes.set_xlabel(f"{axes_of[0]} (%)")
        axes.set_ylabel(f"{axes_of[1]} (%)")
        values = "; ".join(f"{label(variant)} {100 * one.ece:.2f}" for variant, one in found.items())
        text = (
            f"{axes_of[1].capitalize()} over {axes_of[0]}, one mark for each bin; the dotted diagonal is perfect "
            f"calibration. "
            f"Expected calibration error in percent: {values}."
        )
        return inline_svg(axes, name, text)
