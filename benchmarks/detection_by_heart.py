"""Whether a detector can learn eight images by heart: if not, something between annotations and boxes is wrong.

    cbam detect generate runs/garments --images 1000 --validation 200 --size 64 --classes Trouser,Sneaker,Bag \
        --most-objects 2
    python benchmarks/detection_by_heart.py --data coco:runs/garments/coco --model ssd300_mobilenet --width 0.25

It trains on all eight in every step, with AdamW and one cycle of the rate, and prints the losses and the average
precision on the same images.
"""

from __future__ import annotations

import argparse
import time

import torch

from cbam.detect.build import build
from cbam.detect.config import DetectorConfig
from cbam.evaluate.detection import CocoEvaluator

IMAGES = 8
CLIP = 10.0


def main() -> None:
    """Train and judge."""
    parser = argparse.ArgumentParser(description="Eight images by heart.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, help="not for SSD300 and StairNet300")
    parser.add_argument("--detector-options", default="", help="as of cbam detect train")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--lr", type=float, default=0.003)
    options = parser.parse_args()
    config = DetectorConfig(
        data=options.data, model=options.model, width=options.width, image_size=options.image_size,
        detector_options=options.detector_options, limit_train=IMAGES, limit_val=IMAGES,
    )  # fmt: skip
    names = ("boxes", "labels", "masks") if options.model.startswith("maskrcnn") else ("boxes", "labels")
    data = config.load()
    items = [data.train[i] for i in range(len(data.train))]
    images = [image.as_subclass(torch.Tensor).float() / 255 for image, _ in items]
    targets = [{name: t[name].as_subclass(torch.Tensor) for name in names} for _, t in items]
    torch.manual_seed(0)
    model = build(config, "none", 0, len(data.classes)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps)
    start = time.process_time()
    for step in range(1, options.steps + 1):
        losses = model(images, [dict(target) for target in targets])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        if step == 1 or step % 20 == 0:
            print(step, {name: round(value.item(), 2) for name, value in losses.items()}, flush=True)
    evaluator = CocoEvaluator(data.train.records, data.classes)
    with torch.no_grad():
        for found, (_, target) in zip(model.eval()(images), items, strict=True):
            evaluator.update(target["image_id"], found)
    figures = evaluator.compute()["boxes"]["figures"]
    spent = time.process_time() - start
    print(f"AP {figures['AP']:.1%}, AP50 {figures['AP50']:.1%} on the same images; {spent:.0f} s of one core")


if __name__ == "__main__":
    main()
