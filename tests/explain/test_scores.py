"""Scores of maps: against numbers worked out by hand, on images whose object is known, and on the generated set."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torchcam.methods
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchcam import metrics

from cbam.data.inputs import InputForm
from cbam.errors import CBAMError
from cbam.explain.cams import class_activation_maps
from cbam.explain.localised import Localised, localised_images
from cbam.explain.randomisation import _alike, _randomise, randomisation_check
from cbam.explain.scores import MEASURES, Interval, _located, bootstrap, score_maps


class Bright(nn.Module):
    """Class 0 is as bright as the image, class 1 as dark: the map of class 0 is the bright square."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([gain, -gain])[:, None, None, None].expand(2, 3, 1, 1) / 3)

    def forward(self, images):
        return 8 * self.conv(images).mean((2, 3))


def square(left, top, side=8, size=32):
    pixels, region = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), bool)
    region[top : top + side, left : left + side] = True
    pixels[region] = 255
    return Localised(f"{left}", Image.fromarray(pixels), 0, region)


FORM = {"image_size": 28, "mean": (0.0,), "std": (1.0,)}


@pytest.fixture(scope="module")
def scores():
    images = [square(8, 8), square(12, 16), square(16, 10)]
    return score_maps({"bright": Bright(), "weak": Bright(0.1)}, images, layer="conv", **FORM)


class TestNumbers:
    def test_a_map_that_is_the_object(self, scores):
        found = scores.values["bright"]
        assert list(found) == list(MEASURES)
        assert found["pointing"].tolist() == [1, 1, 1]
        assert found["energy"].min() > 0.95
        assert found["iou"].min() > 0.75  # the edge is smooth after the resize
        assert np.all(found["deletion"] < found["insertion"])
        assert np.all(found["probability"] > 0.6)
        assert np.all(scores.values["weak"]["probability"] < found["probability"])

    def test_chance_is_the_share_of_the_object(self, scores):
        share = [
            image.cropped(InputForm(3, 28, (0.0,) * 3, (1.0,) * 3))[1].mean() for image in (square(8, 8),)
        ]
        assert scores.chance["energy"] == pytest.approx(share[0], abs=0.02)
        assert 0 < scores.chance["centre"] <= 1

    def test_by_hand(self):
        heat = np.array([[0, 0, 0, 0], [0, 1.0, 0.5, 0], [0, 0.5, 0.1, 0]], np.float32)
        region = np.zeros((3, 4), bool)
        region[:, 2:] = True
        found = _located(heat, region, threshold=0.2, tolerance=0)
        assert found == pytest.approx({"pointing": 0, "energy": 0.6 / 2.1, "iou": 1 / 8})
        assert _located(heat, region, 0.2, tolerance=1)["pointing"] == 1
        assert _located(heat, region, 0.05, 0)["iou"] == pytest.approx(2 / 8)
        for scale in (1, 0.25):  # the threshold is a share of the maximum, and what reaches it counts
            assert _located(scale * heat, region, 0.5, 0)["iou"] == pytest.approx(1 / 8)
        assert _located(np.zeros((3, 4), np.float32), region, 0.2, 0) == {
            "pointing": 0,
            "energy": 0,
            "iou": 0,
        }

    def test_faithfulness_equals_torchcam_s_own_run(self, scores):
        model = Bright().eval()
        batch = InputForm(3, 28, (0.0,) * 3, (1.0,) * 3)
        images = batch.batch([square(8, 8).cropped(batch)[0]])
        softmax = partial(torch.softmax, dim=-1)
        with torchcam.methods.GradCAM(model, "conv") as extractor:
            drops = metrics.ClassificationMetric(extractor, softmax)
            changes = metrics.DeletionInsertionMetric(extractor, softmax, steps=20)
            for metric in (drops, changes):
                metric.update(images, [0])
        expected = {**drops.summary(), **changes.summary()}
        found = scores.values["bright"]
        # The background's map is exactly 0, so the subtraction of the minimum changes nothing here.
        assert found["average_drop"][0] == pytest.approx(expected["avg_drop"], abs=1e-5)
        assert found["increase"][0] == expected["conf_increase"]
        assert found["deletion"][0] == pytest.approx(expected["deletion_auc"], abs=1e-5)
        assert found["insertion"][0] == pytest.approx(expected["insertion_auc"], abs=1e-5)

    def test_paired_intervals(self, scores):
        gap = scores.interval("weak", "probability", to="bright")
        direct = scores.values["weak"]["probability"] - scores.values["bright"]["probability"]
        assert gap == bootstrap(direct)
        assert direct.min() <= gap.low <= gap.estimate <= gap.high <= direct.max()
        values = np.random.default_rng(0).normal(0.3, 1, 400)
        found = bootstrap(values)
        assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
        assert bootstrap(values) == found

    def test_the_json_holds_everything(self, scores):
        found = scores.to_json()
        assert found["summary"]["weak"]["energy"]["minus_first"]["estimate"] == pytest.approx(
            scores.values["weak"]["energy"].mean() - scores.values["bright"]["energy"].mean()
        )
        assert found["values"]["bright"]["pointing"] == [1, 1, 1]
        assert "minus_first" not in found["summary"]["bright"]["energy"]

    def test_an_object_outside_the_crop_does_not_count(self):
        images = [square(8, 8), square(0, 0, side=1)]
        found = score_maps({"bright": Bright()}, images, layer="conv", **FORM)
        assert (found.images, found.left_out) == (("8",), 1)
        with pytest.raises(CBAMError, match="no image has a part of its object within the centre crop"):
            score_maps({"bright": Bright()}, images[1:], layer="conv", **FORM)

    def test_flat_maps_are_counted(self):
        image = square(8, 8)
        dark = Localised("dark", Image.new("RGB", (32, 32)), 0, image.region)
        found = score_maps({"bright": Bright()}, [image, dark], layer="conv", **FORM)
        assert found.flat == {"bright": 1}
        assert found.values["bright"]["pointing"].tolist() == [1, 0]


