"""Images per second from a folder and from tar shards of the same real JPEG files, in turn; the ratio is the result.

    python benchmarks/loader.py --images 2000 --rounds 7 --output runs/loader

The pictures are cuts of scikit-image's photographs, which are made once. After the first round everything is in the
machine's page cache: what is compared is the work of opening and reading files, not a disk. Needs pip install '.[dev]'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from cbam.data import check_folder, load_data, make_loader
from cbam.data.folder import FolderImages
from cbam.data.shards.dataset import ShardImages
from cbam.data.shards.index import FILE_NAME
from cbam.data.shards.write import write_shards
from cbam.evaluate.timing import order, ratios
from cbam.files import write_atomically

KINDS = {"cat": photographs.chelsea, "cup": photographs.coffee, "rocket": photographs.rocket}


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Save `count` different square cuts of `side` pixels as JPEG files, in three classes, a fifth for validation."""
    rng = np.random.default_rng(0)
    photos = {kind: photo() for kind, photo in KINDS.items()}
    for number in range(count):
        kind = list(photos)[number % len(photos)]
        height, width = photos[kind].shape[:2]
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        path = folder / ("val" if number % 5 == 4 else "train") / kind / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[kind][y : y + side, x : x + side]).save(path, quality=90)


def file_bytes(images: FolderImages | ShardImages, indices: list[int]) -> int:
    """Read the files at some indices and return how many bytes they have."""
    if isinstance(images, ShardImages):
        return sum(len(content) for _, content in images.contents(indices))
    return sum(len((images.folder / images.names[index]).read_bytes()) for index in indices)


def seconds(job: Callable[[], object]) -> float:
    """Return how long `job` takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def rates(sides: dict[str, Callable[[int], int]], rounds: int) -> dict[str, list[float]]:
    """Return images per second of each side, which is called with the round's number and returns how many it read."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in order(list(sides), number):
            start = time.perf_counter()
            count = sides[name](number)
            if number:  # the first round fills the page cache
                found[name].append(count / (time.perf_counter() - start))
    return found


def reading(images: FolderImages | ShardImages, number: int) -> int:
    """Read all files, in batches of 64 in a new shuffled order each round."""
    chosen = np.random.default_rng(number).permutation(len(images)).tolist()
    for start in range(0, len(chosen), 64):
        file_bytes(images, chosen[start : start + 64])
    return len(chosen)


def training_items(loader: Any, number: int) -> int:
    """Read, decode and crop all images through the loader that training uses."""
    loader.batch_sampler.set_position(number)
    return sum(len(labels) for _, labels in loader)


def ratio(found: dict[str, list[float]]) -> dict[str, float]:
    """Return median, lowest and highest of shards / folder over the rounds."""
    each = ratios(found["shards"], found["folder"])
    return {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}


def preparing(folder: Path, out: Path) -> dict[str, float]:
    """Return how long the first and the second look at the folder take, and reading all tar headers, in seconds."""
    os.environ["XDG_CACHE_HOME"] = str(out / f"cache-{time.time_ns()}")
    times = {f"doctor, {which} time": seconds(lambda: check_folder(folder)) for which in ("first", "second")}
    times["load_data of the folder"] = seconds(lambda: load_data(folder))
    (out / "shards" / FILE_NAME).unlink()
    times["load_data of the shards, no index"] = seconds(lambda: load_data(f"shards:{out / 'shards'}"))
    times["load_data of the shards, index"] = seconds(lambda: load_data(f"shards:{out / 'shards'}"))
    return times


def main() -> None:
    """Make the pictures, measure, print and write loader.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=280, help="pixels; the photographs allow up to 300")
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--items", type=int, default=500, help="images a round that are decoded too")
    parser.add_argument("--output", type=Path, default=Path("runs/loader"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.output / "photos"
    if not folder.exists():
        make_pictures(folder, options.images, options.side)
    write_shards(folder, options.output / "shards", per_shard=options.per_shard)
    sources = {"folder": folder, "shards": f"shards:{options.output / 'shards'}"}
    sets = {name: load_data(source).train for name, source in sources.items()}
    few = {name: images.subset(range(min(options.items, len(images)))) for name, images in sets.items()}
    options_of_loader = {"batch_size": 64, "seed": 0, "shuffle": True, "workers": options.workers}
    loaders = {name: make_loader(images, **options_of_loader) for name, images in few.items()}
    found = {
        "reading": rates({n: partial(reading, images) for n, images in sets.items()}, options.rounds),
        "reading, decoding, cropping": rates(
            {n: partial(training_items, loader) for n, loader in loaders.items()}, options.rounds
        ),
    }
    count = len(sets["folder"])
    result = {
        "machine": {"cpu": platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__},
        "images": count,
        "mean_bytes": file_bytes(sets["folder"], list(range(count))) / count,
        "workers": options.workers,
        "shards_to_folder": {name: ratio(of) for name, of in found.items()},
        "images_per_second": found,
        "seconds": preparing(folder, options.output),
    }
    write_atomically(options.output / "loader.json", json.dumps(result, indent=1))
    print(f"{result['images']:,} files of {result['mean_bytes']:,.0f} bytes, {options.workers} workers")
    for name, of in result["shards_to_folder"].items():
        print(f"{name}: shards / folder = {of['median']:.2f} ({of['lowest']:.2f} to {of['highest']:.2f})")
    for name, value in result["seconds"].items():
        print(f"{name}: {value:.2f} s, {options.images / value:,.0f} files/s")


if __name__ == "__main__":
    main()
