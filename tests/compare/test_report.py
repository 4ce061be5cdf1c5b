from __future__ import annotations

import json
import re
import shlex
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from cbam.compare.report import write_report
from cbam.errors import CBAMError
from cbam.page.drawing import LOOKS, OTHER_LOOK

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: its elements with attributes, the text of each element, and whether the tags balance."""

    def __init__(self, source: str):
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag == "small":
            self.handle_data(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
            if "tr" in self.open and self.rows and self.rows[-1]:
                self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, first, number=0):
        found = [
            [" ".join(cell.split()) for cell in row] for row in self.rows if row and row[0].strip() == first
        ]
        return found[number]

    @property
    def words(self):
        return " ".join(self.text.split())


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
        assert page.row("parameters") == [
            "parameters",
            "272,474",
            "275,199 ×1.010",
            "277,923 ×1.020",
            "280,648 ×1.030",
        ]
        assert page.row("latency, batch 1")[1] == "4.00 ms 3.90–4.20"

    def test_the_figures_are_there_and_described(self, page):
        described = [svg["aria-label"] for svg in page.all("svg")]
        assert len(described) == 2 + 2 + 3
        assert "plain 90.10, 90.40, 89.90" in described[0]
        assert "CBAM minus plain +0.69 (+0.60 to +0.78)" in described[1]
        assert "Mean after the last epoch: plain 90.13" in described[2]

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
        assert page.row("CBAM")[2:4] == ["95.00 one seed, no spread", "+15.00 one pair, no interval"]

    def test_no_gain_is_said_plainly(self, make_run):
        page = report(make_run({"none": (0.80, 0.82, 0.80), "cbam": (0.81, 0.83, 0.79)}))
        assert "CBAM: no measurable gain over the plain network" in page.words
        assert "There is no control with as many parameters" in page.words

    def test_equal_differences_get_no_interval(self, make_run):
        page = report(make_run({"none": (0.8, 0.6, 0.25), "cbam": (0.9, 0.7, 0.35)}))
        assert page.row("CBAM")[3] == "+10.00 the same in all 3 seeds no interval"

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

    def test_an_interval_wider_than_accuracies_can_differ(self, make_run):
        page = report(make_run({"none": (0.5, 0.9), "cbam": (0.6, 0.7), "se": (0.5, 0.8)}, seeds=2))
        assert "+104" not in page.text
        assert "an interval without bounds" in page.row("CBAM")[-1]
        assert "95 % interval without bounds" in page.text
        assert "−68.53 to +58.53" in page.row("SE")[-1], "one that has bounds keeps them"

    def test_an_interval_is_cut_where_accuracies_end(self, make_run):
        page = report(make_run({"none": (0.9, 0.9), "cbam": (0.5, 0.64)}, seeds=2))
        assert "−100.00 to +55.94" in page.row("CBAM")[-1]

    def test_composed_variants_are_told_apart(self, make_run):
        names = ("none", "cbam:official:k3", "cbam:official:k5")
        page = report(make_run(dict.fromkeys(names, (0.9, 0.91, 0.93))))
        assert "CBAM (official, k = 3)" in page.text
        assert "CBAM (official, k = 5) − plain" in page.source, (
            "whole in the figure, where they differ at the end"
        )

    def test_a_single_epoch_stands_at_one(self, make_run):
        page = report(make_run(epochs=1))
        curves = page.source[page.source.index('id="curves"') : page.source.index('id="classes"')]
        ticks = re.findall(r">(-?[\d.]+)</text>", curves[: curves.index("epoch</text>")])
        assert ticks[0] == "1"
        assert "1.2" not in ticks

    def test_a_single_epoch(self, make_run):
        assert len(report(make_run(epochs=1)).all("svg")) == 7

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
        assert "over later_gate" in page.words

    def test_long_and_foreign_class_names(self, make_run):
        names = ("ein sehr langer Klassenname " * 8, "猫と犬", "", "tab\tand\nnewline")
        page = report(make_run(classes=names))
        assert "猫と犬" in page.text
        assert not page.unbalanced

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path):
        with pytest.raises(CBAMError, match="holds no run"):
            write_report(tmp_path)


class TestPage:
    def test_is_well_formed(self, page):
        assert page.unbalanced == []
        assert page.open == []
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def test_needs_no_network(self, page):
        """No element may load anything: every address in the page is a data URI or a place in the page itself."""
        for tag, attributes in page.elements:
            assert tag not in (
                "script",
                "link",
                "iframe",
                "object",
                "embed",
                "base",
                "form",
                "video",
                "audio",
            )
            for name, value in attributes.items():
                assert not name.startswith("on"), f"{tag} {name}"
                if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                    assert (value or "").startswith(("data:image/", "#")), f"{tag} {name}={value[:60]}"
        assert not re.search(r"@import|https?:|//[a-z]+\.", re.sub(r"base64,[^\"]*", "", page.source))
        assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
        policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

    def test_references_inside_the_page_exist(self, page):
        ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page.source))
        assert used <= ids

    def test_everything_from_outside_is_escaped(self, page):
        assert "<script" not in page.source
        assert "&lt;script&gt;alert(&#39;class&#39;)&lt;/script&gt;" in page.source
        assert "<b>digits" not in page.source
        assert "<fast>" not in page.source
        assert re.search(r"<text[^>]*>a\$b\$ \\frac", page.source)  # a name is no formula
        assert "<script>alert('class')</script>" in page.text

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
        assert not page.all("script")
        assert not [image for image in page.all("img") if "onerror" in image]
        assert evil in page.text
        assert page.unbalanced == []

    def test_is_accessible(self, page):
        assert all(image["alt"].strip() for image in page.all("img"))
        assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
        assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
        assert dict(page.elements)["html"]["lang"] == "en"
        regions = [box for box in page.all("div") if box.get("class") == "scroll"]
        assert all(box["tabindex"] == "0" and box["aria-label"] for box in regions)  # scrollable by keyboard
        assert len(regions) == page.source.count("<table")

    def test_figures_follow_the_colour_scheme(self, page):
        figures = "".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
        assert "var(--ink)" in figures
        assert "var(--v-cbam)" in figures
        assert not re.findall(r"#[0-9a-f]{6}\b", figures)
        assert "prefers-color-scheme: dark" in page.source

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


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_formula():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(("scheme", "position"), [("light", 0), ("dark", 1)])
def test_text_and_labels_have_contrast(page, scheme, position):
    block = re.findall(r":root \{(.*?)\}", page.source, flags=re.DOTALL)[position]
    colours = dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6})", block))
    assert len(colours) == 6 + len(LOOKS) + 1
    assert colours["--v-cbam"] == LOOKS["cbam"][position]
    assert colours["--v-other"] == OTHER_LOOK[position]
    for name, colour in colours.items():
        if name not in ("--page", "--box", "--grid"):
            assert contrast(colour, colours["--page"]) >= 4.5, (scheme, name)
    assert contrast(colours["--muted"], colours["--box"]) >= 4.5
    assert contrast(colours["--ink"], colours["--box"]) >= 7
