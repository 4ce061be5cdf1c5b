"""VOC's average precision: published examples, properties, and a slow implementation written apart."""

from fractions import Fraction
from itertools import pairwise
from math import isnan

import numpy as np
import pytest

from cbam.errors import CBAMError
from cbam.evaluate.detection import CocoEvaluator, VocEvaluator
from cbam.evaluate.detection.average_precision import average_precision
from tests.evaluate.detection.scenes import annotation, detections, filled, random_scene, record

# 15 objects; which of the 24 detections, by descending score, are right: Padilla's example (15 of them are not).
PADILLA = [int(found) for found in "101000000101110000000010"]
CHAINER = {"strict": False, "inclusive": True}


def in_a_row(right, objects, spread=1):
    """Records and detections with boxes side by side: detection i is right or wrong as told, scores descend.

    Args:
        right: 1 or 0 for each detection.
        objects: how many there are; those beyond the right detections are not found.
        spread: over how many images, in turns.
    """
    records, found = [], {}
    free = iter(range(objects))
    placed = [
        (next(free), 1.0 - 0.01 * rank) if hit else (None, 1.0 - 0.01 * rank)
        for rank, hit in enumerate(right)
    ]
    for image in range(spread):
        here = [index for index in range(objects) if index % spread == image]
        mine = [
            (index, score)
            for rank, (index, score) in enumerate(placed)
            if (rank if index is None else index) % spread == image
        ]
        records.append(record(image, [annotation((10 * i, 0, 10 * i + 8, 8), 1) for i in here], 100, 400))
        boxes = [(10 * i, 0, 10 * i + 8, 8) if i is not None else (0, 50, 8, 58) for i, _ in mine]
        found[image] = detections(boxes, [1] * len(mine), [score for _, score in mine])
    return records, found


def ap(right, objects, points, spread=1):
    records, found = in_a_row(right, objects, spread)
    return filled(VocEvaluator(records, ["box"], points=points), found).compute()["mAP"]


class TestPublishedValues:
    @pytest.mark.parametrize("spread", [1, 7])
    def test_padilla(self, spread):
        assert sum(PADILLA) == 7
        assert ap(PADILLA, 15, 11, spread) == pytest.approx(0.268398, abs=5e-7)
        assert ap(PADILLA, 15, "all", spread) == pytest.approx(0.245687, abs=5e-7)

    def test_padilla_at_coco_s_recalls(self):
        records, found = in_a_row(PADILLA, 15)
        matches = filled(CocoEvaluator(records, ["box"]), found).matches()
        assert average_precision(matches.classes[0], 101)[0, 0] == pytest.approx(0.248160, abs=5e-7)
        assert average_precision(matches.classes[0], 11)[0, 0] == pytest.approx(0.268398, abs=5e-7)

    @pytest.mark.parametrize(("points", "first"), [("all", 0.25), (11, 6 * 0.5 / 11)])
    def test_chainercv_s_two_images(self, points, first):
        records = [
            record(0, [annotation((0, 0, 1, 1), 1), annotation((1, 0, 4, 4), 1)]),
            record(1, [annotation((2, 2, 3, 3), 2)]),
        ]
        found = {
            0: detections([[0, 4, 1, 5], [0, 0, 1, 1]], [1, 1], [1.0, 0.9]),
            1: detections([[0, 0, 2, 2], [2, 2, 3, 3], [5, 5, 7, 7]], [1, 2, 2], [0.7, 0.6, 0.8]),
        }
        scores = filled(VocEvaluator(records, ["a", "b"], points=points, iou=0.4, **CHAINER), found).compute()
        assert scores["curves"][0] == {"recall": [0, 0.5, 0.5], "precision": [0, 0.5, pytest.approx(1 / 3)]}
        assert scores["curves"][1] == {"recall": [0, 1], "precision": [0, 0.5]}
        assert [row["AP"] for row in scores["per_class"]] == pytest.approx([first, 0.5])
        assert scores["mAP"] == pytest.approx((first + 0.5) / 2)

    @pytest.mark.parametrize("hard", [False, True])
    @pytest.mark.parametrize(("iou", "recall"), [(0.5, 1), (0.97, 0)])
    def test_chainercv_s_one_object_and_a_difficult_one(self, hard, iou, recall):
        objects = [annotation((0, 0, 1, 0.9), 1)]
        objects += [annotation((1, 1, 2, 2), 1, difficult=True)] if hard else []
        found = detections([[0, 0, 1, 1], [0, 0, 2, 2], [0.3, 0.3, 0.5, 0.5]], [1] * 3, [0.8, 0.9, 1.0])
        evaluator = filled(VocEvaluator([record(0, objects)], ["a"], iou=iou, **CHAINER), {0: found})
        (curve,) = evaluator.compute()["curves"]
        assert curve["recall"] == [0, 0, recall]
        assert curve["precision"] == [0, 0, pytest.approx(recall / 3)]


