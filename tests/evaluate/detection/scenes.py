"""Random images with objects and detections: crowds, difficult objects, empty images, equal scores, masks."""

from pathlib import Path

import numpy as np
import torch

from cbam.data.detection.records import Annotation, make_record

HEIGHT, WIDTH = 96, 128


def annotation(box, label, *, crowd=False, difficult=False, area=None, segmentation=None):
    return Annotation(tuple(box), label, area, crowd, difficult, segmentation)


def record(image_id, annotations, height=HEIGHT, width=WIDTH):
    return make_record(image_id, Path(f"{image_id}.jpg"), (width, height), annotations)


def detections(boxes, labels, scores, masks=None):
    found = {
        "boxes": torch.tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4)),
        "labels": torch.tensor(np.array(labels, dtype=np.int64)),
        "scores": torch.tensor(np.array(scores, dtype=np.float32)),
    }
    return found if masks is None else {**found, "masks": masks}


def random_box(random, largest=100):
    x, y = random.uniform(0, WIDTH - 4), random.uniform(0, HEIGHT - 4)
    w, h = random.uniform(2, largest, size=2)
    return np.array([x, y, min(x + w, WIDTH), min(y + h, HEIGHT)]).round(1)


def polygon(box):
    """A hexagon in the box."""
    x1, y1, x2, y2 = map(float, box)
    xm = (x1 + x2) / 2
    return [[x1, y1, xm, y1, x2, (y1 + y2) / 2, x2, y2, xm, y2, x1, (y1 + y2) / 2]]


def uncompressed(mask):
    """COCO's plain run lengths, column by column, the first of zeros."""
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def box_mask(box):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    x1, y1, x2, y2 = (round(float(edge)) for edge in box)
    mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1
    return mask


def cut_mask(box):
    """The mask of a box without its lower right corner: smaller than its box, as masks are."""
    mask = box_mask(box)
    x, y = (round(float(low + high) / 2) for low, high in zip(box[:2], box[2:], strict=True))
    mask[y:, x:] = 0
    return mask if mask.any() else box_mask(box)


def random_scene(seed, images=12, classes=3, *, masks=False, crowds=True, difficult=False):
    """Return records and {image id: detections}; ids are sparse, some images have no objects or no detections."""
    random = np.random.default_rng(seed)
    records, found = [], {}
    for image_id in random.permutation(1000)[:images].tolist():
        count = 0 if random.random() < 0.15 else int(random.integers(1, 7))
        objects, guesses = [], []
        for _ in range(count):
            box, label = random_box(random), int(random.integers(1, classes + 1))
            crowd = crowds and random.random() < 0.15
            area = random.uniform(50, 12000)  # smaller or larger than its box, as masks have it
            segmentation = (uncompressed(box_mask(box)) if crowd else polygon(box)) if masks else None
            hard = difficult and random.random() < 0.3
            objects.append(
                annotation(box, label, crowd=crowd, difficult=hard, area=area, segmentation=segmentation)
            )
            for _ in range(int(random.integers(0, 4))):
                near = box + random.normal(0, random.choice([0, 1, 6]), size=4)
                guesses.append(
                    (near, label if random.random() < 0.85 else int(random.integers(1, classes + 1)))
                )
        guesses += [
            (random_box(random), int(random.integers(1, classes + 1))) for _ in range(random.integers(0, 6))
        ]
        if random.random() < 0.1:
            guesses = []
        boxes = np.array([box for box, _ in guesses]).reshape(-1, 4)
        boxes = np.stack([boxes[:, :2].clip(0), boxes[:, 2:]], 1).reshape(-1, 4)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1).clip(None, [WIDTH, HEIGHT])
        scores = random.integers(1, 12, size=len(guesses)) / 12  # many are equal
        drawn = None
        if masks:
            drawn = torch.from_numpy(
                np.array([cut_mask(box) for box in boxes], dtype=np.float32).reshape(-1, 1, HEIGHT, WIDTH)
            )
        records.append(record(image_id, objects))
        found[image_id] = detections(boxes, [label for _, label in guesses], scores, drawn)
    return records, found


def filled(evaluator, found):
    for image_id, guesses in found.items():
        evaluator.update(image_id, guesses)
    return evaluator
