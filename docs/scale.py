"""Arithmetic of a large training: data rate, time, cost, and what the order and the index of the images need.

    python docs/scale.py --images 1_281_167 --image-bytes 110e3 --throughput 2500 --devices 8 --epochs 90

Nothing here is measured: throughput and prices are yours to put in. `cbam train` prints its own images per second.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from cbam.data.shards.order import WINDOW

INDEX_BYTES = 12  # of a sample: offset, length, class
ORDER_BYTES = (
    32  # of a sample in the window: hash, index, their sorting and the result; see tests/data/shards
)
FOLDER_BYTES = 120  # of an image in a folder, as Python keeps its name and label in every process
FINGERPRINT_BYTES = 8  # of an image in a folder, in the file of what was checked
HOUR_S = 3600


@dataclass(frozen=True)
class Plan:
    """What is assumed; every field is an option of the command line."""

    images: float = 1_281_167
    """training images"""
    image_bytes: float = 110e3
    """bytes of an image file, on average"""
    val_images: float = 50_000
    """validation images, once an epoch"""
    epochs: float = 90
    """passes over the training images"""
    batch: float = 256
    """images of a step, over all devices"""
    devices: float = 8
    """GPUs, one process each"""
    throughput: float = 2500
    """images per second that one device trains on"""
    eval_speedup: float = 3
    """how much faster an image is evaluated than trained on"""
    workers: float = 8
    """loading processes of each device"""
    decode: float = 150
    """images per second that one loading process decodes and transforms"""
    per_shard: float = 1000
    """images in a shard"""
    window: float = WINDOW
    """shards that are shuffled together"""
    device_hour: float = 2.0
    """price of a device for an hour, in your currency"""
    spot_share: float = 0.4
    """price of a spot device, as a share of that"""
    interruptions_a_day: float = 3
    """how often a spot machine is taken away"""
    restart_minutes: float = 5
    """from then until the first step of the next one"""
    lost_minutes: float = 1
    """work since the last save when it stops; none if the signal is seen"""
    get_price: float = 0.4e-6
    """price of one request to the object store"""
    stored_gb_month: float = 0.023
    """price of a gigabyte in the store for a month"""


def figures(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Yield (what, formula, value) of everything that follows from `plan`."""
    rate = plan.devices * plan.throughput
    yield "images a second", "devices x throughput", f"{rate:,.0f}"
    yield "data rate", "... x image_bytes", f"{rate * plan.image_bytes / 1e6:,.0f} MB/s"
    yield "loading processes a device needs", "throughput / decode", f"{plan.throughput / plan.decode:.1f}"
    loaders = min(1.0, plan.workers * plan.decode / plan.throughput)
    rate *= loaders
    yield (
        "share of the speed that the workers allow",
        "workers x decode / throughput, at most 1",
        f"{loaders:.2f}",
    )
    yield "time of a step", "batch / (images a second x share)", f"{1000 * plan.batch / rate:,.0f} ms"
    yield "steps an epoch", "images / batch", f"{plan.images // plan.batch:,.0f}"
    epoch = plan.images / rate + plan.val_images / (rate * plan.eval_speedup)
    yield "time of an epoch", "images / rate + val_images / (rate x eval_speedup)", f"{epoch / 60:,.1f} min"
    hours = epoch * plan.epochs / HOUR_S
    yield "time of the training", "... x epochs", f"{hours:,.1f} h"
    yield from _costs(plan, hours)
    yield from _storage(plan)


def _costs(plan: Plan, hours: float) -> Iterator[tuple[str, str, str]]:
    cost = hours * plan.devices * plan.device_hour
    yield "cost of the devices", "hours x devices x device_hour", f"{cost:,.0f}"
    lost = plan.interruptions_a_day / 24 * (plan.restart_minutes + plan.lost_minutes) / 60
    yield "share of spot time lost", "interruptions a day x (restart + lost minutes)", f"{lost:.1%}"
    spot = cost * plan.spot_share / (1 - lost)
    yield (
        "cost on spot machines",
        "... x spot_share / (1 - lost)",
        f"{spot:,.0f} in {hours / (1 - lost):,.1f} h",
    )
    requests = plan.images * plan.epochs
    yield (
        "requests to the store",
        "images x epochs, less where neighbours are read together",
        f"{requests:,.0f}",
    )
    yield "cost of the requests", "... x get_price", f"{requests * plan.get_price:,.0f}"


def _storage(plan: Plan) -> Iterator[tuple[str, str, str]]:
    total = plan.images * plan.image_bytes
    yield "size of the set", "images x image_bytes", _size(total)
    yield "cost of keeping it a month", "... x stored_gb_month", f"{total / 1e9 * plan.stored_gb_month:,.0f}"
    yield "shards", "images / per_shard", f"{plan.images / plan.per_shard:,.0f}"
    yield "size of a shard", "per_shard x image_bytes", _size(plan.per_shard * plan.image_bytes)
    yield "index, once a machine", f"images x {INDEX_BYTES}", _size(plan.images * INDEX_BYTES)
    window = min(plan.images, plan.window * plan.per_shard)
    yield (
        "order of an epoch, each process",
        f"window x per_shard x {ORDER_BYTES}",
        _size(window * ORDER_BYTES),
    )
    yield "the same of a folder", f"images x {ORDER_BYTES}", _size(plan.images * ORDER_BYTES)
    yield "names of a folder, each process", f"images x {FOLDER_BYTES}", _size(plan.images * FOLDER_BYTES)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def main() -> None:
    """Print the assumptions and what follows from them, as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, field in Plan.__dataclass_fields__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=field.default, metavar="X")
    plan = Plan(**vars(parser.parse_args()))
    assumed = ", ".join(f"{name} {value:,.12g}" for name, value in vars(plan).items())
    print(textwrap.fill(f"assumed: {assumed}", 118))
    print("\n| what | formula | value |\n|---|---|---|")
    for row in figures(plan):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
