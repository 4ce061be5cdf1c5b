"""Detectors: torchvision's postprocessing without decisions by how many boxes there are, and files box by box."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from torchvision.models.detection import _utils
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import boxes as operations

from cbam.errors import CBAMError
from cbam.export import export, load
from cbam.export.agreement import Agreement, _agreement, refuse_detections
from cbam.export.detector import OneImage, exportable, is_detector
from cbam.models.detection import build_detector


def some_boxes(count):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * 200
    sides = torch.rand(count, 2, generator=generator) * 60 + 5
    labels = torch.randint(0, 4, (count,), generator=generator)
    return torch.cat([corners, corners + sides], 1), torch.rand(count, generator=generator), labels


@pytest.mark.parametrize("count", [0, 1, 300, 1500])
def test_the_suppression_is_torchvision_s(count):
    boxes, scores, labels = some_boxes(count)
    expected = operations.batched_nms(boxes, scores, labels, 0.5)
    with exportable():
        assert torch.equal(operations.batched_nms(boxes, scores, labels, 0.5), expected)
        assert _utils._topk_min(scores, 400, 0) == min(400, count)


@pytest.mark.parametrize("names", [["0"], ["0", "1"]])
def test_regions_and_decoded_boxes_are_torchvision_s(names):
    boxes, _, _ = some_boxes(40)
    boxes[:8, 2:] += 250  # of another level
    maps = {
        name: torch.rand(1, 4, 512 // 4 ** (1 + int(name)), 512 // 4 ** (1 + int(name))) for name in names
    }
    pool = MultiScaleRoIAlign(names, 7, 2)
    coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    codes = torch.rand(40, 8)
    expected = pool(maps, [boxes], [(512, 512)]), coder.decode(codes, [boxes])
    with exportable():
        found = pool(maps, [boxes], [(512, 512)]), coder.decode(codes, [boxes])
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert expected[0].shape == (40, 4, 7, 7)
    assert expected[1].shape == (40, 2, 4)


def test_torchvision_is_restored():
    before = operations.batched_nms, _utils._topk_min
    with pytest.raises(ZeroDivisionError), exportable():
        1 / (operations.batched_nms is before[0])
    assert (operations.batched_nms, _utils._topk_min) == before


def detections(boxes, labels, scores):
    return torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels), torch.tensor(scores)


TWO = detections([[0.0, 0, 9, 9], [20.0, 20, 40, 40]], [1, 2], [0.9, 0.5])


@pytest.mark.parametrize(
    ("boxes", "labels", "scores", "same"),
    [
        ([[20.0, 20, 40, 40.2], [0.0, 0, 9, 9]], [2, 1], [0.5, 0.9], 2),
        ([[0.0, 0, 9, 9], [20.0, 20, 40, 41]], [1, 2], [0.9, 0.5], 1),
        ([[0.0, 0, 9, 9], [20.0, 20, 40, 40]], [1, 1], [0.9, 0.5], 1),
        ([[0.0, 0, 9, 9], [20.0, 20, 40, 40]], [1, 2], [0.9, 0.6], 1),
        ([[0.0, 0, 9, 9], [0.0, 0, 9, 9]], [1, 1], [0.9, 0.9], 1),
        ([], [], [], 0),
    ],
)
def test_the_same_detections(boxes, labels, scores, same):
    found = _agreement((1, 3, 64, 64), TWO, detections(boxes, labels, scores))
    assert (found.eager, found.exported, found.same) == (2, len(boxes), same)
    if same == 2:
        assert found.largest == pytest.approx(0.2, abs=1e-5)
        refuse_detections([found])
    else:
        with pytest.raises(CBAMError, match=f"only {same} are the same. No file was written"):
            refuse_detections([found])


def test_too_many_detections_are_refused():
    with pytest.raises(CBAMError, match="of 100 detections of eager mode and 103"):
        refuse_detections([Agreement((1, 3, 8, 8), 100, 103, 100, 0.0, 0.0)])
    refuse_detections([Agreement((1, 3, 8, 8), 0, 0, 0, 0.0, 0.0)])


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = build_detector("ssd300_mobilenet", 2, attention="cbam", width=0.125)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classification_head" in name and parameter.dim() > 1:
                parameter.normal_(0, 0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": ["batch"]}, "takes one image of one size, and dynamic batch"),
        ({"precision": "fp16"}, "in fp32, and precision 'fp16' was asked for"),
        ({"precision": "int8"}, "in fp32, and precision 'int8' was asked for"),
        ({"image_size": (4, 8, 8)}, r"one side, \(H, W\) or \(3, H, W\), got \(4, 8, 8\)"),
    ],
)
def test_refusals(detector, tmp_path, options, message):
    pytest.importorskip("onnxscript")
    with pytest.raises(CBAMError, match=message):
        export(detector, tmp_path / "net.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_the_size_of_the_image(detector):
    network = OneImage(detector)
    assert network.example(None).shape == (1, 3, 300, 300)
    assert network.example(64).shape == (1, 3, 64, 64)
    assert network.example((48, 64)).shape == network.example((3, 48, 64)).shape == (1, 3, 48, 64)
    assert is_detector(detector)
    assert not is_detector(nn.Conv2d(3, 8, 3))


@pytest.mark.slow
def test_a_file_finds_the_same(detector, tmp_path):
    images = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(1))
    found = export(detector, tmp_path / "net.pt2", images, class_names=["cat", "dog"])
    assert [(each.shape, each.eager == each.exported == each.same > 0) for each in found.differences] == [
        ((1, 3, 40, 60), True)
    ] * 2
    assert "largest difference" in str(found)
    loaded = load(found.path)
    assert loaded.metadata["class_names"] == ["__background__", "cat", "dog"]
    assert loaded.metadata["task"] == "detection"
    assert loaded.metadata["preprocessing"]["size"] == [40, 60]
    boxes, labels, scores = loaded(images[1:])
    (expected,) = detector([images[1]])
    torch.testing.assert_close(boxes, expected["boxes"].detach())
    torch.testing.assert_close(scores, expected["scores"].detach())
    assert torch.equal(labels, expected["labels"])
    with pytest.raises(CBAMError, match="takes one image"):
        loaded(images)