class TestWhereImplementationsDiffer:
    def test_strict(self):
        records = [record(0, [annotation((0, 0, 10, 10), 1)])]
        found = {0: detections([[0, 0, 10, 5]], [1], [0.9])}  # IoU exactly 0.5
        assert filled(VocEvaluator(records, ["a"], strict=True), found).compute()["mAP"] == 0
        assert filled(VocEvaluator(records, ["a"], strict=False), found).compute()["mAP"] == 1

    def test_inclusive(self):
        records = [record(0, [annotation((0, 0, 9, 9), 1)])]
        found = {0: detections([[0, 0, 9, 4]], [1], [0.9])}  # 50 of 100 pixels, or 36 of 81
        loose = {"strict": False}
        assert filled(VocEvaluator(records, ["a"], inclusive=True, **loose), found).compute()["mAP"] == 1
        assert filled(VocEvaluator(records, ["a"], inclusive=False, **loose), found).compute()["mAP"] == 0

    def test_edges_give_the_iou_of_the_files_numbers_with_one_added(self):
        """x1 and y1 one less than in VOC's files: the same figures as with the files' numbers and `inclusive`."""
        records, found = random_scene(8, difficult=True, crowds=False)
        shift = np.array([1, 1, 0, 0])
        files = [
            record(r.image_id, [
                annotation(box + shift, label, difficult=hard)
                for box, label, hard in zip(r.boxes, r.labels, r.difficult, strict=True)
            ])
            for r in records
        ]  # fmt: skip
        shifted = {
            i: {**f, "boxes": f["boxes"] + f["boxes"].new_tensor([1, 1, 0, 0])} for i, f in found.items()
        }
        ours = filled(VocEvaluator(records, "abc"), found).compute()
        theirs = filled(VocEvaluator(files, "abc", inclusive=True), shifted).compute()
        assert ours == theirs
        assert 0.2 < ours["mAP"] < 0.9

    def test_a_recall_of_exactly_three_tenths_counts(self):
        assert np.arange(0, 1.1, 0.1)[3] > 0.3
        assert ap([1, 1, 1], 10, 11) == pytest.approx(4 / 11)

    def test_a_taken_object_is_not_replaced_by_a_free_one(self):
        """COCO takes the free one."""
        objects = [annotation((0, 0, 10, 10), 1), annotation((0, 0, 10, 14), 1)]
        found = {0: detections([[0, 0, 10, 10], [0, 0, 10, 11]], [1, 1], [0.9, 0.8])}
        assert filled(VocEvaluator([record(0, objects)], ["a"], points="all"), found).compute()["mAP"] == 0.5
        coco = filled(CocoEvaluator([record(0, objects)], ["a"]), found).compute()
        assert coco["boxes"]["figures"]["AP50"] == pytest.approx(1)


