"""`cbam.explain`: what it finds is what the network does, its files say the same, and any picture may come in."""

from __future__ import annotations

import copy
import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tests.attach.networks import pretrained_lite0, randomised_gates, resnet
from torch import nn

import cbam
from cbam.data.pictures import BadImage
from cbam.errors import CBAMError
from cbam.explain import class_activation_maps
from cbam.explain.inputs import class_names_of, input_form, open_picture, read_class_names

data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def lite0():
    return pretrained_lite0()


@pytest.fixture(scope="module")
def networks():
    plain, attended = resnet().eval(), resnet().eval()
    cbam.attach(attended)
    randomised_gates(attended)
    return {"plain": plain, "with <b>CBAM</b>": attended}


def picture(seed=0, size=(50, 40)):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def seen(networks):
    return cbam.explain(networks, [picture(0), picture(1)], image_size=64, label=3)


class TestFindings:
    def test_photographs_and_the_real_network(self, lite0, tmp_path):
        file = tmp_path / "rocket.png"
        Image.fromarray(data.rocket()).save(file)
        before = copy.deepcopy(lite0.state_dict())
        found = cbam.explain(lite0, [data.cat(), Image.fromarray(data.coffee()), file])
        assert [found.class_names[label] for label in found.labels] == ["tiger cat", "espresso", "missile"]
        assert found.names == ("image 1", "image 2", "rocket.png")
        views = found.views["EfficientNet"]
        # Resized bicubically, as timm evaluates it.
        assert [float(view.probabilities.max()) for view in views] == pytest.approx(
            [0.39, 0.95, 0.27], abs=0.05
        )
        assert [crop.size for crop in found.crops] == [(224, 224)] * 3
        assert "mean 0.5, 0.5, 0.5" in found.prepared
        assert all(torch.equal(value, lite0.state_dict()[name]) for name, value in before.items())
        # The cup is in the middle of the coffee picture; the table's edges are not espresso.
        heat = views[1].heat
        assert heat[1:6, 1:6].mean() > 2 * (heat.sum() - heat[1:6, 1:6].sum()) / (49 - 25)

    def test_numbers_are_those_of_the_library_s_parts(self, networks, seen):
        form, _ = input_form(networks["plain"], 64)
        batch = form.batch([form.crop(picture(0)), form.crop(picture(1))])
        for title, network in networks.items():
            maps = class_activation_maps(network, "layer3", batch, [3, 3])
            with torch.no_grad():
                scores = network(batch)
            for index, view in enumerate(seen.views[title]):
                assert view.layer == "layer4"
                assert np.allclose(view.probabilities, scores[index].softmax(0), atol=1e-6)
                assert view.heat.shape == (2, 2)
            assert maps.layer == "layer3"
        attended = networks["with <b>CBAM</b>"]
        with torch.no_grad(), cbam.attention_maps(attended) as maps:
            attended(batch)
        view = seen.views["with <b>CBAM</b>"][1]
        assert list(view.gates) == list(maps)
        for site, gates in maps.items():
            assert np.array_equal(view.gates[site].channel, gates.channel[1])
            assert np.array_equal(view.gates[site].spatial, gates.spatial[1, 0])
        assert seen.views["plain"][0].gates == {}

    def test_the_networks_stay_as_they_are(self, networks):
        network = copy.deepcopy(networks["with <b>CBAM</b>"]).train()
        before = copy.deepcopy(network.state_dict())
        cbam.explain(network, picture(), image_size=64)
        assert all(module.training for module in network.modules())
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
        assert not any("listeners" in vars(module) or module._forward_hooks for module in network.modules())

    def test_many_images_are_taken_in_parts(self, monkeypatch, networks):
        images, network = [picture(seed) for seed in range(5)], networks["with <b>CBAM</b>"]
        whole = cbam.explain(network, images, image_size=32)
        monkeypatch.setattr("cbam.explain.explaining._AT_ONCE", 2)
        parts = cbam.explain(network, images, image_size=32)
        for a, b in zip(whole.views["ResNet"], parts.views["ResNet"], strict=True):
            assert np.allclose(a.heat, b.heat, atol=1e-4)
            assert np.allclose(a.probabilities, b.probabilities, atol=1e-5)
            assert list(a.gates) == list(b.gates)
            assert all(np.allclose(a.gates[s].channel, b.gates[s].channel, atol=1e-5) for s in a.gates)

    def test_the_class_is_what_the_first_network_says(self, networks):
        first = networks["plain"]
        other = copy.deepcopy(first)
        said = cbam.explain(first, picture(), image_size=32).labels[0]
        with torch.no_grad():
            other.fc.bias[(said + 1) % 10] += 100
        assert cbam.explain({"a": first, "b": other}, picture(), image_size=32).labels == (said,)
        assert cbam.explain({"b": other, "a": first}, picture(), image_size=32).labels == ((said + 1) % 10,)

    def test_grey_networks(self):
        network = cbam.models.build_model("resnet20_cbam", 10, in_channels=1)
        found = cbam.explain(network, picture(), image_size=32)
        assert found.crops[0].mode == "L"
        assert "1 × 32 × 32" in found.prepared

    def test_classes_by_name_and_for_each_image(self, networks):
        names = [f"class {index}" for index in range(10)]
        images = [picture(), picture(1)]
        assert cbam.explain(networks["plain"], images, label="class 7", image_size=32).labels == (7, 7)
        found = cbam.explain(networks["plain"], images, label=[2, 5], class_names=names, image_size=32)
        assert found.labels == (2, 5)


