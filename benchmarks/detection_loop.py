"""What the loop costs beside torchvision's reference loop on the same detector and data; waiting for data shown apart.

    cbam detect generate garments --images 200 --formats coco
    python benchmarks/detection_loop.py --data coco:garments/coco --steps 8 --rounds 7

Both train the same detector on the same batches of the same loader, in turns; the table shows the median of the
rounds' ratios with quartiles, by the clock and by the processor's time (for a busy machine; only with `--workers 0` on
a CPU, since it leaves out workers and accelerators). The reference loop is that of torchvision's
`references/detection/engine.py`: losses summed, reduced and checked, SGD, a warm-up.
Needs pip install '.[compare,detect]'.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cbam.detect.build import build
from cbam.detect.config import DetectRunConfig
from cbam.detect.recipe import DetectTrainConfig
from cbam.detect.run import detection
from cbam.evaluate.timing import quartiles
from cbam.train.checkpoints import Checkpoints
from cbam.train.device import make_accelerator
from cbam.train.loop import Callbacks, train_model

FEW = "rpn_pre_nms_top_n_train=200,rpn_post_nms_top_n_train=50,box_batch_size_per_image=24"
_WARM = 2  # steps before the clock starts


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="fasterrcnn_resnet18_fpn")
    parser.add_argument("--attention", default="none")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="per loop and round, after two to warm up")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    recipe = DetectTrainConfig(
        iterations=options.steps + _WARM,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
    )
    config = DetectRunConfig(
        data=options.data, model=options.model, attention=options.attention, image_size=options.image_size,
        detector_options=FEW, train=recipe, limit_val=1,
    )  # fmt: skip
    task = detection(config, recipe, config.load())
    clock, processor, waits = [], [], []
    for number in range(options.rounds):
        loops = [ours, reference] if number % 2 else [reference, ours]
        found = {loop.__name__: loop(config, task, options.steps) for loop in loops}
        clock.append(found["reference"][0] / found["ours"][0])
        processor.append(found["reference"][1] / found["ours"][1])
        waits.append(found["ours"][2])
        images = options.steps * options.batch_size
        rates = ", ".join(f"{name} {images / loop[0]:.2f} images/s" for name, loop in found.items())
        print(f"round {number + 1}: {rates}", flush=True)
    for name, found_ratios in (("clock", clock), ("processor's time", processor)):
        low, middle, high = quartiles(found_ratios)
        print(f"ours / reference, images/s by the {name}: {middle:.3f} [{low:.3f}, {high:.3f}]")
    print(f"median and quartiles of {len(clock)} rounds")
    print(f"waiting for data: {statistics.median(waits):.1%} of our time")
    return 0


def ours(config: DetectRunConfig, task: Any, steps: int) -> tuple[float, float, float]:
    """Return the seconds of `cbam.train.loop`, by clock and processor, and the share of time waiting for data."""
    marks: list[tuple[float, float]] = []
    rows: list[dict[str, Any]] = []

    def on_step(epoch: int, step: int, all_steps: int, loss: float) -> None:
        if step in (_WARM - 1, _WARM + steps - 1):
            marks.append(now())

    model = build(config, config.attention, 0, len(task.data.classes))
    with tempfile.TemporaryDirectory() as folder:
        callbacks = Callbacks(step=on_step, epoch=rows.append)
        train_model(
            model, task, peak=0.01, seed=0, checkpoints=Checkpoints(Path(folder)), callbacks=callbacks
        )
    whole = (steps + _WARM) * config.train.batch_size / rows[0]["images_per_s"]
    return *passed(*marks), rows[0]["data_wait_s"] / whole


def reference(config: DetectRunConfig, task: Any, steps: int) -> tuple[float, float]:
    """Return the seconds of a loop as torchvision's reference has it, by clock and processor."""
    device = make_accelerator(config.train).device
    torch.manual_seed(0)
    model = build(config, config.attention, 0, len(task.data.classes)).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-3, total_iters=1000)
    loader, _ = task.loaders(0, 0, 1)
    start = now()
    for step, (images, targets) in enumerate(loader):
        images = [image.to(device) for image in images]
        targets = [{name: target[name].to(device) for name in ("boxes", "labels")} for target in targets]
        losses = sum(model(images, targets).values())
        if not math.isfinite(losses.item()):
            sys.exit(f"the loss is {losses.item()}")
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        warmup.step()
        if step == _WARM - 1:
            start = now()
        if step == _WARM + steps - 1:
            break
    return passed(start, now())


def now() -> tuple[float, float]:
    """Return the clock and the processor's time of this process, after the accelerator has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def passed(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Return the seconds between two readings."""
    return end[0] - start[0], end[1] - start[1]


if __name__ == "__main__":
    sys.exit(main())
