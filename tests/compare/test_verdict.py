"""The verdict: first what is broken, then every claim once, and none that the numbers do not support."""

from __future__ import annotations

import pytest
from tests.compare.test_statistics import results

from cbam.compare.statistics import summarise
from cbam.compare.verdict import findings, verdict


class TestVerdict:
    def test_gain(self):
        text = verdict(summarise(results(none=[0.80, 0.82, 0.80], cbam=[0.82, 0.85, 0.84])))
        assert "CBAM: measurable gain over the plain network.\n  +3.00 points" in text
        assert "95 % interval +0.52 to +5.48, p = 0.035, 3 seeds" in text
        assert "Without a control, a gain cannot be separated from the effect of more parameters." in text

    def test_no_gain_is_said_plainly(self):
        text = verdict(summarise(results(none=[0.80, 0.82, 0.80], cbam=[0.81, 0.83, 0.79])))
        assert text.startswith("CBAM: no measurable gain over the plain network.\n  +0.33 points")

    def test_loss(self):
        text = verdict(summarise(results(none=[0.82, 0.85, 0.84], cbam=[0.80, 0.82, 0.80])))
        assert "CBAM: measurably worse than the plain network.\n  −3.00 points" in text

    def test_a_gain_that_the_control_has_too_is_not_credited_to_attention(self):
        rows = results(none=[0.80, 0.82, 0.80], cbam=[0.82, 0.85, 0.84], control=[0.81, 0.84, 0.845])
        text = verdict(summarise(rows))
        assert (
            "CBAM: measurable gain over the plain network, no measurable gain over the control: attention"
            in text
        )
        assert "attention is not shown to add anything beyond extra parameters" in text
        assert "Without a control" not in text

    def test_a_gain_over_both(self):
        rows = results(none=[0.80, 0.82, 0.80], cbam=[0.82, 0.85, 0.84], control=[0.80, 0.82, 0.81])
        text = verdict(summarise(rows))
        assert "CBAM: measurable gain over the plain network and the control.\n  +3.00" in text
        assert "not shown" not in text

    def test_one_seed_allows_no_claim(self):
        text = verdict(summarise(results(none=[0.80], cbam=[0.99], control=[0.81])))
        assert text.startswith("No claim can be made from one seed: an interval needs three or more.")
        assert "CBAM: compared with the plain network in too few seeds.\n  +19.00 points" in text
        assert "measurable" not in text

    def test_equal_differences_allow_no_claim(self):
        text = verdict(summarise(results(none=[0.8, 0.6, 0.25], cbam=[0.9, 0.7, 0.35])))
        assert "CBAM: no claim against the plain network" in text
        assert "+10.00 points against the plain network in each of 3 seeds: without spread" in text

    def test_no_gain_over_both(self):
        rows = results(none=[0.80, 0.82, 0.80], cbam=[0.81, 0.83, 0.79], control=[0.80, 0.83, 0.81])
        assert "CBAM: no measurable gain over the plain network or the control.\n  +0.33" in verdict(
            summarise(rows)
        )

    def test_two_seeds_allow_no_claim(self):
        text = verdict(summarise(results(none=[0.80, 0.82], cbam=[0.82, 0.85])))
        assert text.startswith("No claim can be made from two seeds: an interval needs three or more.")
        assert "measurabl" not in text
        assert "+2.50 points against the plain network, 2 seeds" in text

    def test_what_holds_for_several_variants_is_said_once(self):
        rows = results(
            none=[0.80, 0.82, 0.80], se=[0.81, 0.82, 0.79], cbam=[0.80, 0.82, 0.81], eca=[0.7, 0.7, 0.71]
        )
        lines = verdict(summarise(rows)).splitlines()
        assert lines[0] == "SE and CBAM: no measurable gain over the plain network."
        assert [line.split(":")[0] for line in lines[1:3]] == ["  SE", "  CBAM"]
        assert lines[3].startswith("ECA: measurably worse")

    def test_several_tests_are_owned_up_to_where_one_of_them_speaks(self):
        gain = results(none=[0.80, 0.82, 0.80], cbam=[0.82, 0.85, 0.84], se=[0.80, 0.83, 0.80])
        assert "2 variants were tested, without correction for multiple tests." in verdict(summarise(gain))

    def test_says_how_many_complete_pairs_it_used(self):
        rows = results(none=[0.80, 0.82, 0.80], cbam=[0.82, 0.85, None])
        assert ", 2 seeds" in verdict(summarise(rows))

    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            (results(cbam=[0.9]), "No verdict yet: the baseline (plain) has no finished seed."),
            (
                results(none=[0.9]),
                "No verdict yet: no variant has finished a seed that the baseline has finished too.",
            ),
            ([], "No verdict yet: the baseline (plain) has no finished seed."),
        ],
    )
    def test_says_when_it_is_too_early(self, rows, expected):
        assert verdict(summarise(rows, ["none", "cbam"])) == expected

    def test_nothing_to_compare(self):
        assert verdict(summarise(results(none=[0.9, 0.8]))).startswith("Nothing to compare")

    def test_another_baseline_is_named(self):
        assert "over SE" in verdict(summarise(results(se=[0.80, 0.82, 0.80], cbam=[0.82, 0.85, 0.84])))

    def test_every_finding_has_a_claim(self):
        summary = summarise(results(none=[0.80, 0.82], cbam=[0.82, 0.85], se=[0.1]))
        assert all(finding.claim for finding in findings(summary))


