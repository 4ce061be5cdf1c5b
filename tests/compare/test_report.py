from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest
from PIL import Image
from tests.page.parsed import Page

from cbam.compare.report import write_report
from cbam.errors import CBAMError
from cbam.page.drawing import LOOKS


def arrows(page) -> int:
    """The arrows in the figure of the differences; its other patches are the background and the axis."""
    figure = page.source[page.source.index('aria-label="Paired differences') :]
    return figure[: figure.index("</svg>")].count('id="differences-patch_') - 2


def report(folder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(whole_run) -> Page:
    return report(whole_run)


class TestContent:
    def test_the_order_of_the_parts(self, page):
        titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page.source)
        assert titles == [
            "Accuracy",
            "Cost",
            "Learning curves",
            "Change per class",
            "Mistakes",
            "Where the networks look",
            "How to reproduce",
            "What this does not show",
        ]
        assert page.source.index('class="verdict"') < page.source.index('id="accuracy"')

    def test_title_and_facts(self, page):
        assert "Does attention help resnet20 on fashion-mnist?" in page.text
        for fact in ("60,000 training, 10,000 validation", "1 × 28 × 28", "3 (0, 1, 2)", "2026-11-22 09:10"):
            assert fact in page.words

    def test_the_verdict_is_that_of_the_statistics(self, page):
        assert (
            "CBAM: measurable gain over the plain network, no measurable gain over the control" in page.words
        )
        assert "SE: no measurable gain over the plain network or the control" in page.words

    def test_the_accuracy_table_holds_the_numbers(self, page):
        # Means of the fixture; sample standard deviations worked by hand: (10, 40, -10) / 10^4 -> 0.2517 points.
        assert page.row("plain") == ["plain", "3", "90.13 ± 0.25", "–", "–"]
        # 70, 65, 72 / 10^4: mean 69, sd 3.606; 4.302653 * 3.606 / sqrt(3) = 8.957.
        assert page.row("CBAM")[3].startswith("+0.69 +0.60 to +0.78 p < 0.001")
        # 40, 55, 16 / 10^4: mean 37, sd 19.67; half width 48.87.
        assert page.row("CBAM")[4].startswith("+0.37 −0.12 to +0.86 p = 0.08")
        assert page.row("control")[4] == "–"

    def test_the_cost_table(self, page):
        headings = page.row("network", 1)
        column = headings.index("parameters")
        counts = [page.row(name, 1)[column] for name in ("plain", "SE", "CBAM", "control")]
        assert counts == ["272,474", "275,199 ×1.010", "277,923 ×1.020", "280,648 ×1.030"]
        assert page.row("plain", 1)[headings.index("latency, batch 1")] == "4.00 ms 3.90–4.20"

    def test_the_figures_are_there_and_described(self, page):
        described = [svg["aria-label"] for svg in page.all("svg")]
        assert len(described) == 2 + 2 + 3
        assert "plain 90.10, 90.40, 89.90" in described[0]
        assert "CBAM minus plain +0.69 (+0.60 to +0.78)" in described[1]
        assert "Mean after the last epoch: plain 90.13" in described[2]

    def test_the_curves_are_a_table_too(self, page):
        assert page.row("6") == ["6", "90.13", "90.25", "90.82", "90.45"]
        assert page.row("3", 1) == ["3", "1.3", "1.3", "1.3", "1.3"], "the loss"

    def test_pictures_show_probability_mistakes_and_flat_maps(self, page):
        assert "the first image of each class" in page.words
        assert page.words.count("87.5 %") == 4 * 4
        assert "✗ says T-shirt/top" in page.words
        assert page.words.count("flat map: nothing stands out") == 4
        originals = [image for image in page.all("img") if image["alt"].startswith("Validation image")]
        assert all(image["class"] == "pixels" for image in originals)
        assert len(originals) == 4
        assert len(page.all("img")) == 4 + 16

    def test_how_to_reproduce(self, page):
        command = "cbam compare \\\n  --data fashion-mnist \\\n  --output 'runs/my run'"
        assert command in page.text
        typed = shlex.split(command.replace("\\\n", ""))
        assert typed == ["cbam", "compare", "--data", "fashion-mnist", "--output", "runs/my run"]
        for detail in ("torch 2.15.0", "a <fast> one", "attention: none,se,cbam,control", "Python 3.11.2"):
            assert detail in page.words

    def test_limits_name_the_sampling_error(self, page):
        # 1.96 sqrt(0.9013 * 0.0987 / 10000) = 0.00584
        assert "same 10,000 images" in page.words
        assert "±0.58 points" in page.words

    def test_notices_of_the_data_are_shown(self, page):
        assert "About the data: Fell back to <b>digits</b>." in page.words

    def test_the_moving_average_has_its_column(self, make_run):
        folder = make_run()
        for seed in range(3):
            file = folder / "cells" / f"cbam-seed{seed}" / "result.json"
            file.write_text(
                json.dumps({**json.loads(file.read_text()), "val_accuracy_ema": 0.91 + 0.01 * seed})
            )
        assert report(folder).row("CBAM")[3] == "92.00"


