"""The bootstrap of mAP: each resample equals an evaluation of copied images; intervals are paired and seeded."""

import numpy as np
import pytest

from cbam.data.detection.records import make_record
from cbam.errors import CBAMError
from cbam.evaluate.detection import CocoEvaluator, VocEvaluator, bootstrap_ap
from cbam.evaluate.detection.average_precision import average_precision
from tests.evaluate.detection.scenes import annotation, detections, filled, random_scene, record

CLASSES = ("a", "b", "c")


def distinct(found, seed):
    """The same detections with scores that are all different: how copies of equal scores are ranked is a convention."""
    random = np.random.default_rng(seed)
    return {
        i: {**f, "scores": f["scores"].new_tensor(random.permutation(10_000)[: len(f["scores"])] / 10_000)}
        for i, f in found.items()
    }


def copied(records, found, weights):
    """The records and detections with each image as often as its weight says, under new ids."""
    copies, theirs, number = [], {}, 0
    for item, weight in zip(sorted(records, key=lambda r: r.image_id), weights, strict=True):
        for _ in range(weight):
            number += 1
            rows = zip(item.boxes, item.labels, item.areas, item.iscrowd, item.difficult, strict=True)
            objects = [
                annotation(box, int(label), area=area, crowd=bool(crowd), difficult=bool(hard))
                for box, label, area, crowd, hard in rows
            ]
            copies.append(make_record(number, item.path, (item.width, item.height), objects))
            theirs[number] = found[item.image_id]
    return copies, theirs


@pytest.mark.parametrize("seed", range(3))
def test_weights_equal_copies_of_images(seed):
    records, found = random_scene(seed, difficult=True)
    found = distinct(found, seed)
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(records), np.full(len(records), 1 / len(records)), size=4)
    coco = filled(CocoEvaluator(records, CLASSES), found)
    voc = {points: filled(VocEvaluator(records, CLASSES, points=points), found) for points in (11, "all")}
    for row in weights:
        copies, theirs = copied(records, found, row)
        scores = filled(CocoEvaluator(copies, CLASSES), theirs).compute()["boxes"]["per_class"]
        for matched, score in zip(coco.matches().classes, scores, strict=True):
            ours = average_precision(matched, 101, row[None]).mean()
            assert ours == pytest.approx(
                np.nan if score["AP"] is None else score["AP"], nan_ok=True, abs=1e-12
            )
        for points, evaluator in voc.items():
            scores = filled(VocEvaluator(copies, CLASSES, points=points), theirs).compute()["per_class"]
            for matched, score in zip(evaluator.matches().classes, scores, strict=True):
                ours = average_precision(matched, points, row[None])[0, 0]
                assert ours == pytest.approx(
                    np.nan if score["AP"] is None else score["AP"], nan_ok=True, abs=1e-12
                )


@pytest.mark.parametrize("masks", [False, True])
def test_the_estimate_is_coco_s_ap(masks):
    records, found = random_scene(11, images=40, masks=masks)
    evaluator = filled(CocoEvaluator(records, CLASSES, masks=masks), found)
    interval = bootstrap_ap(evaluator.matches(masks=masks), resamples=50)
    figures = evaluator.compute()["masks" if masks else "boxes"]["figures"]
    assert interval.estimate == pytest.approx(figures["AP"], abs=1e-12)
    assert interval.low < interval.estimate < interval.high


def test_limits_of_detections_hold():
    records, found = random_scene(3, images=20)
    evaluator = filled(CocoEvaluator(records, CLASSES, max_detections=(1, 2, 3)), found)
    expected = evaluator.compute()["boxes"]["figures"]["AP"]
    assert bootstrap_ap(evaluator.matches(), resamples=2).estimate == pytest.approx(expected, abs=1e-12)


def test_a_detector_does_not_differ_from_itself_and_pairs_are_narrower():
    records, found = random_scene(11, images=60)
    worse = {i: {**f, "boxes": f["boxes"] + 1} for i, f in found.items()}
    ours = filled(CocoEvaluator(records, CLASSES), found).matches()
    theirs = filled(CocoEvaluator(records, CLASSES), worse).matches()
    same = bootstrap_ap(ours, ours, resamples=50)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    single, gap = bootstrap_ap(ours, resamples=200), bootstrap_ap(ours, theirs, resamples=200)
    assert 0 < gap.low < gap.estimate < gap.high
    assert gap.high - gap.low < (single.high - single.low) / 2
    assert gap == bootstrap_ap(ours, theirs, resamples=200)
    assert gap != bootstrap_ap(ours, theirs, resamples=200, seed=1)
    back = bootstrap_ap(theirs, ours, resamples=200)
    assert (back.estimate, back.low, back.high) == pytest.approx((-gap.estimate, -gap.high, -gap.low))


def test_several_runs_are_averaged():
    records, found = random_scene(11, images=30)
    worse = {i: {**f, "boxes": f["boxes"] + 1} for i, f in found.items()}
    first, second = (filled(CocoEvaluator(records, CLASSES), f).matches() for f in (found, worse))
    both = bootstrap_ap([first, second], resamples=20)
    assert both.estimate == pytest.approx(
        (bootstrap_ap(first, resamples=2).estimate + bootstrap_ap(second, resamples=2).estimate) / 2
    )
    assert bootstrap_ap([first, second], [second, first], resamples=20).high == pytest.approx(0)


def test_the_interval_covers():
    """Objects found independently with probability 0.6: at IoU 0.5 the AP at 11 recalls of many such sets is known."""
    random = np.random.default_rng(5)

    def one_set(images):
        records = [record(i + 1, [annotation((0, 0, 50, 50), 1)]) for i in range(images)]
        found = {
            r.image_id: detections(
                [[0, 0, 50, 50]] if random.random() < 0.6 else [[60, 60, 90, 90]], [1], [random.random()]
            )
            for r in records
        }
        return filled(VocEvaluator(records, "a", points="all"), found)

    truth = np.mean([one_set(60).compute()["mAP"] for _ in range(60)])
    intervals = [bootstrap_ap(one_set(60).matches(), points="all", resamples=200) for _ in range(60)]
    covered = sum(interval.low <= truth <= interval.high for interval in intervals)
    assert 50 <= covered <= 60


def test_what_does_not_fit_is_refused():
    records, found = random_scene(1)
    ours = filled(CocoEvaluator(records, CLASSES), found).matches()
    fewer = {r.image_id: found[r.image_id] for r in records[1:]}
    theirs = filled(CocoEvaluator(records[1:], CLASSES), fewer).matches()
    with pytest.raises(CBAMError, match="image ids differ"):
        bootstrap_ap(ours, theirs)
    with pytest.raises(CBAMError, match="IoU thresholds differ"):
        bootstrap_ap(ours, filled(VocEvaluator(records, CLASSES), found).matches())
    with pytest.raises(CBAMError, match="confidence"):
        bootstrap_ap(ours, confidence=95)
    with pytest.raises(CBAMError, match="no run"):
        bootstrap_ap([])
    empty = filled(CocoEvaluator([record(1, [])], CLASSES), {1: detections([], [], [])}).matches()
    with pytest.raises(CBAMError, match="no image has an object"):
        bootstrap_ap(empty, resamples=5)