class TestFiles:
    def test_page_pictures_numbers_and_manifest_agree(self, seen, tmp_path):
        page = seen.save(tmp_path / "out", command=["cbam", "explain", "a b.png", "--run", "x"])
        assert page == tmp_path / "out" / "explain.html"
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
        names = {file.name for file in page.parent.iterdir()}
        named = {"explain.html", "manifest.json"}
        for index, image in enumerate(manifest["images"]):
            named.add(image["picture"])
            assert Image.open(page.parent / image["picture"]).size == (
                128,
                128,
            )  # 64 pixels, as sharp squares
            for title, model in image["models"].items():
                view = seen.views[title][index]
                named |= {model["cam"], model["maps"], *(s["picture"] for s in model["sites"].values())}
                numbers = np.load(page.parent / model["maps"])
                assert np.array_equal(numbers["cam"], view.heat)
                assert np.array_equal(numbers["probabilities"], view.probabilities)
                assert model["top"][0]["probability"] == pytest.approx(float(view.probabilities.max()))
                for site, gates in view.gates.items():
                    assert np.array_equal(numbers[f"channel/{site}"], gates.channel)
                    assert np.array_equal(numbers[f"spatial/{site}"], gates.spatial)
                    assert model["sites"][site]["spatial"]["max"] == pytest.approx(float(gates.spatial.max()))
        assert names == named

    def test_masks_of_one_row_share_one_scale(self, networks, tmp_path):
        twice = {"one": networks["with <b>CBAM</b>"], "two": copy.deepcopy(networks["with <b>CBAM</b>"])}
        for block in twice["two"].modules():
            if isinstance(block, cbam.CBAM):
                block.spatial_attention.conv.weight.data.mul_(0.2)
        found = cbam.explain(twice, picture(), image_size=64)
        folder = found.save(tmp_path).parent
        (image,) = json.loads((folder / "manifest.json").read_text())["images"]
        low, high = image["scales"]["16 x 16"]
        gates = [found.views[t][0].gates["layer1.1.bn2"].spatial for t in twice]
        others = [found.views[t][0].gates["layer1.0.bn2"].spatial for t in twice]
        every = np.stack([*gates, *others])
        assert (low, high) == (pytest.approx(float(every.min())), pytest.approx(float(every.max())))
        site = image["models"]["two"]["sites"]["layer1.1.bn2"]
        drawn = np.asarray(Image.open(folder / site["picture"]).convert("RGB")).astype(int)
        from cbam.explain.overlay import colours

        expected = colours((gates[1] - low) / (high - low))[..., :3] * 255
        assert np.abs(drawn[4::8, 4::8] - expected).max() <= 1

    def test_the_paper_s_colours(self, seen, tmp_path):
        seen.save(tmp_path / "jet", cmap="jet")
        seen.save(tmp_path / "usual")
        name = "1-image-1-1-plain-cam.png"
        assert (tmp_path / "jet" / name).read_bytes() != (tmp_path / "usual" / name).read_bytes()
        with pytest.raises(CBAMError, match=r"unknown colour map 'jett'. Did you mean 'jet'"):
            seen.save(tmp_path / "none", cmap="jett")
        assert not (tmp_path / "none").exists()

    def test_gates_without_contrast_are_said_to_be_so(self, tmp_path):
        network = resnet().eval()
        cbam.attach(network)
        text = cbam.explain(network, picture(), image_size=64).save(tmp_path).read_text(encoding="utf-8")
        assert "Every location has the gate 1.000" in text