class TestCircumstances:
    def test_one_seed_makes_no_claim(self, make_run):
        page = report(make_run({"none": (0.80,), "cbam": (0.95,), "control": (0.81,)}, seeds=1))
        assert "No claim can be made from one seed" in page.words
        assert "measurable" not in page.words
        assert page.row("CBAM")[2:4] == ["95.00 one seed, no spread", "+15.00 too few seeds for an interval"]

    def test_no_gain_is_said_plainly(self, make_run):
        page = report(make_run({"none": (0.80, 0.82, 0.80), "cbam": (0.81, 0.83, 0.79)}))
        assert "CBAM: no measurable gain over the plain network" in page.words
        assert "There is no control with as many parameters" in page.words

    def test_equal_differences_get_no_interval(self, make_run):
        page = report(make_run({"none": (0.8, 0.6, 0.25), "cbam": (0.9, 0.7, 0.35)}))
        assert page.row("CBAM")[3] == "+10.00 the same in all 3 seeds, no interval"

    def test_an_unfinished_run_says_so(self, make_run):
        page = report(make_run({"none": (0.80, 0.82, 0.80), "cbam": (0.82, 0.85)}))
        assert "Unfinished run: 5 of 6 trainings are done. Missing: CBAM seed 2." in page.words
        assert page.row("CBAM")[1] == "2"
        assert "2 seeds" in page.words

    def test_unpaired_seeds_are_counted(self, make_run):
        page = report(make_run({"none": (0.80, 0.82), "cbam": (0.82, 0.85, 0.84)}))
        assert page.row("CBAM")[1] == "3"
        assert page.row("CBAM")[3].endswith("2 complete pairs")

    def test_a_run_that_has_only_begun(self, tmp_path):
        (tmp_path / "config.yaml").write_text(
            "data: digits\nmodel: resnet20\nattention: none,cbam\nseeds: 2\n"
        )
        page = report(tmp_path)
        assert "0 of 4 trainings are done" in page.words
        assert "No verdict yet" in page.words
        for text in ("Not measured yet.", "No epoch has finished yet.", "No pictures yet"):
            assert text in page.words

    def test_curves_before_the_first_result(self, make_run):
        folder = make_run()
        shutil.rmtree(folder / "cells")
        page = report(folder)
        assert len(page.all("svg")) == 2
        assert "No verdict yet" in page.words

    def test_two_seeds_have_arrows_for_an_interval(self, make_run):
        page = report(make_run({"none": (0.5, 0.9), "cbam": (0.6, 0.7), "se": (0.5, 0.8)}, seeds=2))
        assert page.row("CBAM")[-1] == "−5.00 too few seeds for an interval"
        assert "No claim can be made from two seeds" in page.words
        described = page.all("svg")[1]["aria-label"]
        assert "CBAM minus plain −5.00 (too few seeds for an interval)" in described
        assert arrows(page) == 4, "to both edges, for both"

    def test_an_interval_without_a_bound_has_one_arrow(self, make_run):
        page = report(make_run({"none": (0.9, 0.9, 0.9), "cbam": (0.1, 0.8, 0.1)}, seeds=3))
        assert page.row("CBAM")[-1].startswith("−56.67 at most +43.73 p = 0.14")
        assert "100.00" not in page.row("CBAM")[-1]
        assert arrows(page) == 1
        assert arrows(report(make_run())) == 0

    def test_composed_variants_are_told_apart(self, make_run):
        names = ("none", "cbam:official:k3", "cbam:official:k5")
        page = report(make_run(dict.fromkeys(names, (0.9, 0.91, 0.93))))
        assert "CBAM (official, k = 3)" in page.text
        assert "CBAM (official, k = 5) − plain" in page.source, (
            "whole in the figure, where they differ at the end"
        )

    def test_one_epoch_has_no_curves(self, make_run):
        page = report(make_run(epochs=1))
        assert "One epoch has no curves." in page.words
        assert len(page.all("svg")) == 2 + 3

    def test_what_is_broken_stands_first_and_chance_is_drawn(self, make_run):
        folder = make_run({"none": (0.25, 0.26, 0.25), "cbam": (0.36, 0.37, 0.38)})
        for file in folder.glob("cells/*/result.json"):
            result = json.loads(file.read_text())
            right = round(50 * result["val_accuracy"])
            result["confusion"] = [
                [right if a == b else (50 - right) * (b == (a + 1) % 4) for b in range(4)] for a in range(4)
            ]
            if result["variant"] == "none":
                result["val_loss"] = 15_489
            file.write_text(json.dumps(result))
        page = report(folder)
        box = page.source.index('class="broken"')
        assert page.source.index('class="verdict"') < box < page.source.index('id="accuracy"')
        assert "there is no verdict on attention" in page.words
        assert "measurabl" not in page.words
        seeds, accuracy = page.all("svg")[0]["aria-label"], page.all("svg")[2]["aria-label"]
        assert "Chance is 25.00." in seeds
        assert "Chance is 25.00." in accuracy
        drawn = page.source[page.source.index(seeds) :]
        assert "stroke-dasharray" in drawn[: drawn.index("</svg>")]
        assert page.row("Pullover & co")[-1] == "50"
        assert "Pullover &amp; co (50)" in page.source, "the number of images stands in the figure too"

    def test_too_few_steps_are_remarked(self, make_run):
        folder = make_run()
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "batch_size: 10000\n")
        assert "Only 36 steps of 10000 images" in report(folder).words

    def test_grad_cam_of_coarse_maps_is_left_out(self, make_run):
        folder = make_run()
        file = folder / "pictures" / "pictures.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "map_size": [3, 4]}))
        page = report(folder)
        assert "Left out: a map of 3 × 4 values at layer3 is too coarse" in page.words
        assert not page.all("img")

    def test_values_that_are_not_finite_do_not_stop_it(self, make_run):
        folder = make_run()
        text = (
            (folder / "metrics.jsonl")
            .read_text()
            .replace('"train_loss": 1.96', '"train_loss": NaN, "was": 1.96')
        )
        (folder / "metrics.jsonl").write_text(text)
        file = folder / "cells" / "cbam-seed0" / "result.json"
        file.write_text(file.read_text().replace('"val_accuracy": 0.908', '"val_accuracy": NaN'))
        assert "NaN" in (folder / "metrics.jsonl").read_text()
        assert report(folder).row("CBAM")[1] == "2"

    def test_missing_picture_files_are_told(self, make_run):
        folder = make_run()
        (folder / "pictures" / "image-0-cbam.png").unlink()
        assert "picture missing" in report(folder).words

    def test_pictures_stay_inside_the_run_folder(self, make_run):
        folder = make_run()
        shutil.copy(folder / "pictures" / "image-1.png", folder.parent / "secret.png")
        manifest = json.loads((folder / "pictures" / "pictures.json").read_text())
        manifest["images"][0]["original"] = "../../secret.png"
        (folder / "pictures" / "pictures.json").write_text(json.dumps(manifest))
        assert len(report(folder).all("img")) == 19

    def test_notes_on_broken_models(self, make_run):
        folder = make_run()
        manifest = json.loads((folder / "pictures" / "pictures.json").read_text())
        manifest["notes"] = {"se": "the scores: values that are not finite"}
        (folder / "pictures" / "pictures.json").write_text(json.dumps(manifest))
        assert "SE: no pictures. the scores" in report(folder).words

    def test_unknown_variants_are_drawn_too(self, make_run):
        page = report(make_run({"later_gate": (0.8, 0.81), "cbam:official": (0.82, 0.84)}, seeds=2))
        assert "CBAM (official): " in page.words
        assert "with later_gate" in page.words

    def test_long_and_foreign_class_names(self, make_run):
        names = ("ein sehr langer Klassenname " * 8, "猫と犬", "", "tab\tand\nnewline")
        page = report(make_run(classes=names))
        assert "猫と犬" in page.text
        assert not page.unbalanced

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path):
        with pytest.raises(CBAMError, match="holds no run"):
            write_report(tmp_path)


