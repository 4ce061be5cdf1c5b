"""COCO's figures against pycocotools, which gets the same objects and detections as JSON with sparse categories."""

import contextlib
import io

import numpy as np
import pytest
import torch

from cbam.errors import CBAMError
from cbam.evaluate.detection import CocoEvaluator
from tests.evaluate.detection.scenes import (
    HEIGHT,
    WIDTH,
    annotation,
    detections,
    filled,
    random_scene,
    record,
)

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")
coco_masks = pytest.importorskip("pycocotools.mask")

CLASSES = ("cat", "dog", "bird")
SPARSE = (3, 17, 90)
NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def reference(records, evaluator, kind, limits=(1, 10, 100)):
    """What pycocotools makes of the records and of the evaluator's results in COCO's form."""
    truth = coco.COCO()
    annotations = [
        {
            "image_id": item.image_id,
            "category_id": SPARSE[item.labels[index] - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": item.areas[index],
            "iscrowd": int(item.iscrowd[index]),
            "segmentation": item.segmentations[index],
        }
        for item in records
        for index, (x1, y1, x2, y2) in enumerate(item.boxes.tolist())
    ]
    truth.dataset = {
        "images": [{"id": r.image_id, "height": r.height, "width": r.width} for r in records],
        "categories": [{"id": number, "name": name} for number, name in zip(SPARSE, CLASSES, strict=True)],
        "annotations": [{**entry, "id": index + 1} for index, entry in enumerate(annotations)],
    }
    results = evaluator.results(SPARSE)
    if kind == "segm":
        for entry in results:
            del entry["bbox"]  # pycocotools would take the box's area for the mask's
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = cocoeval.COCOeval(truth, truth.loadRes(results), kind)
        run.params.maxDets = list(limits)
        run.evaluate()
        run.accumulate()
        if limits == (1, 10, 100):
            run.summarize()
    return run


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("masks", [False, True])
def test_the_twelve_figures_are_those_of_pycocotools(seed, masks):
    records, found = random_scene(seed, masks=masks)
    evaluator = filled(CocoEvaluator(records, CLASSES, masks=masks), found)
    scores = evaluator.compute()
    assert list(scores) == (["boxes", "masks"] if masks else ["boxes"])
    for kind, name in (("boxes", "bbox"), ("masks", "segm"))[: 1 + masks]:
        expected = reference(records, evaluator, name)
        figures = scores[kind]["figures"]
        assert tuple(figures) == NAMES
        assert [-1 if value is None else value for value in figures.values()] == pytest.approx(
            expected.stats.tolist(), abs=1e-12
        )
        precision, recall = expected.eval["precision"], expected.eval["recall"]
        for index, row in enumerate(scores[kind]["per_class"]):
            assert row["class"] == CLASSES[index]
            assert row["AP"] == pytest.approx(precision[:, :, index, 0, 2].mean(), abs=1e-12)
            assert row["AR"] == pytest.approx(recall[:, index, 0, 2].mean(), abs=1e-12)
            for iou, t in (("0.50", 0), ("0.75", 5)):
                curve = scores[kind]["curves"][iou]["classes"][index]
                assert curve == pytest.approx(precision[t, :, index, 0, 2].tolist(), abs=1e-12)


def test_other_limits_of_detections():
    records, found = random_scene(3)
    evaluator = filled(CocoEvaluator(records, CLASSES, max_detections=(1, 2, 3)), found)
    expected = reference(records, evaluator, "bbox", (1, 2, 3)).eval
    figures = evaluator.compute()["boxes"]["figures"]
    assert figures["AP"] == pytest.approx(expected["precision"][..., 0, 2].mean(), abs=1e-12)
    for index, limit in enumerate((1, 2, 3)):
        assert figures[f"AR_{limit}"] == pytest.approx(expected["recall"][:, :, 0, index].mean(), abs=1e-12)
    assert figures["AR_1"] < figures["AR_2"] < figures["AR_3"]


def test_a_class_without_objects_is_none_and_left_out():
    records = [record(5, [annotation((10, 10, 50, 50), 1)])]
    found = {5: detections([[10, 10, 50, 50], [0, 0, 20, 20]], [1, 2], [0.9, 0.8])}
    scores = filled(CocoEvaluator(records, CLASSES), found).compute()["boxes"]
    assert scores["figures"]["AP"] == pytest.approx(1)
    assert [row["AP"] for row in scores["per_class"]] == [pytest.approx(1), None, None]
    assert scores["figures"]["AP_large"] is None
    assert scores["curves"]["0.50"]["classes"][1:] == [None, None]


def test_no_objects_at_all():
    scores = filled(CocoEvaluator([record(5, [])], CLASSES), {5: detections([], [], [])}).compute()["boxes"]
    assert set(scores["figures"].values()) == {None}
    assert scores["curves"]["0.50"]["mean"] is None


def test_every_image_must_be_given():
    records, found = random_scene(0)
    evaluator = CocoEvaluator(records, CLASSES)
    for image_id in list(found)[2:]:
        evaluator.update(image_id, found[image_id])
    with pytest.raises(CBAMError, match=r"2 of 12 images have not been given.*empty tensors"):
        evaluator.compute()


def test_a_repeated_image_counts_once():
    records, found = random_scene(1)
    evaluator = filled(CocoEvaluator(records, CLASSES), found)
    expected = evaluator.results()
    for image_id in found:
        evaluator.update(image_id, detections([[0, 0, 9, 9]], [1], [0.9]))
    assert evaluator.results() == expected


def test_of_objects_with_equal_iou_the_last_is_taken():
    """So that the second detection finds the first object, which it fits exactly; pycocotools says so too."""
    records = [record(5, [annotation((0, 0, 10, 10), 1), annotation((2, 0, 12, 10), 1)])]
    found = {5: detections([[1, 0, 11, 10], [0, 0, 10, 10]], [1, 1], [0.9, 0.8])}
    evaluator = filled(CocoEvaluator(records, CLASSES), found)
    right = evaluator.matches().classes[0].correct
    assert right.tolist() == [[True, True]] * 7 + [[False, True]] * 3
    expected = reference(records, evaluator, "bbox").stats[0]
    assert evaluator.compute()["boxes"]["figures"]["AP"] == pytest.approx(expected)


def test_masks_are_what_exceeds_one_half():
    evaluator = CocoEvaluator([record(5, [])], CLASSES, masks=True)
    mask = torch.linspace(0, 1, HEIGHT * WIDTH).reshape(1, 1, HEIGHT, WIDTH)
    evaluator.update(5, detections([[0, 0, 9, 9]], [1], [0.9], mask))
    (row,) = evaluator.results()
    assert (coco_masks.decode(row["segmentation"]) == (mask[0, 0] > 0.5).numpy()).all()


GOOD = {"boxes": torch.zeros(1, 4), "labels": torch.ones(1).long(), "scores": torch.ones(1)}


@pytest.mark.parametrize(
    ("image_id", "change", "message"),
    [
        (6, {}, "no image has the id 6; the 1 of this split have: 5"),
        (5, {"labels": torch.tensor([4])}, r"labels must lie in 1\.\.3.*given 4\.\.4"),
        (5, {"labels": torch.tensor([0])}, r"labels must lie in 1\.\.3"),
        (5, {"scores": torch.tensor([float("nan")])}, "NaN or infinite"),
        (5, {"boxes": torch.zeros(2, 4)}, r"expected boxes \(K, 4\)"),
        (5, {"masks": torch.zeros(1, 1, 8, 8)}, r"expected masks \(1, 1, 96, 128\).*given \(1, 1, 8, 8\)"),
        (5, {"masks": None}, "masks missing in boxes, labels, scores"),
    ],
)
def test_detections_that_do_not_fit_are_refused(image_id, change, message):
    masks = "masks" in change
    evaluator = CocoEvaluator([record(5, [])], CLASSES, masks=masks)
    found = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(CBAMError, match=message):
        evaluator.update(image_id, found)


def test_records_that_do_not_fit_are_refused():
    with pytest.raises(
        CBAMError, match=r"labels must lie in 1\.\.3, where 0 is the background; given 0\.\.0"
    ):
        CocoEvaluator([record(5, [annotation((0, 0, 9, 9), 0)])], CLASSES)
    with pytest.raises(CBAMError, match="5 occurs twice"):
        CocoEvaluator([record(5, []), record(5, [])], CLASSES)
    with pytest.raises(CBAMError, match="object without a mask"):
        CocoEvaluator([record(5, [annotation((0, 0, 9, 9), 1)])], CLASSES, masks=True)
    with pytest.raises(CBAMError, match="three ascending limits"):
        CocoEvaluator([], CLASSES, max_detections=(10, 10, 100))


def test_nothing_but_detections_is_kept():
    """1,000 detections of 96 x 128 pixels: 24 kB of arrays and the runs of their masks, not 12 MB of pixels."""
    evaluator = CocoEvaluator([record(5, [])], CLASSES, masks=True)
    boxes = np.tile([[3, 4, 40, 50]], (1000, 1))
    masks = torch.zeros(1000, 1, 96, 128)
    masks[:, :, 4:50, 3:40] = 1
    evaluator.update(5, detections(boxes, [1] * 1000, [0.5] * 1000, masks))
    (kept,) = evaluator._found.values()
    arrays = kept.boxes.nbytes + kept.scores.nbytes + kept.labels.nbytes
    assert arrays == 24_000
    assert sum(map(len, kept.masks)) < 200_000
    assert kept.boxes.base is None
