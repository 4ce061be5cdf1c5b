"""Labels from a table, from training to report: several an image, unequal classes; killed, it ends the same."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from cbam import save_pretrained
from cbam.cli.main import main
from cbam.models import build_model
from tests.data.pictures_on_disk import photo_folder
from tests.legacy import tiny  # makes timm/legacy_tiny known
from tests.page.parsed import Page

assert tiny
SMALL = ["--model", "timm/legacy_tiny", "--reduction-ratio", "4", "--image-size", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = photo_folder(tmp_path_factory.mktemp("photos") / "photos", 12)
    paths = sorted(root.glob("*/*.jpg"))
    several = [
        f"{path.relative_to(root)},{path.parent.name}{';c' * path.parent.name.startswith('c')}"
        for path in paths
    ]
    (root.parent / "tags.csv").write_text("\n".join(["image,tags", *several]) + "\n")
    uneven = [path for path in paths if path.parent.name != "cup" or path.stem < "004"]
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in uneven]
    (root.parent / "kinds.csv").write_text("\n".join(["image,kind", *rows]) + "\n")
    torch.manual_seed(0)
    torch.save(build_model("timm/legacy_tiny", 4).state_dict(), root.parent / "weights.pth")
    return root


def options(photos, table, *more):
    recipe = ["--epochs", "2", "--batch-size", "8", "--augment", "trivial"]
    return ["--data", str(photos), "--labels", str(photos.parent / table), *SMALL, *recipe, *more]


def test_several_labels_are_trained_and_evaluated(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        main(["train", *options(photos, "tags.csv", "--class-weights", "balanced"), "--output", str(run)])
        == 0
    )
    printed = capsys.readouterr()
    assert "files from column 'image', labels from 'tags': multilabel" in printed.err
    assert "TrivialAugmentWide; validation images: short side to 16, the 16 x 16 centre" in printed.err
    assert "mean average precision" in printed.out
    result = json.loads((run / "result.json").read_text())
    table = ["--data", str(photos), "--labels", str(photos.parent / "tags.csv"), "--device", "cpu"]
    output = tmp_path / "scores"
    assert main(["evaluate", str(run / "final"), *table, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    scores = json.loads((output / "scores.json").read_text())
    assert scores["mean_average_precision"] == pytest.approx(result["val_map"])
    assert scores["macro_f1"] == pytest.approx(result["val_f1"])
    assert scores["micro_f1"] == pytest.approx(result["val_micro_f1"])
    assert [row["label"] for row in scores["labels"]] == ["c", "cat", "cup", "rocket"]
    assert [row["recall"] for row in scores["labels"]] == pytest.approx(result["per_class_recall"])
    assert f"mean average precision {result['val_map']:.2%}" in printed
    assert f"micro F1 {result['val_micro_f1']:.2%}" in printed
    counts = result["label_images"]
    assert f"{result['images']} images: c {counts[0]}, cat {counts[1]}, cup {counts[2]}, rocket" in printed
    assert (output / "classes.csv").read_text().startswith("label,images,predicted,average_precision,")
    assert (
        (output / "images.csv").read_text().startswith("image,labels,predicted,p(c),p(cat),p(cup),p(rocket)")
    )
    page = Page((output / "evaluation.html").read_text())
    assert f"{100 * result['val_map']:.2f} % mean average precision" in page.words
    assert page.row("cat")[1] == str(result["label_images"][1])
    own = ["--data", str(photos), "--device", "cpu"]  # the table is the run's
    assert main(["evaluate", str(run), *own, "--output", str(tmp_path / "page.html")]) == 0
    assert (
        f"the labels are those of the run: --labels {photos.parent / 'tags.csv'}" in capsys.readouterr().out
    )
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.fixture(scope="module")
def network(photos):
    """A network for three labels, saved, that finds in every picture what its biases say."""
    torch.manual_seed(0)
    model = build_model("resnet20", 3)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([2.0, -2.0, 1.0]))
    said = {"class_names": ["c", "cat", "rocket"], "input_size": (3, 16, 16), "task": "multilabel"}
    return save_pretrained(model, photos.parent / "network", "resnet20", **said)


def test_a_table_may_lack_a_label(photos, network, tmp_path, capsys):
    rows = ["image,tags", "cat/000.jpg,c", "cat/001.jpg,c;rocket", "cup/000.jpg,", "cup/001.jpg,rocket"]
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    words = ["evaluate", str(network), "--data", str(photos), "--labels", str(tmp_path / "tags.csv")]
    assert main([*words, "--device", "cpu", "--output", str(tmp_path / "scores.json")]) == 0
    assert "of the network's 3 labels 2 have images here" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [(row["label"], row["images"], row["predicted"]) for row in scores["labels"]] == [
        ("c", 2, 4),
        ("cat", 0, 0),
        ("rocket", 2, 4),
    ]


@pytest.mark.parametrize(
    ("table", "task", "message"),
    [
        (None, "multilabel", "several labels an image, and here each has one class. Type: --labels TABLE"),
        ("tags.csv", "multiclass", "one class an image, and --labels gives several. Leave it out"),
    ],
)
def test_images_of_the_other_task_are_refused(photos, tmp_path, capsys, table, task, message):
    names = ["c", "cat", "cup", "rocket"]
    said = {"class_names": names, "input_size": (3, 16, 16), "task": task}
    folder = save_pretrained(build_model("resnet20", 4), tmp_path / "network", "resnet20", **said)
    labels = [] if table is None else ["--labels", str(photos.parent / table)]
    assert main(["evaluate", str(folder), "--data", str(photos), *labels, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_several_labels_are_compared_by_average_precision(photos, tmp_path, capsys):
    run = tmp_path / "run"
    grid = ["--attention", "none,cbam", "--seeds", "1", "--output", str(run)]
    assert main(["compare", *options(photos, "tags.csv"), *grid]) == 0
    assert "validation mean average precision after 2 epochs" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    result = json.loads((run / "cells" / "cbam-seed0" / "result.json").read_text())
    assert f"{100 * result['val_map']:.2f}" in page
    assert "Mean average precision" in page
    assert "validation accuracy" not in page.lower()
    for number in ("val_f1", "val_micro_f1", "val_exact"):
        assert f'<td data-sort="{result[number]}">{100 * result[number]:.2f}</td>' in page, number
    found = Page(page)
    counts = [str(count) for count in result["label_images"]]
    assert [found.row(name, 1)[1] for name in ("c", "cat", "cup", "rocket")] == counts
    assert "No pictures yet" not in page
    assert "Not drawn: an image with several labels" in page
    assert "Grad-CAM shows" not in page
    before = (run / "cells" / "cbam-seed0" / "model.safetensors").stat().st_mtime_ns
    assert main(["compare", *options(photos, "tags.csv"), *grid]) == 0
    assert (run / "cells" / "cbam-seed0" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("option", "value"), [("--mixup", "0.2"), ("--cutmix", "1"), ("--label-smoothing", "0.1")]
)
def test_what_is_for_one_class_an_image_is_refused(photos, tmp_path, capsys, option, value):
    words = [*options(photos, "tags.csv", option, value), "--output", str(tmp_path / "run")]
    assert main(["train", *words]) == 2
    assert f"{option} {float(value)} is for images of one class each" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "more"),
    [
        ("tags.csv", ["--class-weights", "balanced", "--augment", "augmix"]),
        ("kinds.csv", ["--sampler", "balanced", "--patience", "2", "--augment", "randaugment"]),
        (
            "tags.csv",
            [
                *("--weights", "{root}/weights.pth", "--freeze-backbone", "2", "--patience", "2"),
                *("--sampler", "balanced", "--augment", "randaugment"),
            ],
        ),
    ],
)
def test_killed_anywhere_it_ends_with_the_same_bits(photos, server, tmp_path, table, more):
    more = [word.format(root=photos.parent) for word in more]
    words = ["train", "--import", "tests.legacy.tiny", *options(photos, table, *more), "--save-every", "1"]
    words += ["--epochs", "4"]
    straight = server.run(*words, "--output", tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    process = server.start(*words, "--output", tmp_path / "run")
    until = time.monotonic() + 300
    while not list((tmp_path / "run" / "checkpoints").glob("step-*[3-9]")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.005)
    process.kill()
    process.communicate()
    done = server.run(*words, "--output", tmp_path / "run", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "resumes after" in done.stderr
    for network in ("final", "best"):
        ours, theirs = (
            load_file(tmp_path / run / network / "model.safetensors") for run in ("run", "straight")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), network
