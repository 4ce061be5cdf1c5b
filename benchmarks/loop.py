"""What the training loop costs beside a bare PyTorch loop of the same network, and what the loader gives alone.

    python benchmarks/loop.py --model resnet20 --steps 40 --rounds 9

Both train the same network on the same batches of Fashion-MNIST, in turns; the table shows the median of the rounds'
ratios with quartiles. The bare loop has forward, loss, backward and step; ours adds schedule, seeding, counts of
correct predictions, checks of the loss and the position. Needs pip install '.[compare]'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from cbam.attach import attach
from cbam.data import ImageData, load_data, make_loader
from cbam.evaluate.timing import quartiles
from cbam.files import write_atomically
from cbam.models import build_model
from cbam.runs.environment import describe_environment
from cbam.train.checkpoints import Checkpoints
from cbam.train.classification import Classification
from cbam.train.config import TrainConfig
from cbam.train.device import make_accelerator
from cbam.train.loop import Callbacks, train_model


class Enough(Exception):
    """Ends our loop once the time is taken."""


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--attention", default="none", choices=["none", "se", "cbam"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40, help="per loop and round, after two to warm up")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    data = load_data("fashion-mnist", limit_train=(options.steps + 3) * options.batch_size, limit_val=100)
    size = {"batch_size": options.batch_size, "workers": options.workers}
    config = TrainConfig(epochs=1, device=options.device, **size)
    rows = []
    for number in range(options.rounds):
        loops = [ours, bare] if number % 2 else [bare, ours]
        measured = {loop.__name__: loop(data, config, options) for loop in loops}
        measured["loader"] = loader_alone(data, config)
        rows.append(measured)
        rates = ", ".join(f"{name} {rate:,.0f} images/s" for name, rate in measured.items())
        print(f"round {number + 1}: {rates}", flush=True)
    low, middle, high = quartiles([row["ours"] / row["bare"] for row in rows])
    print(f"ours / bare: {middle:.3f} [{low:.3f}, {high:.3f}] (median and quartiles of {len(rows)} rounds)")
    loader = statistics.median(row["loader"] / row["ours"] for row in rows)
    print(f"the loader alone gives {loader:.1f} times as many images as the loop takes")
    if options.output:
        content = {
            "settings": {name: str(value) for name, value in vars(options).items()},
            "environment": describe_environment(sys.argv, config.device),
            "rounds": rows,
            "ours_per_bare": {"p25": low, "p50": middle, "p75": high},
        }
        write_atomically(options.output, json.dumps(content, indent=1) + "\n")
    return 0


def network(data: ImageData, options: Any) -> torch.nn.Module:
    """Return the network as both loops train it."""
    torch.manual_seed(0)
    model = build_model(options.model, len(data.classes), in_channels=data.input_size[0])
    if options.attention != "none":
        attach(model, options.attention, init="paper", input_size=data.input_size)
    return model


def ours(data: ImageData, config: TrainConfig, options: Any) -> float:
    """Return the images a second of `cbam.train.loop`."""
    marks = []

    def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
        if step in (1, options.steps + 1):
            wait_for_device()
            marks.append(time.perf_counter())
        if step == options.steps + 1:
            raise Enough

    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        files, callbacks = Checkpoints(Path(folder)), Callbacks(step=on_step)
        task, peak = Classification(config, data), config.peak_lr(fine_tuning=False)
        train_model(network(data, options), task, peak=peak, seed=0, checkpoints=files, callbacks=callbacks)
    return options.steps * config.batch_size / (marks[1] - marks[0])


def bare(data: ImageData, config: TrainConfig, options: Any) -> float:
    """Return the images a second of a loop as people write it."""
    device = make_accelerator(config).device
    model = network(data, options).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    start = 0.0
    for step, (images, labels) in enumerate(batches(data, config)):
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if step == 1:
            wait_for_device()
            start = time.perf_counter()
        if step == options.steps + 1:
            break
    wait_for_device()
    return options.steps * config.batch_size / (time.perf_counter() - start)


def batches(data: ImageData, config: TrainConfig) -> Any:
    """Return the loader of the bare loop."""
    size = {"batch_size": config.batch_size, "workers": config.workers}
    return make_loader(data.train, seed=0, shuffle=True, drop_last=True, **size)


def loader_alone(data: ImageData, config: TrainConfig) -> float:
    """Return the images a second of the loader without a network."""
    loader, start = batches(data, config), time.perf_counter()
    seen = sum(len(images) for images, _ in loader)
    return seen / (time.perf_counter() - start)


def wait_for_device() -> None:
    """Let the accelerator finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
