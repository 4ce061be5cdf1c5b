"""`cbam.load_run` and `cbam predict`, as a new user meets them."""

import csv
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cbam
from cbam.cli.main import main
from cbam.data import load_data
from cbam.models import build_model
from cbam.predict import Prediction, load_run
from cbam.predict.drawing import draw
from cbam.predict.files import Predicted, table
from tests.legacy import tiny  # noqa: F401 - makes `timm/legacy_tiny` known

LEGACY = Path(__file__).parent.parent / "legacy"
CLASSES = ["cat", "dog", "cow"]


def picture(seed=0, size=(50, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def bomb(path):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two networks in folders, one of which may say several classes, and pictures of every kind."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    network = build_model("timm/legacy_tiny", 3)
    said = {"class_names": CLASSES, "input_size": (3, 24, 24), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    cbam.save_pretrained(network, folder / "net", "timm/legacy_tiny", **said)
    cbam.save_pretrained(network, folder / "several", "timm/legacy_tiny", **said, task="multilabel")
    (folder / "photos" / "inside").mkdir(parents=True)
    picture(0).save(folder / "photos" / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(1, (60, 30)).save(folder / "photos" / "inside" / "turned.jpg", exif=turned, quality=95)
    picture(2).convert("CMYK").save(folder / "photos" / "inside" / "cmyk.jpg")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(
        folder / "photos" / "sixteen.png"
    )
    (folder / "bad").mkdir()
    picture(3).save(folder / "bad" / "good.png")
    (folder / "bad" / "text.png").write_text("no picture")
    bomb(folder / "bad" / "bomb.png")
    return folder


class TestPredictor:
    def test_every_kind_of_picture_gives_the_same(self, place):
        predictor = load_run(place / "net", device="cpu")
        file = place / "photos" / "a.png"
        pixels = np.asarray(Image.open(file))
        expected = predictor(file)
        assert sorted(name for name, _ in expected.top()) == sorted(CLASSES)
        assert float(expected.probabilities.sum()) == pytest.approx(1)
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        same = [
            str(file),
            Image.open(file),
            pixels,
            pixels / 255,
            pixels.astype(np.uint16) * 257,
            tensor,
            tensor / 255,
        ]
        for one in same:
            assert torch.equal(predictor(one).probabilities, expected.probabilities), type(one)
        for batch in (same, np.stack([pixels] * 3), tensor.expand(3, -1, -1, -1)):
            found = predictor(batch)
            assert len(found) == len(batch)
            for one in found:
                torch.testing.assert_close(one.probabilities, expected.probabilities)
        grey = predictor(pixels[..., 0])
        assert torch.equal(
            grey.probabilities, predictor(torch.from_numpy(pixels[..., 0].copy())[None]).probabilities
        )
        assert predictor([]) == []
        assert not predictor.model.training

    def test_it_says_what_the_validation_saw(self):
        """The same preprocessing as in training: digits are neither resized nor cropped."""
        data = load_data("digits")
        predictor = load_run(LEGACY / "train", device="cpu")
        batch = torch.stack([data.val[0, index][0] for index in range(20)])
        with torch.no_grad():
            expected = predictor.model(batch).softmax(1)
        found = predictor([data.val.picture(index) for index in range(20)])
        torch.testing.assert_close(torch.stack([one.probabilities for one in found]), expected)

    def test_several_classes_may_be_true(self, place):
        file = place / "photos" / "a.png"
        one, several = (load_run(place / name, device="cpu")(file) for name in ("net", "several"))
        assert one.labels == (one.label,)
        scores = load_run(place / "net", device="cpu")
        with torch.no_grad():
            logits = scores.model(scores.prepare(file)[None])[0]
        torch.testing.assert_close(several.probabilities, logits.sigmoid())
        assert set(several.labels) == {
            name for name, value in zip(CLASSES, logits, strict=True) if value >= 0
        }

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.full((4, 4), 200.0), "between 0 and 1"),
            (np.zeros((4, 4, 7)), r"given \(4, 4, 7\)"),
            ("absent.jpg", "missing file"),
            ([3], "given int"),
        ],
    )
    def test_what_is_no_picture(self, place, image, message):
        with pytest.raises(cbam.CBAMError, match=message):
            load_run(place / "net", device="cpu")(image)

    def test_it_is_part_of_the_package(self, place):
        assert cbam.load_run is load_run
        assert "24 × 24" in repr(cbam.load_run(place / "net"))
        assert load_run(LEGACY / "compare", variant="cbam").network.title == "cbam-seed0"


def run(*arguments):
    return main(["predict", *map(str, arguments)])


class TestCommand:
    def test_a_folder_as_table_csv_json_and_pictures(self, place, tmp_path, capsys):
        out = (
            "--output",
            tmp_path / "p.csv",
            "--pictures",
            tmp_path / "drawn",
            "--device",
            "cpu",
            "--batch-size",
            3,
        )
        assert run(place / "net", place / "photos", *out) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["image", "says", "%", "then"]
        assert len([line for line in lines if str(place / "photos") in line]) == 4
        rows = list(csv.DictReader((tmp_path / "p.csv").open()))
        predictor = load_run(place / "net", device="cpu")
        assert len(rows) == 4
        for row in rows:
            said = predictor(row["file"])
            assert (row["class"], row["error"]) == (said.label, "")
            assert [float(row[f"p({name})"]) for name in CLASSES] == pytest.approx(
                said.probabilities.tolist(), abs=1e-5
            )
        assert len(list((tmp_path / "drawn").rglob("*.png"))) == 4
        assert (
            run(place / "several", place / "photos" / "a.png", "--output", tmp_path / "p.json", "--top-k", 2)
            == 0
        )
        content = json.loads((tmp_path / "p.json").read_text())
        assert (content["task"], content["classes"]) == ("multilabel", CLASSES)
        (image,) = content["images"]
        assert len(image["top"]) == 2
        shares = dict(zip(CLASSES, image["probabilities"], strict=True))
        assert set(image["classes"]) == {name for name, value in shares.items() if value >= 0.5}
        assert image["top"][0]["probability"] == max(shares.values())

    def test_several_labels_are_shown_with_a_probability_each(self, tmp_path, capsys):
        """Sigmoids, which do not add up to one: of a picture without any label that is said."""
        torch.manual_seed(0)
        network = build_model("resnet20", 3).eval()
        with torch.no_grad():
            network.fc.weight.zero_()
        picture(0).save(tmp_path / "a.png")
        said = {"class_names": CLASSES, "input_size": (3, 24, 24), "task": "multilabel"}
        for scores, shown in (
            ((2.0, -2.0, 1.0), [f"{CLASSES[0]} 88.1, {CLASSES[2]} 73.1", f"{CLASSES[1]} 11.9"]),
            ((-2.0, -3.0, -4.0), ["none", f"{CLASSES[0]} 11.9, {CLASSES[1]} 4.7, {CLASSES[2]} 1.8"]),
        ):
            with torch.no_grad():
                network.fc.bias.copy_(torch.tensor(scores))
            folder = cbam.save_pretrained(network, tmp_path / "net", "resnet20", **said)
            assert run(folder, tmp_path / "a.png", "--output", tmp_path / "p.csv", "--device", "cpu") == 0
            heading, line = capsys.readouterr().out.splitlines()[:2]
            assert heading.split("  ")[0] == "image"
            assert [part.strip() for part in line.split("  ") if part.strip()][1:] == shown
            (row,) = csv.DictReader((tmp_path / "p.csv").open())
            true = [(name, score) for name, score in zip(CLASSES, scores, strict=True) if score >= 0]
            assert row["class"] == ";".join(name for name, _ in true)
            assert row["probability"] == ";".join(f"{torch.tensor(score).sigmoid():.6f}" for _, score in true)
            shutil.rmtree(folder)

    def test_a_broken_picture_is_named_and_the_others_go_on(self, place, tmp_path, capsys):
        assert run(place / "net", place / "bad", "--output", tmp_path / "p.json") == 1
        said = capsys.readouterr()
        assert "good.png" in said.out
        assert "text.png: not a readable image" in said.err
        assert "bomb.png: too many pixels" in said.err
        assert "2 of 3 pictures cannot be read" in said.err
        images = {
            Path(row["file"]).name: row for row in json.loads((tmp_path / "p.json").read_text())["images"]
        }
        assert "top" in images["good.png"]
        assert images["text.png"]["error"].startswith("not a readable image")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("{place}/net",), "name pictures: cbam predict"),
            (("{place}/net", "{place}/net/config.json"), "neither a folder nor an image file"),
            (("{place}/net", "{place}/net"), "there is no image in"),
            (("{place}/net", "{place}/photos", "--output", "p.xml"), "Valid: '.csv', '.json'"),
            (("{place}/photos", "{place}/photos"), "holds no network"),
            (("{place}/nets", "{place}/photos"), "Did you mean {place}/net?"),
        ],
    )
    def test_mistakes(self, place, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        assert run(*(argument.format(place=place) for argument in arguments)) == 2
        assert message.format(place=place) in capsys.readouterr().err

    def test_every_saved_form(self, place, tmp_path, capsys):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "digit.png")
        torch.save(build_model("resnet20_cbam", 3).state_dict(), tmp_path / "w.pth")
        for source in (
            ("train",), ("train/final",), ("train-stopped/checkpoints/step-000000014",),
            ("train/best/model.safetensors",), ("compare", "--variant", "control"), ("compare/cells/se-seed1",),
        ):  # fmt: skip
            assert run(LEGACY / source[0], tmp_path / "digit.png", *source[1:], "--device", "cpu") == 0, (
                source
            )
        assert run(tmp_path / "w.pth", tmp_path / "digit.png", "--model", "resnet20_cbam") == 0
        assert "class 0" in capsys.readouterr().out


def test_long_names_fit_the_drawing():
    said = Prediction("a", ("x" * 300, "dog"), torch.tensor([0.25, 0.75]))
    sheet = draw(picture(), said)
    assert sheet.width == 480
    assert sheet.getpixel((474, sheet.height - 27)) == (255, 255, 255)


def test_many_pictures_name_the_file_to_ask_for_unless_there_is_one():
    files = {
        Path(f"{number}.png"): Prediction(f"{number}.png", ("cat", "dog"), torch.tensor([0.25, 0.75]))
        for number in range(60)
    }
    predicted = Predicted(files, {path: path.stem for path in files})
    assert table(predicted, 1)[-1] == "... and 10 more: --output predictions.csv has all"
    assert table(predicted, 1, written=True)[-1] == "... and 10 more"
