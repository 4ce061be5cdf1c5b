"""The paper's Tables 6 and 7, of detectors: what is printed there, and the parameters of ours beside it.

Source: Woo et al., arXiv 1807.06521 v2. The paper names no seeds and prints no spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cbam.errors import CBAMError
from cbam.evaluate.paper_costs import rounded, wrapped
from cbam.formatting import columns


@dataclass(frozen=True)
class DetectorRow:
    """One printed row, and how to build that detector here.

    Args:
        label: as printed.
        detector: name for `cbam.models.detection.build_detector`.
        attention: "none", "se" or "cbam".
        params: millions of parameters, with the printed digits; None where the table has no such column.
        figures: mAP in percent, as in the table's `figures`.
    """

    label: str
    detector: str
    attention: str
    params: str | None
    figures: tuple[float, ...]


@dataclass(frozen=True)
class DetectorTable:
    """A table of detectors.

    Args:
        number: in the paper.
        title: of the table.
        classes: of its data set.
        figures: names of the mAP columns.
        rows: as printed.
        notes: on the table and on our counts.
    """

    number: int
    title: str
    classes: int
    figures: tuple[str, ...]
    rows: tuple[DetectorRow, ...]
    notes: tuple[str, ...]


_TABLE_6 = DetectorTable(
    6,
    "MS COCO, Faster R-CNN, attention in the backbone",
    80,
    ("@.5", "@.75", "@[.5,.95]"),
    tuple(
        DetectorRow(f"ResNet{depth}{suffix}", f"fasterrcnn_paper_resnet{depth}_c4", attention, None, figures)
        for depth, suffix, attention, figures in (
            (50, "", "none", (46.2, 28.1, 27.0)),
            (50, " + CBAM", "cbam", (48.2, 29.2, 28.1)),
            (101, "", "none", (48.4, 30.7, 29.1)),
            (101, " + CBAM", "cbam", (50.5, 32.6, 30.8)),
        )
    ),
    (
        (
            "The paper prints no parameters here. Ours are of Faster R-CNN without a pyramid, whose last stage runs on "
            "every region, with torchvision's parts: 15 anchors at each place, regions of 14 x 14."
        ),
        "The caption speaks of 0.9 points of mAP@[.5,.95] for both; the rows give 1.1 and 1.7.",
        (
            "The baselines are of 490,000 iterations and below those of other implementations: only the differences "
            "under one recipe can be compared."
        ),
    ),
)


def _four(backbone: str, cells: Sequence[tuple[str, float]]) -> tuple[DetectorRow, ...]:
    """Return the rows of one backbone."""
    detectors = (("SSD", "ssd300", "none"), ("StairNet", "stairnet300", "none"))
    attended = (("StairNet + SE", "stairnet300", "se"), ("StairNet + CBAM", "stairnet300", "cbam"))
    return tuple(
        DetectorRow(f"{backbone} {label}", f"{kind}_{backbone.lower()}", attention, params, (figure,))
        for (label, kind, attention), (params, figure) in zip((*detectors, *attended), cells, strict=True)
    )


_TABLE_7 = DetectorTable(
    7,
    "VOC 2007, attention right before every classifier",
    20,
    ("@.5",),
    (
        *_four("VGG16", (("26.5", 77.8), ("32.0", 78.9), ("32.1", 79.1), ("32.1", 79.3))),
        *_four("MobileNet", (("5.81", 68.1), ("5.98", 70.1), ("5.99", 70.0), ("6.00", 70.5))),
    ),
    (
        "SSD fits with six default boxes at each place of the first map, where SSD's paper has four (26.29 M).",
        "StairNet on VGG16 fits with predictors of its own for each map; shared by all maps they would give 30.5 M.",
        (
            "Of MobileNet's detectors there is no description. Ours have 1x1 predictors, and stairs of 128 channels "
            "with depthwise convolutions: within 0.2 % of what is printed."
        ),
        "With MobileNet, StairNet alone (70.1) is ahead of StairNet + SE (70.0).",
    ),
)
DETECTOR_TABLES: dict[int, DetectorTable] = {table.number: table for table in (_TABLE_6, _TABLE_7)}


def count_detector(row: DetectorRow, classes: int) -> int:
    """Build the detector of a row and count its parameters, with the attention in the authors' form.

    >>> count_detector(DETECTOR_TABLES[7].rows[0], 20)
    26515936
    """
    from cbam.models.detection import build_detector  # needs torchvision

    options = {"preset": "official"} if row.attention == "cbam" else {}
    model = build_detector(row.detector, classes, attention=row.attention, attention_options=options)
    return sum(parameter.numel() for parameter in model.parameters())


def render_detectors(number: int, counted: Sequence[int] | None = None) -> str:
    """Return a table of detectors with our counts beside it, at most 100 columns wide.

    Args:
        number: 6 or 7.
        counted: parameters of its rows, if they have been counted already.

    Raises:
        CBAMError: for another number.
    """
    if number not in DETECTOR_TABLES:
        raise CBAMError(f"the paper has Tables 1 to 7, given {number}. Choose one of 1, 2, 3, 4, 5, 6, 7.")
    table = DETECTOR_TABLES[number]
    if counted is None:
        counted = [count_detector(row, table.classes) for row in table.rows]
    cells = [("", "paper", "ours", "exactly", "added", *table.figures)]
    plain = differing = 0
    for row, parameters in zip(table.rows, counted, strict=True):
        plain = parameters if row.attention == "none" else plain
        ours = rounded(parameters, 6, row.params or "0.00")
        differs = row.params not in (None, ours)
        differing += differs
        added = f"+{(parameters - plain) / plain:.2%}" if parameters != plain else ""
        figures = tuple(f"{figure:.1f}" for figure in row.figures)
        mark = " !" if differs else "  "
        cells.append((row.label, row.params or "-", ours + mark, f"{parameters:,}", added, *figures))
    above = ("", "M params", "", "", "", "% mAP", *("",) * (len(table.figures) - 1))
    lines = [f"Table {number} of the paper: {table.title}", "", *columns(cells, headings=above), ""]
    printed = sum(row.params is not None for row in table.rows)
    if printed:
        verdict = (
            f"Our detectors reproduce {printed - differing} of {printed} printed figures, digit for digit"
        )
        lines += wrapped(f"{verdict}; ! marks the others." if differing else f"{verdict}.")
    for note in table.notes:
        lines += wrapped(note, "- ")
    return "\n".join(lines)
