"""Seconds to evaluate 5,000 images x 100 detections beside faster-coco-eval alone, in turn; and the bootstrap's.

    python benchmarks/detection_evaluation.py --images 5000 --rounds 5 --output runs/detection-evaluation.json

Ours: `update` for each image, from tensors, then `compute`. Alone: faster-coco-eval on the same detections as the list
of dicts that a results file holds, already in memory. Boxes of 80 classes. Needs pip install '.[dev]'.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster

from cbam.data.detection.records import Annotation, make_record
from cbam.evaluate.detection import CocoEvaluator, bootstrap_ap
from cbam.files import write_atomically

CLASSES = tuple(f"class {number}" for number in range(80))


def make_set(images, detections):
    """Make images of 640 x 480 with 7 objects each, as COCO has on average; half of the detections are near one."""
    rng = np.random.default_rng(0)
    records, found = [], {}
    for image in range(1, images + 1):
        corner, size = rng.uniform(0, 400, (7, 2)), rng.uniform(8, 200, (7, 2))
        boxes, labels = np.hstack([corner, corner + size]), rng.integers(1, 81, 7)
        objects = [Annotation(tuple(box), int(label)) for box, label in zip(boxes, labels, strict=True)]
        records.append(make_record(image, Path(f"{image}.jpg"), (640, 480), objects))
        nearest = rng.integers(0, 7, detections)
        guesses = boxes[nearest] + rng.normal(0, 8, (detections, 4))
        guesses[detections // 2 :] += 150
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 1)
        scores = torch.from_numpy(rng.random(detections)).float()
        boxes = torch.from_numpy(guesses).float()
        found[image] = {"boxes": boxes, "scores": scores, "labels": torch.from_numpy(labels[nearest])}
    return records, found


def ours(records, found):
    """Give all detections to an evaluator, and evaluate them."""
    evaluator = CocoEvaluator(records, CLASSES)
    for image, guesses in found.items():
        evaluator.update(image, guesses)
    return evaluator.compute()["boxes"]["figures"]["AP"], evaluator


def alone(truth, results):
    """Evaluate a results file."""
    coco = COCO(truth)
    run = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=lambda _: None)
    run.run()
    return float(run.stats[0])


def coco_form(records):
    """Return the records as an annotation file has them."""
    annotations = [
        {"image_id": r.image_id, "category_id": int(label), "bbox": [x, y, w - x, h - y], "area": area, "iscrowd": 0}
        for r in records
        for (x, y, w, h), label, area in zip(r.boxes.tolist(), r.labels, r.areas.tolist(), strict=True)
    ]  # fmt: skip
    return {
        "images": [{"id": r.image_id, "height": r.height, "width": r.width} for r in records],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
        "annotations": [{"id": n, **entry} for n, entry in enumerate(annotations, 1)],
    }


def main():
    """Measure in turn, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/detection-evaluation.json"))
    options = parser.parse_args()
    records, found = make_set(options.images, 100)
    seconds = {"ours": [], "alone": []}
    for _ in range(options.rounds):
        start = time.perf_counter()
        score, evaluator = ours(records, found)
        seconds["ours"].append(time.perf_counter() - start)
        truth, results = coco_form(records), evaluator.results()
        start = time.perf_counter()
        same = alone(truth, results)
        seconds["alone"].append(time.perf_counter() - start)
        assert abs(score - same) < 1e-9, (score, same)
    few, _ = make_set(500, 100)
    _, evaluator = ours(few, {record.image_id: found[record.image_id] for record in few})
    start = time.perf_counter()
    bootstrap_ap(evaluator.matches(), resamples=1000)
    report = {
        "seconds": seconds,
        "ratio": float(np.median(np.divide(seconds["ours"], seconds["alone"]))),
        "bootstrap_500_images_1000_resamples_s": time.perf_counter() - start,
        "versions": {name: version(name) for name in ("faster-coco-eval", "numpy", "torch")},
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(report, indent=1))
    write_atomically(options.output, json.dumps(report, indent=1))


main()