class Coloured(nn.Module):
    """Red argues for class 0, green for class 1, blue for 0 and against 1."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, 4, bias=False)
        self.head = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.head.weight.copy_(torch.tensor([[20.0, 0, 8], [0, 20, -8]]))

    def forward(self, images):
        return self.head(self.conv(images).mean((2, 3)))


def coloured(index):
    """A square of the image's class, mostly a larger one of the other class, and blue somewhere."""
    pixels, region = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), bool)
    label, left = (index + (index > 15)) % 2, 4 + index % 5  # the second batch begins with the other class
    region[8:14, left : left + 6] = True
    pixels[region, label] = 255
    if index % 4:
        pixels[18:28, 14:26, 1 - label] = 200
    pixels[6:14, 20:28, 2] = 250 - index
    return Localised(str(index), Image.fromarray(pixels), label, region)


@pytest.fixture(scope="module")
def images():
    return [coloured(index) for index in range(19)]


@pytest.fixture(scope="module")
def found(images):
    models = {"coloured": Coloured(), "the same": Coloured()}
    return score_maps(models, images, layer="conv", steps=5, **FORM)


class TestManyImages:
    """More than fit into one batch, of both classes: each has its own region, class and numbers."""

    def test_each_map_is_that_of_its_class_in_its_place(self, images, found):
        form, model = InputForm(3, 28, (0.0,) * 3, (1.0,) * 3), Coloured()
        assert found.images == tuple(image.name for image in images)
        assert found.values["coloured"]["pointing"].tolist() == [1] * 19
        for index, image in enumerate(images):
            crop, region = image.cropped(form)
            maps = class_activation_maps(model, "conv", form.batch([crop]), [image.label])
            heat = F.interpolate(maps.heat[None], (28, 28), mode="bilinear")[0, 0].numpy()
            energy = heat[region].sum() / heat.sum()
            assert found.values["coloured"]["energy"][index] == pytest.approx(energy, abs=1e-5)
            assert found.values["coloured"]["probability"][index] == pytest.approx(maps.probabilities[0])

    @pytest.mark.parametrize("index", [0, 12])
    def test_the_drop_is_that_of_the_image_times_its_map(self, images, found, index):
        form, model = InputForm(3, 28, (0.0,) * 3, (1.0,) * 3), Coloured()
        batch = form.batch([images[index].cropped(form)[0]])
        maps = class_activation_maps(model, "conv", batch, [0])
        heat = F.interpolate(maps.heat[None], (28, 28), mode="bilinear")
        whole, shown = (model(each).softmax(1)[0, 0].item() for each in (batch, batch * heat))
        assert found.values["coloured"]["average_drop"][index] == pytest.approx(
            (whole - shown) / whole, abs=1e-5
        )
        assert whole - shown > 0.02
        assert found.values["coloured"]["increase"][index] == 0

    @pytest.mark.parametrize("index", [3, 16, 18])
    def test_each_image_has_torchcam_s_numbers(self, images, found, index):
        # torchcam's map is that of the probability, which here is where that of the score is.
        form, image = InputForm(3, 28, (0.0,) * 3, (1.0,) * 3), images[index]
        softmax = partial(torch.softmax, dim=-1)
        with torchcam.methods.GradCAM(Coloured().eval(), "conv") as extractor:
            drops = metrics.ClassificationMetric(extractor, softmax)
            changes = metrics.DeletionInsertionMetric(extractor, softmax, steps=5)
            for metric in (drops, changes):
                metric.update(form.batch([image.cropped(form)[0]]), [image.label])
        expected = {**drops.summary(), **changes.summary()}
        for ours, theirs in (
            ("average_drop", "avg_drop"), ("increase", "conf_increase"),
            ("deletion", "deletion_auc"), ("insertion", "insertion_auc"),
        ):  # fmt: skip
            assert found.values["coloured"][ours][index] == pytest.approx(expected[theirs], abs=1e-5), ours
        assert found.values["coloured"]["increase"][index] == 1

    def test_networks_are_compared_image_by_image(self, found):
        for measure in MEASURES:
            assert found.interval("the same", measure, to="coloured") == Interval(0, 0, 0)

    def test_flat_maps_of_all_batches_are_counted(self, images):
        dark = [Localised(image.name, Image.new("RGB", (32, 32)), 0, image.region) for image in images]
        assert score_maps({"c": Coloured()}, dark, layer="conv", steps=2, **FORM).flat == {"c": 19}


