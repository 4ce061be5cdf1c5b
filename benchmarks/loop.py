"""What the training loop costs beside a bare PyTorch loop of the same network, and what the loader gives alone.

    python benchmarks/loop.py --model resnet20 --steps 40 --rounds 9

Both loops train the same network on the same batches of Fashion-MNIST, in turns; a ratio is of one round, and the
table shows the median of the rounds with the quartiles. The bare loop is as people write it: forward, loss, backward,
step. Ours adds schedule, seeding, counts of correct predictions, checks of the loss and the position. Needs
pip install '.[compare]'.
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
from cbam.files import write_atomically
from cbam.models import build_model
from cbam.runs.environment import describe_environment
from cbam.train.checkpoints import Checkpoints
from cbam.train.config import TrainConfig
from cbam.train.device import make_accelerator
from cbam.train.loop import Callbacks, train_model


class Enough(Exception):
    """Ends our loop where the clock has been read."""


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    config = TrainConfig(
        epochs=1, batch_size=options.batch_size, workers=options.workers, device=options.device
    )
    rows = []
    for number in range(options.rounds):
        measured = {}
        order = [ours, bare] if number % 2 else [bare, ours]
        for loop in order:
            measured[loop.__name__] = loop(data, config, options)
        measured["loader"] = loader_alone(data, config)
        rows.append(measured)
        print(
            f"round {number + 1}: " + ", ".join(f"{k} {v:,.0f} images/s" for k, v in measured.items()),
            flush=True,
        )
    ratios = sorted(row["ours"] / row["bare"] for row in rows)
    low, middle, high = quartiles(ratios)
    print(f"ours / bare: {middle:.3f} [{low:.3f}, {high:.3f}] (median and quartiles of {len(rows)} rounds)")
    loader = statistics.median(row["loader"] / row["ours"] for row in rows)
    print(f"the loader alone gives {loader:.1f} times as many images as the loop takes")
    if options.output:
        settings = {k: str(v) for k, v in vars(options).items()}
        content = {
            "settings": settings,
            "environment": describe_environment(sys.argv, config.device),
            "rounds": rows,
            "ours_per_bare": {"p25": low, "p50": middle, "p75": high},
        }
        write_atomically(options.output, json.dumps(content, indent=1) + "\n")
    return 0


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the quartiles of some values."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


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
        train_model(
            network(data, options),
            data,
            config,
            seed=0,
            checkpoints=Checkpoints(Path(folder)),
            callbacks=Callbacks(step=on_step),
        )
    return options.steps * config.batch_size / (marks[1] - marks[0])


def bare(data: ImageData, config: TrainConfig, options: Any) -> float:
    """Return the images a second of a loop as people write it."""
    device = make_accelerator(config).device
    model = network(data, options).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loader = make_loader(
        data.train, batch_size=config.batch_size, seed=0, shuffle=True, workers=config.workers, drop_last=True
    )
    start = 0.0
    for step, (images, labels) in enumerate(loader):
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


def loader_alone(data: ImageData, config: TrainConfig) -> float:
    """Return the images a second of the loader without a network."""
    loader = make_loader(
        data.train, batch_size=config.batch_size, seed=0, shuffle=True, workers=config.workers, drop_last=True
    )
    start, seen = time.perf_counter(), 0
    for images, _ in loader:
        seen += len(images)
    return seen / (time.perf_counter() - start)


def wait_for_device() -> None:
    """Let the accelerator finish what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