def trained(variant, seed, accuracy, loss=0.4, predicted=None):
    """A result with a confusion matrix of four classes, 50 images each."""
    right = round(50 * accuracy)
    confusion = [[right if a == b else 0 for b in range(4)] for a in range(4)]
    for number, row in enumerate(confusion):
        row[(number + 1) % 4 if predicted is None else predicted] += 50 - right
    return {
        "variant": variant, "seed": seed, "val_accuracy": accuracy, "val_loss": loss, "confusion": confusion,
        "per_class_accuracy": [accuracy] * 4,
    }  # fmt: skip


class TestBroken:
    def test_networks_at_chance_get_no_verdict(self):
        """Two networks at 25.00 % of 4 classes with a validation loss of 15,489; the page said +12 points."""
        rows = [trained("none", seed, 0.25, 15_489.0) for seed in range(3)]
        rows += [trained("cbam", seed, accuracy) for seed, accuracy in enumerate((0.36, 0.37, 0.38))]
        text = verdict(summarise(rows))
        assert text.startswith("Broken: 3 of 6 trainings failed, so there is no verdict on attention.")
        assert "plain, seeds 0, 1, 2: validation loss 15,489; a guess has 1.39" in text
        assert "(--lr)" in text
        assert "--epochs" in text
        assert "--pretrained" in text
        assert "points" not in text

    def test_a_broken_variant_is_left_out_and_the_others_are_judged(self):
        rows = [trained("none", seed, accuracy) for seed, accuracy in enumerate((0.8, 0.82, 0.8))]
        rows += [trained("se", seed, accuracy) for seed, accuracy in enumerate((0.82, 0.86, 0.84))]
        rows += [trained("cbam", seed, accuracy) for seed, accuracy in enumerate((0.82, 0.26, 0.84))]
        first, *others = findings(summarise(rows))
        assert first.broken
        assert first.claim == "Broken: 1 of 9 trainings failed, so there is no verdict on CBAM"
        assert (
            "CBAM, seed 1: 26.00 % accuracy, which on 200 images cannot be told from chance, 25.00 %"
            in first.evidence
        )
        assert others[0].claim == "SE: measurable gain over the plain network"
        assert not any("CBAM" in str(finding) for finding in others)

    def test_a_broken_control_is_not_compared_with(self):
        rows = [trained("none", seed, accuracy) for seed, accuracy in enumerate((0.8, 0.82, 0.8))]
        rows += [trained("cbam", seed, accuracy) for seed, accuracy in enumerate((0.82, 0.86, 0.84))]
        rows += [trained("control", seed, 0.25) for seed in range(3)]
        assert "CBAM: measurable gain over the plain network.\n" in verdict(summarise(rows))