class TestCircumstances:
    def test_a_network_in_training_is_scored_in_evaluation_and_stays_in_training(self):
        network = nn.Sequential(nn.BatchNorm2d(3), Bright(), nn.Dropout(0.9)).train()
        before = copy.deepcopy(network.state_dict())
        images = [square(8, 8), square(12, 16)]
        found = score_maps({"n": network}, images, layer="1.conv", steps=4, **FORM)
        expected = score_maps({"n": copy.deepcopy(network).eval()}, images, layer="1.conv", steps=4, **FORM)
        assert found.to_json() == expected.to_json()
        assert all(module.training for module in network.modules())
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())

    def test_networks_for_other_images(self):
        grey = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.raises(CBAMError, match="take images of one size"):
            score_maps({"grey": grey, "colour": Bright()}, [square(8, 8)], layer="conv", image_size=28)

    def test_an_old_torchcam(self, monkeypatch):
        monkeypatch.delattr(metrics, "DeletionInsertionMetric")
        with pytest.raises(CBAMError, match=r"torchcam 0\.5 or later: pip install -U torchcam"):
            score_maps({"bright": Bright()}, [square(8, 8)], layer="conv", **FORM)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from cbam.data.detection import load_detection
    from cbam.data.detection.generate import write_generated

    folder = tmp_path_factory.mktemp("generated")
    where = write_generated(folder, ("coco",), images=4, validation=12, size=64, seed=1)
    return load_detection(where["coco"])