class TestPage:
    @pytest.mark.parametrize(
        "evil", ['"><img src=x onerror=alert(1)>', "</style><script>1</script>", "{{ 7 * 7 }}", "--><b>"]
    )
    def test_hostile_strings_everywhere(self, make_run, evil):
        folder = make_run(classes=(evil, "b"))
        for name in ("env.json", "data.json", "pictures/pictures.json"):
            content = json.loads((folder / name).read_text())
            for key in ("python", "git", "name", "source", "rule", "layer", "started"):
                if key in content:
                    content[key] = evil
            (folder / name).write_text(json.dumps(content))
        (folder / "config.yaml").write_text(
            json.dumps({"attention": f"none,cbam,{evil}", "model": evil, "seeds": 3})
        )
        page = report(folder)
        assert not page.all("b")
        assert page.all("script") == [{}]
        assert not [image for image in page.all("img") if "onerror" in image]
        assert evil in page.text
        assert page.unbalanced == []

    def test_is_the_same_for_the_same_run(self, page, whole_run):
        assert report(whole_run).source == page.source


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("data.json", {"classes": 5}),
        ("data.json", {"input_size": 28}),
        ("data.json", {"val_images": "many"}),
        ("costs.json", {"none": [1]}),
        ("pictures/pictures.json", {"images": [5]}),
        ("pictures/pictures.json", {"images": [{"variants": {"none": "x"}}]}),
        ("env.json", {"command": 5}),
        ("cells/none-seed0/result.json", {"val_accuracy": "0.9"}),
        ("cells/none-seed0/result.json", {"val_accuracy": 10**400}),
        ("cells/none-seed0/result.json", {"per_class_accuracy": 5}),
    ],
)
def test_values_of_another_type_are_told_and_no_page_is_written(make_run, name, change):
    folder = make_run()
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CBAMError, match="a file holds something else than was written by the run"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_photographs_stay_below_three_megabytes(make_run):
    """The largest page that the command line can ask for: all eight variants, photographs of 224 pixels."""
    datasets = pytest.importorskip("sklearn.datasets")
    photo = Image.fromarray(datasets.load_sample_image("china.jpg"))
    folder = make_run(dict.fromkeys(LOOKS, (0.9, 0.91, 0.92)), classes=[f"class {n}" for n in range(8)])
    for number, file in enumerate(sorted(folder.glob("pictures/*.png"))):
        photo.crop((5 * number % 400, number, 5 * number % 400 + 224, number + 224)).save(file)
    page = write_report(folder)
    assert page.read_text().count("data:image/webp") == 8 + 8 * len(LOOKS)
    assert page.stat().st_size < 3_000_000
