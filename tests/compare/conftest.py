"""Run folders as `cbam compare` leaves them, written file by file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

ACCURACIES = {
    "none": (0.9010, 0.9040, 0.8990),
    "se": (0.9030, 0.9030, 0.9015),
    "cbam": (0.9080, 0.9105, 0.9062),
    "control": (0.9040, 0.9050, 0.9046),
}
CLASSES = ("T-shirt/top", "<script>alert('class')</script>", "Pullover & co", "a$b$ \\frac{1}{2}")


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def result(variant: str, seed: int, accuracy: float, classes: int = 4) -> dict[str, Any]:
    """The content of a cell's result.json; the classes spread around the accuracy, differently for every cell."""
    wiggle = [((7 * number + 3 * seed + len(variant)) % 5 - 2) / 100 for number in range(classes)]
    return {
        "variant": variant,
        "seed": seed,
        "epochs": 6,
        "val_accuracy": accuracy,
        "val_loss": 0.3,
        "per_class_accuracy": [accuracy + shift for shift in wiggle],
        "confusion": [],
        "parameters": 272_474,
        "seconds": 12.5,
        "finished": "2026-11-22T09:20:00+00:00",
    }


def write_run(
    folder: Path,
    accuracies: Mapping[str, Sequence[float]] = ACCURACIES,
    *,
    seeds: int = 3,
    classes: Sequence[str] = CLASSES,
    epochs: int = 6,
) -> Path:
    """Write a complete run; accuracies may hold fewer seeds than `seeds`, which makes it an unfinished one."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "data": "fashion-mnist",
        "model": "resnet20",
        "attention": ",".join(accuracies),
        "seeds": seeds,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"epochs": epochs}), encoding="utf-8")
    write_json(
        folder / "env.json",
        {
            "command": ["cbam", "compare", "--data", "fashion-mnist", "--output", "runs/my run"],
            "started": "2026-11-22T09:10:11+00:00",
            "python": "3.11.2",
            "packages": {"torch": "2.15.0", "torch-cbam": "0.1.0"},
            "machine": {"cpu": "a <fast> one", "cores": 2, "threads": 2, "accelerator": None},
            "git": None,
        },
    )
    write_json(
        folder / "data.json",
        {
            "name": "fashion-mnist",
            "source": "Read from a folder.",
            "classes": list(classes),
            "train_images": 60_000,
            "val_images": 10_000,
            "input_size": [1, 28, 28],
            "mean": [0.2860],
            "std": [0.3530],
            "notices": ["Fell back to <b>digits</b>."],
        },
    )
    write_json(folder / "costs.json", {variant: cost(1 + n / 100) for n, variant in enumerate(accuracies)})
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
        for variant, scores in accuracies.items():
            for seed, score in enumerate(scores):
                for epoch in range(1, epochs + 1):
                    metrics.write(json.dumps(epoch_line(variant, seed, epoch, epochs, score)) + "\n")
    for variant, scores in accuracies.items():
        for seed, score in enumerate(scores):
            cell = f"{variant.replace(':', '-')}-seed{seed}"
            write_json(folder / "cells" / cell / "result.json", result(variant, seed, score, len(classes)))
    write_pictures(folder / "pictures", list(accuracies), classes)
    return folder


def epoch_line(variant: str, seed: int, epoch: int, epochs: int, score: float) -> dict[str, Any]:
    return {
        "cell": f"{variant.replace(':', '-')}-seed{seed}",
        "variant": variant,
        "seed": seed,
        "epoch": epoch,
        "train_loss": 2.3 - 2 * epoch / epochs,
        "train_accuracy": score * epoch / epochs,
        "val_loss": 2.3 - 1.9 * epoch / epochs,
        "val_accuracy": score * (0.5 + 0.5 * epoch / epochs),
        "lr": 0.1,
        "images_per_s": 800.0,
        "data_wait_s": 0.1,
        "seconds": 10.0,
    }


def cost(factor: float) -> dict[str, Any]:
    latency = {"median_ms": 4 * factor, "low_ms": 3.9 * factor, "high_ms": 4.2 * factor}
    return {
        "parameters": round(272_474 * factor),
        "macs": round(40_813_184 * factor),
        "flops": round(82_000_000 * factor),
        "bytes_moved": round(9_000_000 * factor),
        "bytes_saved": round(3_000_000 * factor),
        "latency": {"1": latency, "32": {name: 20 * value for name, value in latency.items()}},
        "training_images_per_s": 800 / factor,
    }


def write_pictures(folder: Path, variants: Sequence[str], classes: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number, name in enumerate(classes):
        Image.new("L", (28, 28), 40 * number).save(folder / f"image-{number}.png")
        shown = {}
        for variant in variants:
            file = f"image-{number}-{variant.replace(':', '-')}.png"
            Image.new("RGB", (168, 168), (40 * number, 90, 30)).save(folder / file)
            shown[variant] = {
                "overlay": file,
                "probability": 0.875,
                "predicted": classes[0],
                "flat": number == 1,
            }
        images.append(
            {
                "index": 11 * number,
                "label": number,
                "class": name,
                "original": f"image-{number}.png",
                "variants": shown,
            }
        )
    manifest = {
        "rule": "the first image of each class",
        "layer": "layer3",
        "seed": 0,
        "map_size": [7, 7],
        "notes": {},
    }
    write_json(folder / "pictures.json", manifest | {"images": images})


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder with `write_run`'s arguments."""

    def make(*args: Any, **settings: Any) -> Path:
        return write_run(tmp_path / "a run", *args, **settings)

    return make


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run for tests that only look at it."""
    return write_run(tmp_path_factory.mktemp("whole") / "a run")
