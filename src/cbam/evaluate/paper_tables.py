"""The paper's Tables 1 to 5 as data: what is printed there, and which of our networks each row is.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", arXiv 1807.06521 v2. Errors are in percent, single
crop 224 x 224 of ImageNet-1K's validation images. The paper names no seeds and prints no spread for any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cbam.errors import CBAMError


@dataclass(frozen=True)
class PaperRow:
    """One printed row, and how to build that network here.

    Args:
        label: as printed.
        backbone: name for `cbam.models.build_model`, without attention.
        attention: "none", or for `cbam.attach`: "se", "cbam", "channel".
        params: millions of parameters, with the printed digits; None where the table has no such column.
        gflops: billions of multiply-adds, with the printed digits; None where the table has no such column.
        top1, top5: errors in percent.
        switches: more arguments for `cbam.attach`, such as `kernel_size=3`.
        sites: `sites` for `cbam.attach`.

    >>> row = TABLES[4].rows[8]
    >>> row.label, row.params, row.gflops, row.top1
    ('ResNet50 + CBAM', '28.09', '3.864', 22.66)
    """

    label: str
    backbone: str
    attention: str
    params: str | None
    gflops: str | None
    top1: float
    top5: float
    switches: dict[str, Any] = field(default_factory=dict)
    sites: str = "auto"

    @property
    def attach_arguments(self) -> dict[str, Any]:
        """Arguments for `cbam.attach`: the authors' preset, whose biases are part of the printed counts."""
        return {"attention": self.attention, "sites": self.sites, "preset": "official", **self.switches}


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper; `notes` say where it contradicts the text or our counts."""

    number: int
    title: str
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...] = ()


def paper_table(number: int) -> PaperTable:
    """Return a table of the paper by its number.

    Raises:
        CBAMError: for a number that is not 1 to 5.

    >>> [row.top1 for row in paper_table(3).rows]
    [23.14, 22.66, 22.78, 22.95]
    """
    if number in TABLES:
        return TABLES[number]
    raise CBAMError(
        f"the paper's tables of classifiers are 1, 2, 3, 4 and 5, given {number}. Choose one of these."
    )


_R50 = "paper_resnet50"


def _three(
    label: str, backbone: str, cells: tuple[tuple[str, str, float, float], ...], sites: str = "auto"
) -> tuple[PaperRow, ...]:
    """Return the rows of one backbone: plain, with SE, with CBAM."""
    kinds = (("", "none"), (" + SE", "se"), (" + CBAM", "cbam"))
    return tuple(
        PaperRow(label + suffix, backbone, attention, *row, sites=sites)
        for (suffix, attention), row in zip(kinds, cells, strict=True)
    )


_TABLE_1 = PaperTable(
    1,
    "channel attention: what is pooled (ResNet-50, channel gate alone, r = 16)",
    (
        PaperRow("ResNet50 (baseline)", _R50, "none", "25.56", "3.86", 24.56, 7.50),
        PaperRow("+ AvgPool (SE)", _R50, "se", "25.92", "3.94", 23.14, 6.70),
        PaperRow("+ MaxPool", _R50, "channel", "25.92", "3.94", 23.20, 6.83, {"channel_pooling": "max"}),
        PaperRow("+ AvgPool & MaxPool", _R50, "channel", "25.92", "4.02", 22.80, 6.52),
    ),
    (
        (
            "The same networks appear in Tables 2 and 4 with other costs: SE with 28.09 M and 3.860 G, both pools with "
            "28.09 M. A gate with r = 16 in every block adds 2,530,992 parameters, so 28.09 M is the right figure and "
            "the cost columns of Table 1 are those of some other network."
        ),
    ),
)

_TABLE_2 = PaperTable(
    2,
    "spatial attention: descriptor and kernel, after the channel gate (ResNet-50)",
    (
        PaperRow("channel (SE)", _R50, "se", "28.09", "3.860", 23.14, 6.70),
        PaperRow("channel", _R50, "channel", "28.09", "3.860", 22.80, 6.52),
        PaperRow(
            "channel + spatial (1x1 conv, k=3)", _R50, "cbam", "28.10", "3.862", 22.96, 6.64,
            {"spatial_descriptor": "conv", "kernel_size": 3},
        ),
        PaperRow(
            "channel + spatial (1x1 conv, k=7)", _R50, "cbam", "28.10", "3.869", 22.90, 6.47,
            {"spatial_descriptor": "conv", "kernel_size": 7},
        ),
        PaperRow(
            "channel + spatial (avg&max, k=3)", _R50, "cbam", "28.09", "3.863", 22.68, 6.41, {"kernel_size": 3}
        ),
        PaperRow(
            "channel + spatial (avg&max, k=7)", _R50, "cbam", "28.09", "3.864", 22.66, 6.31, {"kernel_size": 7}
        ),
    ),
    (
        "channel: the gate pools twice and runs its MLP on both, 3.863 G; the paper repeats SE's 3.860.",
        "1x1 conv, k=3: the learned 1x1 convolution alone brings the network to 3.868 G, so 3.862 cannot be.",
        ('The text of section 4.1 says that "all the arranging methods outperform using only the channel attention". '
        'Against the channel gate with both pools (22.80) that is not so: both descriptors by 1x1 '
        "conv (22.96, 22.90) here and the parallel arrangement (22.95) of Table 3 are worse."),
    ),
)  # fmt: skip

_TABLE_3 = PaperTable(
    3,
    "arrangement of the two gates (ResNet-50)",
    (
        PaperRow("channel (SE)", _R50, "se", None, None, 23.14, 6.70),
        PaperRow("channel -> spatial", _R50, "cbam", None, None, 22.66, 6.31),
        PaperRow(
            "spatial -> channel", _R50, "cbam", None, None, 22.78, 6.42, {"arrangement": "spatial-channel"}
        ),
        PaperRow(
            "channel & spatial in parallel", _R50, "cbam", None, None, 22.95, 6.59, {"arrangement": "parallel"}
        ),
    ),
    (
        "The table has no cost columns: the order of the gates costs nothing.",
        ('The text of section 4.1 says that "all the arranging methods outperform using only the channel attention". '
        'The table shows only SE (23.14) for that; against the channel gate with both pools (22.80 '
        "in Tables 1 and 2) the parallel arrangement (22.95) is worse."),
    ),
)  # fmt: skip

_TABLE_4 = PaperTable(
    4,
    "ImageNet-1K",
    (
        *_three("ResNet18", "paper_resnet18", (
            ("11.69", "1.814", 29.60, 10.55), ("11.78", "1.814", 29.41, 10.22), ("11.78", "1.815", 29.27, 10.09),
        )),
        *_three("ResNet34", "paper_resnet34", (
            ("21.80", "3.664", 26.69, 8.60), ("21.96", "3.664", 26.13, 8.35), ("21.96", "3.665", 25.99, 8.24),
        )),
        *_three("ResNet50", _R50, (
            ("25.56", "3.858", 24.56, 7.50), ("28.09", "3.860", 23.14, 6.70), ("28.09", "3.864", 22.66, 6.31),
        )),
        *_three("ResNet101", "paper_resnet101", (
            ("44.55", "7.570", 23.38, 6.88), ("49.33", "7.575", 22.35, 6.19), ("49.33", "7.581", 21.51, 5.69),
        )),
        *_three("WideResNet18 (1.5)", "wrn18_1.5", (
            ("25.88", "3.866", 26.85, 8.88), ("26.07", "3.867", 26.21, 8.47), ("26.08", "3.868", 26.10, 8.43),
        )),
        *_three("WideResNet18 (2.0)", "wrn18_2.0", (
            ("45.62", "6.696", 25.63, 8.20), ("45.97", "6.696", 24.93, 7.65), ("45.97", "6.697", 24.84, 7.63),
        )),
        *_three("ResNeXt50 (32x4d)", "paper_resnext50_32x4d", (
            ("25.03", "3.768", 22.85, 6.48), ("27.56", "3.771", 21.91, 6.04), ("27.56", "3.774", 21.92, 5.91),
        )),
        *_three("ResNeXt101 (32x4d)", "paper_resnext101_32x4d", (
            ("44.18", "7.508", 21.54, 5.75), ("48.96", "7.512", 21.17, 5.66), ("48.96", "7.519", 21.07, 5.59),
        )),
    ),
    (
        "ResNeXt50: SE has the smaller top-1 error (21.91 against CBAM's 21.92).",
        ('What the text calls "negligible" overhead is the multiply-adds: +0.16 % on ResNet-50. Its '
        "parameters grow by 9.9 %, those of ResNet-101 by 10.7 %; no timing is given anywhere."),
    ),
)  # fmt: skip

_TABLE_5 = PaperTable(
    5,
    "MobileNet v1 on ImageNet-1K",
    (
        *_three("MobileNet alpha=0.7", "mobilenet_v1_0.7", (
            ("2.30", "0.283", 34.86, 13.69), ("2.71", "0.283", 32.50, 12.49), ("2.71", "0.289", 31.51, 11.48),
        ), sites="conv"),
        *_three("MobileNet alpha=1.0", "mobilenet_v1", (
            ("4.23", "0.569", 31.39, 11.51), ("5.07", "0.570", 29.97, 10.63), ("5.07", "0.576", 29.01, 9.99),
        ), sites="conv"),
    ),
    (
        ("The counts fit only with the module after every convolution with its norm and ReLU, 27 in all (the first, "
        "13 depthwise, 13 pointwise); after the pointwise ones alone it would be 4.72 M. The text does not say so."),
        ("alpha=0.7 + SE: hidden widths of C/16 rounded down, as in the authors' code and here, give 2,704,661, which "
        "rounds to 2.70; rounded to the nearest, 2,709,854. At alpha = 1.0 and in every ResNet C/16 is whole."),
        "Parameters grow by 19.9 % with SE or CBAM at alpha = 1.0.",
    ),
)  # fmt: skip

TABLES: dict[int, PaperTable] = {
    table.number: table for table in (_TABLE_1, _TABLE_2, _TABLE_3, _TABLE_4, _TABLE_5)
}
