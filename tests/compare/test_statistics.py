from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from cbam.compare.statistics import paired_difference, points, summarise, write_summary_csv
from cbam.errors import CBAMError

NAN = math.nan


def results(**accuracies: list[float]) -> list[dict]:
    return [
        {"variant": variant.replace("__", ":"), "seed": seed, "val_accuracy": accuracy}
        for variant, scores in accuracies.items()
        for seed, accuracy in enumerate(scores)
        if accuracy is not None
    ]


class TestPairedDifference:
    def test_equals_the_formula_worked_by_hand(self):
        # Differences 2, 3, 4 points: mean 3, sd 1, standard error 1/sqrt(3); t(0.975, 2) = 4.302653.
        difference = paired_difference([0.82, 0.85, 0.84], [0.80, 0.82, 0.80])
        assert difference.mean == pytest.approx(0.03)
        assert difference.low == pytest.approx(0.03 - 4.302653 * 0.01 / math.sqrt(3), abs=1e-8)
        assert difference.high == pytest.approx(0.03 + 4.302653 * 0.01 / math.sqrt(3), abs=1e-8)
        # t = 3 sqrt(3) with 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2).
        t = 3 * math.sqrt(3)
        assert difference.p_value == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-9)
        assert difference.n == 3

    @pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
    def test_agrees_with_scipy_on_random_scores(self, confidence):
        rng = np.random.default_rng(3)
        ours, theirs = rng.normal(0.9, 0.01, 7), rng.normal(0.89, 0.01, 7)
        found = paired_difference(list(ours), list(theirs), confidence)
        gaps = ours - theirs
        error = gaps.std(ddof=1) / math.sqrt(7)
        low, high = stats.t.interval(confidence, 6, loc=gaps.mean(), scale=error)
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.p_value == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)

    def test_is_antisymmetric(self):
        there, back = (
            paired_difference([0.9, 0.8, 0.85], [0.7, 0.9, 0.8]),
            paired_difference([0.7, 0.9, 0.8], [0.9, 0.8, 0.85]),
        )
        assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))

    @pytest.mark.parametrize("pairs", [1, 2])
    def test_one_pair_or_two_have_a_mean_and_nothing_else(self, pairs):
        difference = paired_difference([0.9, 0.8][:pairs], [0.8, 0.6][:pairs])
        assert difference.mean == pytest.approx([0.1, 0.15][pairs - 1])
        assert (difference.low, difference.high, difference.p_value, difference.n) == (
            None,
            None,
            None,
            pairs,
        )
        assert difference.in_words == "too few seeds for an interval"
        assert difference.bracketed == "[no bounds]"

    def test_an_interval_has_no_bound_beyond_what_accuracies_can_differ_by(self):
        wide = paired_difference([0.9, 0.1, 0.9], [0.1, 0.9, 0.1])
        assert (wide.in_words, wide.bracketed) == ("an interval without bounds", "[no bounds]")
        above = paired_difference([0.9, 0.3, 0.9], [0.1, 0.2, 0.1])
        assert above.bounds == (pytest.approx(above.low), None)
        assert above.in_words == f"at least {points(above.low)}"
        below = paired_difference([0.1, 0.2, 0.1], [0.9, 0.3, 0.9])
        assert below.in_words == f"at most {points(below.high)}"
        assert below.bracketed == f"[no bound, {points(below.high)}]"

    def test_no_pair_has_no_mean(self):
        assert paired_difference([], []).mean is None
        assert paired_difference([NAN, 0.5], [0.5, NAN]).n == 0

    def test_pairs_with_a_score_that_is_not_finite_are_left_out_and_counted(self):
        whole = paired_difference([0.82, 0.85, 0.84], [0.80, 0.82, 0.80])
        holes = paired_difference([0.82, NAN, 0.85, 0.84, 0.9], [0.80, 0.5, 0.82, 0.80, math.inf])
        assert holes == whole

    @pytest.mark.parametrize("gap", [0.0, 0.1])
    def test_equal_differences_claim_no_certainty(self, gap):
        # 0.9 - 0.8, 0.7 - 0.6 and 0.35 - 0.25 are not the same floating-point number.
        theirs = [0.8, 0.6, 0.25]
        difference = paired_difference([score + gap for score in theirs], theirs)
        assert difference.no_spread
        assert difference.mean == pytest.approx(gap)
        assert (difference.low, difference.high, difference.p_value) == (None, None, None)

    def test_a_spread_of_one_image_is_a_spread(self):
        assert not paired_difference([0.9001, 0.9, 0.9], [0.8, 0.8, 0.8]).no_spread

    def test_refuses_lists_of_different_length(self):
        with pytest.raises(CBAMError, match="one score per seed in both lists; got 2 and 1"):
            paired_difference([0.1, 0.2], [0.1])

    @pytest.mark.parametrize("confidence", [0, 1, 95])
    def test_refuses_a_confidence_in_percent(self, confidence):
        with pytest.raises(CBAMError, match=r"for example 0\.95"):
            paired_difference([0.1, 0.2], [0.1, 0.1], confidence)


