"""Precision over recall, as a figure that follows the page and escapes names."""

from cbam.compare.detection.figures import precision_recall_figure

RECALL = [i / 100 for i in range(101)]


def falling(rate):
    return [max(0.0, 1 - rate * r) for r in RECALL]


def test_a_line_for_each_variant_and_thin_ones_for_seeds():
    curves = {"none": [falling(0.5), falling(0.7)], "cbam": [falling(0.4)], "se": []}
    svg = precision_recall_figure(curves, RECALL, "pr-50", "IoU 0.5")
    opening = svg[: svg.index(">")]
    assert 'role="img"' in opening
    assert "IoU 0.5. Mean precision: plain 70.0; CBAM 80.0." in opening
    assert "var(--v-none)" in svg
    assert "var(--v-cbam)" in svg
    assert "var(--v-se)" not in svg
    assert svg.count("stroke-width: 0.8") >= 2


def test_names_are_escaped():
    svg = precision_recall_figure({"<script>": [falling(1)]}, RECALL, "pr", "<b>")
    assert "<script" not in svg
    assert "<b>" not in svg
    assert svg.count("&lt;script&gt;") >= 2  # in the legend and in the text alternative


def test_nothing_to_draw():
    assert precision_recall_figure({"none": []}, RECALL, "pr", "") is None
