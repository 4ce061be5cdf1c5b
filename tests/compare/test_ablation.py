"""The ablations are the paper's networks, and their page says what the numbers allow."""

from __future__ import annotations

import pytest
from tests.compare.conftest import write_run

from cbam.attach import plan
from cbam.attach.variants import parse_variant, parse_variants
from cbam.compare.ablation import TABLE_NUMBERS, ablations_of, kernels, reductions, table, variants
from cbam.compare.ablation_page import page, tables_text, write_page
from cbam.compare.statistics import summarise
from cbam.errors import CBAMError
from cbam.models import build_model


def results(**scores):
    return [
        {"variant": variant.replace("_", ":"), "seed": seed, "val_accuracy": score}
        for variant, row in scores.items()
        for seed, score in enumerate(row)
    ]


@pytest.mark.parametrize("number", TABLE_NUMBERS)
def test_every_row_attaches_what_the_paper_tables_attach(number):
    model = build_model("resnet20", 10)
    for row in table(number).rows:
        variant = parse_variant(row.variant)
        if row.paper.attention == "none":
            assert variant.attention is None
            continue
        arguments = variant.attach_arguments(fine_tuning=False) | {"input_size": (3, 16, 16)}
        theirs = row.paper.attach_arguments | {"init": "paper", "input_size": (3, 16, 16)}
        ours, printed = plan(model, **arguments), plan(model, **theirs)
        assert ours.sites == printed.sites
        assert ours.attention == printed.attention, row.label


def test_tables_share_their_networks_and_each_is_trained_once():
    everything = [*map(table, TABLE_NUMBERS), reductions([4, 16]), kernels([3, 7, 9])]
    names = variants(everything)
    assert names[0] == "none"
    assert parse_variants(names) == names, "all different networks"
    assert len(names) == 12
    assert [one.title for one in ablations_of(names)] == [one.title for one in everything]


def test_a_part_of_a_table_is_no_table():
    assert ablations_of(["none", "se", "cbam:official"]) == []


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: table(4), "--table takes 1, 2 or 3"),
        (lambda: kernels([3, 4]), "--kernel takes odd sizes"),
        (lambda: kernels([]), "--kernel takes different whole numbers"),
        (lambda: reductions([4, 4]), "--reduction takes different"),
        (lambda: reductions([0]), "--reduction takes different"),
    ],
)
def test_what_is_no_ablation_is_explained(make, expected):
    with pytest.raises(CBAMError, match=expected):
        make()


def test_the_table_stands_beside_the_papers_with_differences_in_accuracy():
    found = results(
        none=[0.90, 0.912, 0.92],
        se=[0.91, 0.915, 0.93],
        channel_official_max=[0.85, 0.86, 0.871],
        channel_official=[0.91, 0.92, 0.93],
    )
    text = tables_text(summarise(found), [table(1)])
    rows = {line.split(" (`")[0]: line for line in text.splitlines() if line.startswith("| ")}
    pooled = rows["| + MaxPool"]
    assert "86.03 ± 1.05" in pooled
    assert "−5.97 [" in pooled, "minus both pools, paired"
    assert pooled.endswith("| 23.20 | −0.40 |"), "23.20 against 22.80 is 0.40 points less accuracy"
    assert "paper's choice (3 paired t tests, 3 seeds, Holm's correction at 5 %): + MaxPool (−5.97)" in text
    assert "cost columns of Table 1" in text


def test_one_seed_allows_no_claim():
    found = results(none=[0.9], se=[0.8], channel_official_max=[0.7], channel_official=[0.95])
    text = tables_text(summarise(found), [table(1)])
    assert "No claim can be made" in text
    assert "±" not in text
    assert "[no bounds]" in text


def test_the_page_of_an_unfinished_run(tmp_path):
    accuracies = dict.fromkeys(variants([table(3), kernels([3, 7])]), (0.9, 0.91))
    folder = write_run(tmp_path / "run", accuracies, seeds=3)
    text = page(folder)
    assert "**Unfinished:** 12 of 18 trainings are done" in text
    assert "## Table 3: arrangement" in text
    assert "## kernel k of the spatial gate" in text
    assert write_page(folder).read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("ablation", "labels"), [(kernels([3, 5]), ("k = 7", "k = 3")), (reductions([4]), ("r = 16", "r = 4"))]
)
def test_the_papers_choice_is_trained_even_if_it_is_not_named(ablation, labels, tmp_path):
    accuracies = dict.fromkeys(variants([ablation]), (0.9, 0.91))
    printed = tables_text(summarise(results(**accuracies)), [ablation])
    assert f"| {labels[1]} (`" in printed
    assert f"minus *{labels[0]}*" in printed
    assert f"minus *{labels[0]}*" in page(write_run(tmp_path / "run", accuracies, seeds=2))


def test_a_comparison_is_no_ablation(whole_run):
    with pytest.raises(CBAMError, match="not an ablation"):
        page(whole_run)