class TestPictures:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "L", "P", "I;16", "1"])
    def test_every_mode(self, mode, tmp_path, networks):
        source = picture().convert("L") if mode == "I;16" else picture().convert(mode)
        if mode == "I;16":
            source = Image.fromarray(np.asarray(source).astype(np.uint16) * 257)
        file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
        source.save(file)
        found = cbam.explain(networks["plain"], file, image_size=32)
        assert found.crops[0].mode == "RGB"
        direct = cbam.explain(networks["plain"], source, image_size=32)
        assert np.array_equal(np.asarray(found.crops[0]), np.asarray(direct.crops[0]))

    def test_rotated_by_exif(self, tmp_path, networks):
        turned = picture().transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn to the right
        turned.save(tmp_path / "a.png", exif=exif)
        found = cbam.explain(networks["plain"], [tmp_path / "a.png", picture()], image_size=32)
        assert np.array_equal(np.asarray(found.crops[0]), np.asarray(found.crops[1]))

    def test_the_first_frame_of_an_animation(self, tmp_path, networks):
        frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
        found = cbam.explain(networks["plain"], tmp_path / "a.gif", image_size=32)
        assert found.crops[0].getpixel((5, 5)) == (255, 0, 0)

    def test_a_bomb_and_a_text_file_and_nothing(self, tmp_path, networks):
        def chunk(kind, content):
            return (
                struct.pack(">I", len(content))
                + kind
                + content
                + struct.pack(">I", zlib.crc32(kind + content))
            )

        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
        (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
        (tmp_path / "text.png").write_text("no picture")
        for name, message in (
            ("bomb", "too many pixels"),
            ("text", "not a readable image"),
            ("x", "missing file"),
        ):
            with pytest.raises(BadImage, match=f"{name}.png: {message}"):
                cbam.explain(networks["plain"], tmp_path / f"{name}.png", image_size=32)

    def test_arrays_and_tensors(self):
        pixels = np.asarray(picture())
        expected = np.asarray(open_picture(pixels, "a"))
        for same in (
            pixels.astype(np.float32) / 255,
            pixels.astype(np.uint16) * 257,
            torch.from_numpy(pixels.copy()).permute(2, 0, 1),
            torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255,
        ):
            assert np.array_equal(np.asarray(open_picture(same, "a")), expected)
        assert open_picture(torch.rand(1, 9, 8), "a").size == (8, 9)
        for wrong, message in (
            (np.zeros((4, 4, 7)), "given \\(4, 4, 7\\)"),
            (np.full((4, 4), 200.0), "between 0 and 1"),
            (np.zeros((4, 4), np.int64), "given int64"),
            (3, "given int"),
        ):
            with pytest.raises(CBAMError, match=message):
                open_picture(wrong, "a")


class TestRefusals:
    def test_networks_that_do_not_fit_together(self, networks):
        other = resnet()
        other.fc = nn.Linear(512, 4)
        with pytest.raises(CBAMError, match="the same classes; outputs: a 10, b 4"):
            cbam.explain({"a": networks["plain"], "b": other}, picture(), image_size=32)
        lite = cbam.models.build_model("timm/tf_efficientnet_lite0", 10)
        small = cbam.models.build_model("resnet20", 10)
        small.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        with pytest.raises(CBAMError, match="images of one size: a 3 x 224 x 224, b 3 x 32 x 32"):
            cbam.explain({"a": lite, "b": small}, picture())

    def test_nothing_and_unknown_names(self, networks):
        for arguments, message in (
            (([],), "nothing to explain: 1 networks and 0 images"),
            ((picture(), {"label": 12}), "label 12 is not one of the network's 10 classes, 0 to 9"),
            ((picture(), {"label": "class 99"}), "unknown class 'class 99'. Did you mean 'class 9'"),
            ((picture(), {"label": [1, 2]}), "2 labels for 1 images"),
            ((picture(), {"layer": "layer5"}), "unknown layer 'layer5'. Did you mean"),
            ((picture(), {"method": "gradcam+"}), "unknown method 'gradcam\\+'. Did you mean"),
            ((picture(), {"class_names": ["a"]}), "1 class names for a network with 10 outputs"),
        ):
            image, options = arguments if len(arguments) == 2 else (*arguments, {})
            with pytest.raises(CBAMError, match=message):
                cbam.explain(networks["plain"], image, **{"image_size": 32, **options})

    def test_channels_that_pictures_do_not_have(self):
        with pytest.raises(CBAMError, match="images of 4 channels; pictures have 3"):
            cbam.explain(nn.Sequential(nn.Conv2d(4, 3, 1)), picture())


class TestClassNames:
    def test_of_a_file(self, tmp_path):
        (tmp_path / "a.txt").write_text("cat\ndog\n\n", encoding="utf-8")
        (tmp_path / "a.json").write_text(json.dumps(["cat", "dog"]))
        (tmp_path / "keras.json").write_text(json.dumps({"1": ["n2", "dog"], "0": ["n1", "cat"]}))
        (tmp_path / "plain.json").write_text(json.dumps({"0": "cat", "1": "dog"}))
        for name in ("a.txt", "a.json", "keras.json", "plain.json"):
            assert read_class_names(tmp_path / name) == ("cat", "dog")
        (tmp_path / "b.json").write_text("[1, 2]")
        (tmp_path / "c.json").write_text("{")
        (tmp_path / "d.txt").write_text("\n")
        for name, message in (
            ("b.json", "no class names"),
            ("c.json", "cannot read"),
            ("d.txt", "it is empty"),
        ):
            with pytest.raises(CBAMError, match=message):
                read_class_names(tmp_path / name)
        with pytest.raises(CBAMError, match="No such file"):
            read_class_names(tmp_path / "nothing.txt")

    def test_saved_ones_and_numbers(self, tmp_path):
        network = cbam.models.build_model("resnet20", 3)
        cbam.save_pretrained(
            network, tmp_path, "resnet20", class_names=["a", "b", "c"], input_size=(3, 32, 32)
        )
        loaded = cbam.from_pretrained(tmp_path)
        assert class_names_of(loaded, None, 3) == ("a", "b", "c")
        assert cbam.explain(loaded, picture()).class_names == ("a", "b", "c")
        assert "as saved with the network" in cbam.explain(loaded, picture()).prepared
        assert class_names_of(network, None, 2) == ("class 0", "class 1")


def test_the_package_is_the_function():
    import cbam.explain.overlay

    assert callable(cbam.explain)
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    assert cbam.explain.overlay.COLOUR_MAP == "inferno"


@pytest.mark.parametrize(("kind", "maps"), [(nn.Conv1d, r"\(N, C, L\)"), (nn.Conv3d, r"\(N, C, D, H, W\)")])
def test_networks_that_take_no_pictures(kind, maps):
    network = nn.Sequential(kind(3, 8, 3), nn.Flatten())
    with pytest.raises(
        CBAMError, match=rf"{kind.__name__} and takes maps {maps}, not pictures.*attention_maps"
    ):
        cbam.explain(network, picture())
