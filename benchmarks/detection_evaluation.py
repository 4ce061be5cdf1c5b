"""Seconds to evaluate 5,000 images x 100 detections beside faster-coco-eval alone, in turn; and the bootstrap's.

    python benchmarks/detection_evaluation.py --rounds 5 --output runs/detection-evaluation.json

Ours: `update` for each image, from tensors, then `compute`. Alone: faster-coco-eval on the same detections as the list
of dicts that a results file holds, already in memory. Boxes of 80 classes. Needs pip install '.[dev]'.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster, __version__

from cbam.data.detection.records import Annotation, make_record
from cbam.evaluate.detection import CocoEvaluator, bootstrap_ap
from cbam.files import write_atomically
from cbam.runs.environment import describe_environment

CLASSES = [f"class {number}" for number in range(80)]


def _image(number, rng):
    """Return an image with 7 objects, as COCO has on average, and 100 detections, half of them near one."""
    corner, size, labels = rng.uniform(0, 400, (7, 2)), rng.uniform(8, 200, (7, 2)), rng.integers(1, 81, 7)
    boxes, nearest = np.hstack([corner, corner + size]), rng.integers(0, 7, 100)
    objects = [Annotation(tuple(box), int(label)) for box, label in zip(boxes, labels, strict=True)]
    moved = boxes[nearest] + rng.normal(0, 8, (100, 4)) + 150 * (np.arange(100)[:, None] >= 50)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    found = {"boxes": torch.from_numpy(moved).float(), "scores": torch.from_numpy(rng.random(100)).float()}
    found["labels"] = torch.from_numpy(labels[nearest])
    return make_record(number, Path(f"{number}.jpg"), (640, 480), objects), found


def _ours(pairs):
    evaluator = CocoEvaluator([record for record, _ in pairs], CLASSES)
    for record, found in pairs:
        evaluator.update(record.image_id, found)
    return evaluator.compute()["boxes"]["figures"]["AP"], evaluator


def _alone(truth, results):
    coco = COCO(truth)
    run = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=lambda _: None)
    run.run()
    return run.stats[0]


def _annotations(record):
    for (x, y, p, q), label, area in zip(record.boxes.tolist(), record.labels, record.areas, strict=True):
        row = {"image_id": record.image_id, "category_id": int(label), "bbox": [x, y, p - x, q - y]}
        yield {**row, "area": float(area), "iscrowd": 0}


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--output", type=Path, default=Path("runs/detection-evaluation.json"))
options, rng = parser.parse_args(), np.random.default_rng(0)
pairs, seconds = [_image(number, rng) for number in range(1, 5001)], {"ours": [], "alone": []}
truth = {"images": [{"id": r.image_id, "height": r.height, "width": r.width} for r, _ in pairs]}
truth["categories"] = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
for _ in range(options.rounds):
    clock = [time.perf_counter()]
    score, evaluator = _ours(pairs)
    clock.append(time.perf_counter())
    rows, results = (row for record, _ in pairs for row in _annotations(record)), evaluator.results()
    truth["annotations"] = [{"id": number, **row} for number, row in enumerate(rows, 1)]
    clock.append(time.perf_counter())
    assert abs(score - _alone(truth, results)) < 1e-9
    seconds["ours"].append(clock[1] - clock[0])
    seconds["alone"].append(time.perf_counter() - clock[2])
matches, start = _ours(pairs[:500])[1].matches(), time.perf_counter()
bootstrap_ap(matches, resamples=1000)
report = {"seconds": seconds, "bootstrap of 500 images x 1,000 (s)": time.perf_counter() - start}
report["ratio"] = float(np.median(np.divide(*seconds.values())))
report |= {"environment": describe_environment([], "cpu"), "faster-coco-eval": __version__}
print(write_atomically(options.output, json.dumps(report, indent=1)).read_text())