class TestSets:
    def test_the_class_of_the_largest_object_and_its_mask(self, data):
        names = ["nothing", *data.classes]
        found = localised_images(data.validation, data.classes, names)
        records = [record for record in data.validation.records if len(record)]
        assert [image.name for image in found] == [record.path.name for record in records]
        for image, record in zip(found, records, strict=True):
            largest = int(record.areas.argmax())
            assert names[image.label] == data.classes[record.labels[largest] - 1]
            rows, columns = np.nonzero(image.region)
            boxes = record.boxes[record.labels == record.labels[largest]]
            assert columns.min() == pytest.approx(boxes[:, 0].min(), abs=1)
            assert rows.max() + 1 == pytest.approx(boxes[:, 3].max(), abs=1)
            box = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            assert 0 < image.region.sum() < box.sum()  # a mask, not the box
        assert len(localised_images(data.validation, data.classes, names, limit=3)) == 3

    def test_boxes_where_there_are_no_masks(self, data):
        images = data.validation.subset(range(len(data.validation)))
        images.with_masks = False
        boxed = localised_images(images, data.classes, data.classes, limit=2)
        masked = localised_images(data.validation, data.classes, data.classes, limit=2)
        for box, mask in zip(boxed, masked, strict=True):
            assert box.region[mask.region].all()
            assert box.region.sum() > mask.region.sum()

    def test_crowds_and_difficult_objects_do_not_count(self, data):
        record = next(r for r in data.validation.records if len(set(r.labels)) > 1)
        largest, rest = int(record.areas.argmax()), np.ones(len(record), bool)
        rest[largest] = False
        nothing = np.zeros(len(record), bool)

        def seen(**changed):
            images = data.validation.subset([0])
            images.records = [dataclasses.replace(record, **changed)]
            return localised_images(images, data.classes, data.classes)[0]

        second = int(np.where(rest, record.areas, -1).argmax())
        for changed in ({"iscrowd": ~rest}, {"difficult": ~rest}):
            assert seen(**changed).label == record.labels[second] - 1
        alike = np.full_like(record.labels, 1)
        alone = seen(labels=alike, difficult=rest).region
        assert alone.sum() < seen(labels=alike, difficult=nothing).region.sum()
        with pytest.raises(CBAMError, match="no image of the set has an object that counts"):
            seen(difficult=~nothing)

    def test_classes_that_the_network_does_not_know(self, data):
        with pytest.raises(CBAMError, match=r"no class 'T-shirt/top'.*--class-names FILE"):
            localised_images(data.validation, data.classes, ["cat", "dog"])


class TestRandomisation:
    def test_maps_of_the_network_get_lost_and_edges_do_not_count_as_maps(self):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
        before = {name: value.clone() for name, value in network.state_dict().items()}
        images = torch.rand(6, 3, 12, 12)
        found = randomisation_check(network, images, [0, 1, 2, 3, 0, 1], layer="3", steps=3)
        assert [each.module for each in found] == ["6", "2", "0"]
        assert all(-1 <= each.similarity <= 1 for each in found)
        assert found[-1].similarity < 0.7
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
        again = randomisation_check(network, images, [0, 1, 2, 3, 0, 1], layer="3", steps=3)
        assert again == found

    def test_random_weights_have_the_mean_and_the_spread_of_the_trained_ones(self):
        weight = nn.Parameter(3 + 0.5 * torch.randn(100, 100, generator=torch.Generator().manual_seed(1)))
        before = weight.detach().clone()
        _randomise(weight, torch.Generator().manual_seed(2))
        assert weight.mean().item() == pytest.approx(3, abs=0.02)
        assert weight.std().item() == pytest.approx(0.5, abs=0.02)
        both = torch.stack([before.flatten(), weight.detach().flatten()])
        assert abs(torch.corrcoef(both)[0, 1].item()) < 0.05

    def test_likeness_has_a_sign(self):
        one = np.arange(9.0)
        assert (_alike(one, 2 * one), _alike(one, -one), _alike(one, 0 * one)) == (1, -1, 0)

    def test_a_map_that_ignores_the_network_survives(self, monkeypatch):
        from cbam.explain import randomisation

        real = randomisation.class_activation_maps

        def edges(model, layer, images, labels, method):
            maps = real(model, layer, images, labels, method)
            return type(maps)(
                images.mean(1), maps.flat, maps.scores, maps.probabilities, maps.predicted, layer
            )

        monkeypatch.setattr(randomisation, "class_activation_maps", edges)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )
        found = randomisation_check(network, torch.rand(2, 3, 8, 8), [0, 1], layer="1")
        assert [round(each.similarity, 6) for each in found] == [1, 1]
