"""The figures that only detectors have: precision over recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.ticker import MultipleLocator

from cbam.attach.variants import label
from cbam.page.drawing import INK, canvas, inline_svg, look, shortened


def precision_recall_figure(
    curves: Mapping[str, Sequence[Sequence[float]]], recall: Sequence[float], name: str, title: str
) -> Markup | None:
    """Draw precision over recall, one line a variant: the mean over the seeds thick, every seed thin.

    The legend stands where curves end: precision falls with recall, so the upper right is free only for a perfect
    detector, and the lower left for nearly all.

    Args:
        curves: variant -> for each seed the precision at each recall, 0..1.
        recall: where the precisions are, 0..1.
        name: short and unique in the page.
        title: what the curves are of, for the text alternative: "IoU 0.5, mean over the classes".
    """
    drawn = {variant: seeds for variant, seeds in curves.items() if seeds}
    if not drawn:
        return None
    xs = [100 * value for value in recall]
    with canvas(280, left=40, right=12) as axes:
        areas = []
        for variant, seeds in drawn.items():
            style, text = look(variant), shortened(label(variant), 28)
            mean = [100 * sum(values) / len(seeds) for values in zip(*seeds, strict=True)]
            if len(seeds) > 1:
                for seed in seeds:
                    axes.plot(
                        xs, [100 * value for value in seed], color=style.colour, linewidth=0.8, alpha=0.4
                    )
            axes.plot(
                xs, mean, color=style.colour, linewidth=2, linestyle=style.line,
                marker=style.marker, markersize=5, markevery=max(1, len(xs) // 10), label=text,
            )  # fmt: skip
            areas.append(f"{text} {sum(mean) / len(mean):.1f}")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.set_xlabel("recall (%)")
        axes.set_ylabel("precision (%)", labelpad=1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(20))
        axes.legend(loc="lower left", frameon=False, fontsize=11, labelcolor=INK, handlelength=2.6)
        return inline_svg(axes, name, f"Precision over recall, {title}. Mean precision: {'; '.join(areas)}.")
