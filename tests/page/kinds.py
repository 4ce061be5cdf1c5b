"""One page of each command, small, with names that try to break out of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

import cbam
from cbam.compare.ablation import kernels, table, variants
from cbam.compare.detection.report import RECALLS, write_detection_report
from cbam.compare.report import write_report
from cbam.evaluate.class_page import render
from cbam.evaluate.class_report import ClassReport
from cbam.evaluate.label_report import LabelReport
from cbam.evaluate.predictions import FILE as PREDICTIONS
from cbam.evaluate.predictions import Predictions
from cbam.explain.scores import MEASURES, MapScores
from cbam.files import write_atomically
from tests.attach.networks import randomised_gates, resnet
from tests.compare.conftest import CLASSES, write_json, write_run

EVIL = "<script>alert('class')</script>"
LONG = "averyveryverylongclassnamewithoutanyspaceinit" * 2


def compare(folder: Path) -> Path:
    accuracies = {"none": (0.9, 0.91), "se": (0.9, 0.92), "cbam": (0.91, 0.92), "control": (0.9, 0.9)}
    names = (EVIL, LONG, "Pullover & co", "a$b$ \\frac{1}{2}")
    run = write_run(folder, accuracies, classes=names)
    for number, file in enumerate(sorted(run.glob("cells/*/result.json"))):
        said = predictions(number)
        write_json(file, {**json.loads(file.read_text()), "confusion": said.confusion(4).tolist()})
        said.write(file.with_name(PREDICTIONS))
    (run / "mistakes").mkdir()
    Image.new("RGB", (90, 60)).save(run / "mistakes" / "image-0.png")
    answer = {"predicted": LONG, "times": 1, "seeds": 2, "probability": 0.1}
    missed = {"index": 3, "name": EVIL, "picture": "image-0.png", "class": EVIL}
    write_json(
        run / "mistakes" / "mistakes.json",
        {"images": [{**missed, "variants": dict.fromkeys(accuracies, answer)}] * 3},
    )
    for name, key in (
        ("data.json", "source"),
        ("data.json", "name"),
        ("env.json", "git"),
        ("env.json", "command"),
    ):
        content = json.loads((run / name).read_text())
        content[key] = ["a" * 300] if key == "command" else "a" * 300
        write_json(run / name, content)
    return write_report(run)


def ablate(folder: Path) -> Path:
    names = variants([table(1), table(3), kernels([3, 5])])
    return write_report(write_run(folder, dict.fromkeys(names, (0.9, 0.91, 0.93)), classes=CLASSES))


def detect(folder: Path) -> Path:
    """A comparison of detectors as it leaves its folder, from the files of one of classifiers."""
    names = ("none", "se", "cbam")
    run = write_run(folder, dict.fromkeys(names, (0.9, 0.91, 0.93)), classes=(EVIL, LONG))
    settings = yaml.safe_load((run / "config.yaml").read_text()) | {"model": "fasterrcnn_resnet18_fpn"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = (run / "metrics.jsonl").read_text().replace("val_accuracy", "val_map")
    (run / "metrics.jsonl").write_text(rows)
    for file in run.glob("cells/*/result.json"):
        result = json.loads(file.read_text())
        result |= {"val_map": result["val_accuracy"], "per_class_ap": result["per_class_accuracy"]}
        write_json(file, result)
        curve = [0.9 - 0.5 * recall for recall in RECALLS]
        content = {"metric": "coco", "boxes": {"curves": {"0.50": {"mean": curve}}}}
        write_json(file.with_name("evaluation.json"), content)
    over = {"difference": 0.01, "low": -0.01, "high": 0.03, "resamples": 1000}
    write_json(run / "images.json", dict.fromkeys(names[1:], over))
    shots = []
    for number in range(2):
        panels = {}
        for name in ("true objects", *names):
            Image.new("RGB", (90, 60), (9, 9 * number, 99)).save(run / "pictures" / f"{number}-{name}.png")
            panels[name] = {"file": f"{number}-{name}.png", "objects": number}
        shots.append({"index": number, "panels": panels})
    write_json(run / "pictures" / "pictures.json", {"least_score": 0.5, "images": shots})
    return write_detection_report(run)


def explain(folder: Path) -> Path:
    attended = resnet().eval()
    cbam.attach(attended)
    randomised_gates(attended)
    networks = {"plain": resnet().eval(), f"with {EVIL}": attended}
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]
    classes = [LONG, EVIL, *"cdefghij"]
    found = cbam.explain(networks, images, image_size=64, class_names=classes, label=1)
    values = {title: {measure: generator.random(5) for measure in MEASURES} for title in networks}
    chance = {"energy": 0.2, "pointing": 0.2, "centre": 0.5}
    scores = MapScores(values, dict.fromkeys(networks, 1), chance, tuple("abcde"), 0)
    return found.save(folder, command=["cbam", "explain", EVIL], scores=scores)


def predictions(seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(80) % 4
    return Predictions.of(torch.randn(80, 4, generator=generator) + 2 * torch.eye(4)[labels], labels)


def evaluate(folder: Path) -> Path:
    names = (EVIL, LONG, "Pullover & co", "a$b$ \\frac{1}{2}")
    said = predictions(0)
    report = ClassReport(EVIL, f"80 images of {EVIL}.", names, 0.7, None, said, [LONG, EVIL] * 40)
    text = render(
        report,
        lambda index: Image.new("RGB", (90, 60), (3 * index, 0, 99)),
        variant="cbam",
        notices=[EVIL],
        command=["cbam", "evaluate", EVIL],
    )
    return write_atomically(folder / "evaluation.html", text)


def labels(folder: Path) -> Path:
    names = (EVIL, LONG, "Pullover & co", "a$b$ \\frac{1}{2}")
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(80, 4, generator=generator) < 0.4).float()
    said = (torch.rand(80, 4, generator=generator) + 0.7 * truth) / 1.7
    report = LabelReport(EVIL, f"80 images of {EVIL}.", names, 0.7, said, truth, [LONG, EVIL] * 40)
    text = render(
        report,
        lambda index: Image.new("RGB", (90, 60), (3 * index, 0, 99)),
        variant="cbam",
        notices=[EVIL],
        command=["cbam", "evaluate", EVIL],
    )
    return write_atomically(folder / "evaluation.html", text)


KINDS = {
    "compare": compare,
    "ablate": ablate,
    "detect": detect,
    "explain": explain,
    "evaluate": evaluate,
    "labels": labels,
}