class TestProperties:
    def test_perfect_is_one(self):
        records, _ = random_scene(4, crowds=False)
        perfect = {r.image_id: detections(r.boxes, r.labels, np.full(len(r), 0.5)) for r in records}
        for points in (11, "all"):
            scores = filled(VocEvaluator(records, "abc", points=points, iou=0.9), perfect).compute()
            assert scores["mAP"] == 1

    def test_one_more_right_detection_never_hurts(self):
        random = np.random.default_rng(0)
        for _ in range(20):
            right = random.integers(0, 2, size=12).tolist()
            place = int(random.integers(0, 13))
            more = [*right[:place], 1, *right[place:]]
            for points in (11, "all"):
                assert ap(more, 14, points) >= ap(right, 14, points) - 1e-12

    def test_only_the_order_of_scores_matters(self):
        records, found = random_scene(5)
        other = {i: {**f, "scores": f["scores"] ** 3 / 2} for i, f in reversed(found.items())}
        ours = filled(VocEvaluator(records, "abc"), found).compute()
        theirs = filled(VocEvaluator(records[::-1], "abc"), other).compute()
        assert ours == theirs

    def test_a_class_without_objects_is_left_out(self):
        records = [record(0, [annotation((0, 0, 9, 9), 1), annotation((20, 20, 40, 40), 2, difficult=True)])]
        found = {0: detections([[0, 0, 9, 9], [0, 0, 9, 9]], [1, 3], [0.9, 0.8])}
        scores = filled(VocEvaluator(records, "abc"), found).compute()
        assert [row["AP"] for row in scores["per_class"]] == [1, None, None]
        assert [row["objects"] for row in scores["per_class"]] == [1, 0, 0]
        assert scores["mAP"] == 1
        assert scores["curves"][1:] == [None, None]


def slow_voc(records, found, label, points, iou, strict, inclusive):
    """The rules one by one, in exact fractions."""
    plus = 1 if inclusive else 0
    objects = {r.image_id: [i for i in range(len(r)) if r.labels[i] == label] for r in records}
    by_id = {r.image_id: r for r in records}
    positives = sum(not by_id[i].difficult[k] for i, ks in objects.items() for k in ks)
    ranked = sorted(
        (-float(f["scores"][k]), image, k)
        for image, f in found.items()
        for k in range(len(f["scores"]))
        if int(f["labels"][k]) == label
    )
    taken, verdicts = set(), []
    for _, image, k in ranked:
        a = [float(value) for value in found[image]["boxes"][k]]
        best, nearest = -1.0, None
        for index in objects[image]:
            b = by_id[image].boxes[index]
            w = min(a[2], b[2]) - max(a[0], b[0]) + plus
            h = min(a[3], b[3]) - max(a[1], b[1]) + plus
            shared = max(w, 0) * max(h, 0)
            area = [(c[2] - c[0] + plus) * (c[3] - c[1] + plus) for c in (a, b)]
            overlap = shared / (sum(area) - shared)
            if overlap > best:
                best, nearest = overlap, index
        if nearest is not None and (best > iou if strict else best >= iou):
            if by_id[image].difficult[nearest]:
                continue
            verdicts.append((image, nearest) not in taken)
            taken.add((image, nearest))
        else:
            verdicts.append(False)
    if not positives:
        return None
    curve = []
    for rank in range(1, len(verdicts) + 1):
        hits = sum(verdicts[:rank])
        curve.append((Fraction(hits, positives), Fraction(hits, rank)))

    def best_from(recall):
        return max((precision for reached, precision in curve if reached >= recall), default=Fraction(0))

    if points == 11:
        return float(sum(best_from(Fraction(k, 10)) for k in range(11)) / 11)
    steps = sorted({Fraction(0), *(recall for recall, _ in curve)})
    return float(sum((b - a) * best_from(b) for a, b in pairwise(steps)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("points", [11, "all"])
@pytest.mark.parametrize(("strict", "inclusive"), [(True, False), (False, True)])
def test_against_the_slow_implementation(seed, points, strict, inclusive):
    records, found = random_scene(100 + seed, difficult=True, crowds=False)
    rules = {"iou": 0.5, "strict": strict, "inclusive": inclusive}
    scores = filled(VocEvaluator(records, "abc", points=points, **rules), found).compute()
    for label in (1, 2, 3):
        expected = slow_voc(records, found, label, points, **rules)
        assert scores["per_class"][label - 1]["AP"] == pytest.approx(expected, abs=1e-12)


def test_options_are_checked():
    with pytest.raises(CBAMError, match=r"points takes 11 .* or 'all' .*; given 101"):
        VocEvaluator([], "abc", points=101)
    with pytest.raises(CBAMError, match="between 0 and 1"):
        VocEvaluator([], "abc", iou=50)


def test_nothing_to_score_is_nan():
    matches = filled(VocEvaluator([record(0, [])], "a"), {0: detections([], [], [])}).matches()
    assert isnan(average_precision(matches.classes[0], 11)[0, 0])