class TestSummarise:
    def test_means_and_sample_standard_deviations(self):
        summary = summarise(results(none=[0.80, 0.82, 0.84], cbam=[0.9]))
        assert summary["none"].mean == pytest.approx(0.82)
        assert summary["none"].sd == pytest.approx(0.02)  # the population's would be 0.01633
        assert summary["cbam"].sd is None

    def test_the_baseline_is_none_wherever_it_stands_else_the_first(self):
        assert summarise(results(cbam=[0.9], none=[0.8])).baseline == "none"
        assert summarise(results(se=[0.9], cbam=[0.8])).baseline == "se"

    def test_compares_with_the_baseline_and_the_control_but_never_with_itself(self):
        summary = summarise(results(none=[0.8, 0.81], cbam=[0.9, 0.92], control=[0.85, 0.86]))
        assert summary["none"].to_baseline is None
        assert summary["none"].to_control is None
        assert summary["control"].to_control is None
        assert summary["control"].to_baseline.mean == pytest.approx(0.05)
        assert summary["cbam"].to_control.mean == pytest.approx(0.055)

    def test_pairs_by_seed_not_by_position(self):
        rows = [{"variant": "none", "seed": s, "val_accuracy": a} for s, a in ((2, 0.7), (0, 0.5), (1, 0.6))]
        rows += [
            {"variant": "cbam", "seed": s, "val_accuracy": a} for s, a in ((1, 0.61), (2, 0.72), (0, 0.53))
        ]
        difference = summarise(rows)["cbam"].to_baseline
        assert difference.mean == pytest.approx(0.02)
        assert difference.low == pytest.approx(0.02 - 4.302653 * 0.01 / math.sqrt(3), abs=1e-8)

    def test_unbalanced_runs_use_complete_pairs(self):
        rows = results(none=[0.80, 0.82], cbam=[0.82, 0.85, 0.10], control=[None, 0.83, 0.84])
        summary = summarise(rows)
        assert summary["cbam"].to_baseline.n == 2
        assert summary["cbam"].to_baseline.mean == pytest.approx(0.025)
        assert summary["control"].to_baseline.n == 1

    def test_a_cell_without_a_finite_accuracy_is_missing(self):
        assert summarise(results(none=[0.8, NAN]))["none"].seeds == (0,)

    def test_planned_variants_keep_their_place_and_the_baseline_while_nothing_is_done(self):
        summary = summarise(results(cbam=[0.9]), ["none", "cbam"])
        assert [row.variant for row in summary.variants] == ["none", "cbam"]
        assert summary.baseline == "none"
        assert summary["none"].mean is None

    def test_refuses_nothing(self):
        with pytest.raises(CBAMError, match="no variants"):
            summarise([])


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "+1.23"), (-0.00004, "0.00"), (0.0, "0.00"), (-0.5, "−50.00")]
)
def test_points_have_a_sign_and_zero_has_none(value, text):
    assert points(value) == text


class TestSummaryTable:
    def test_one_row_per_variant_with_costs(self, tmp_path):
        costs = {"none": {"parameters": 100, "macs": 5, "latency": {"1": {"median_ms": 2.5}}}}
        (tmp_path / "costs.json").write_text(json.dumps(costs))
        summary = summarise(results(none=[0.80, 0.82, 0.80], cbam=[0.82, 0.85, 0.84]))
        with write_summary_csv(tmp_path, summary).open(newline="") as stream:
            plain, cbam = csv.DictReader(stream)
        assert (plain["variant"], plain["parameters"], plain["macs"], plain["latency_batch_1_ms"]) == (
            "none",
            "100",
            "5",
            "2.5",
        )
        assert (plain["to_baseline_mean"], cbam["parameters"]) == ("", "")
        assert float(cbam["mean_accuracy"]) == pytest.approx(0.83666667)
        assert float(cbam["to_baseline_low"]) == pytest.approx(0.03 - 0.04302653 / math.sqrt(3), abs=1e-8)
        assert (cbam["seeds"], cbam["to_baseline_n"], cbam["to_control_mean"]) == ("3", "3", "")

    def test_works_without_costs(self, tmp_path):
        path = write_summary_csv(tmp_path, summarise(results(none=[0.8])))
        assert path.read_text().splitlines()[1].startswith("none,1,0.8,,")
