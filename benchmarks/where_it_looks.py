"""Do networks with attention look at the object? Class activation maps and gates against exact masks.

python benchmarks/where_it_looks.py            # everything: images, trainings, scores, the page; goes on where it was
python benchmarks/where_it_looks.py --page     # the page alone, from the scores in docs/results/where-it-looks
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from where_it_looks_report import write_page

import cbam
from cbam.checkpoints import load_weights
from cbam.cli.compare import main as compare
from cbam.cli.compare import parse
from cbam.compare.ablation_page import machine_text
from cbam.compare.config import CompareConfig
from cbam.compare.grid import Cell, build_cell
from cbam.compare.reading import read_run
from cbam.data import ImageData
from cbam.data.detection import load_detection
from cbam.data.detection.generate import write_generated
from cbam.data.inputs import InputForm, input_form
from cbam.explain.localised import Localised, localised_images
from cbam.explain.randomisation import randomisation_check
from cbam.explain.scores import bootstrap, score_maps
from cbam.files import write_atomically

RECIPE = ["--config", "recipes/where-it-looks.yaml"]
FOLDER = Path("runs/where-it-looks")
SCORES = Path("docs/results/where-it-looks")
CLASSES = ("Ankle boot", "Bag", "Pullover", "Trouser")
UNTRAINED = "untrained"
LEAST_VISIBLE = 0.5  # of an object in the centre crop
SCORED = 250  # images, the first ones
STEPS = 10  # of deletion and insertion
CHECKED = 48  # images of the randomisation check
PAIRS = (("cbam", "none"), ("cbam", "se"), ("se", "none"))


def write_images(folder: Path, train: int = 4000, validation: int = 500) -> None:
    """Write a generated detection set with one object at most, and the images with an object once more by class."""
    if (folder / "images").exists():
        return
    write_generated(
        folder, ("coco",), images=train, validation=validation, size=96, classes=CLASSES, most_objects=1
    )
    data = load_detection(f"coco:{folder / 'coco'}", check_images=False)
    for side, images in (("train", data.train), ("val", data.validation)):
        for record in images.records:
            for number in record.labels:
                target = folder / "images.part" / side / data.classes[number - 1] / record.path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(record.path, target)
    (folder / "images.part").rename(folder / "images")


def visible_objects(form: InputForm, classes: tuple[str, ...]) -> list[Localised]:
    """Return the validation images whose object is to more than half in the part that the networks see."""
    data = load_detection(f"coco:{FOLDER / 'coco'}", check_images=False)
    found = []
    for image in localised_images(data.validation, data.classes, classes):
        scale = round(form.size * 8 / 7) / min(image.picture.size)
        if image.cropped(form)[1].sum() >= LEAST_VISIBLE * image.region.sum() * scale**2:
            found.append(image)
    return found


def score_seed(seed: int, config: CompareConfig, data: ImageData) -> dict[str, Any]:
    """Score the networks of a seed, and the plain one as it was before training, on the same images."""
    models = {variant: trained(Cell(variant, seed), config, data) for variant in config.variants}
    form = input_form(models["none"], config.image_size, data.mean, data.std)[0]
    images = visible_objects(form, data.classes)[:SCORED]
    wanted: dict[str, nn.Module] = {**models, UNTRAINED: build_cell(Cell("none", seed), config, data).eval()}
    scores = score_maps(
        wanted, images, steps=STEPS, image_size=config.image_size, mean=data.mean, std=data.std
    )
    found = scores.to_json()
    for title, measures in found["values"].items():
        found["values"][title] = {name: [round(value, 4) for value in row] for name, row in measures.items()}
        found["summary"][title] = {name: vars(scores.interval(title, name)) for name in measures}
    found["differences"] = {
        f"{one}-{other}": {name: vars(scores.interval(one, name, to=other)) for name in scores.values[one]}
        for one, other in PAIRS
    }
    batch = form.batch([image.cropped(form)[0] for image in images])
    labels = [image.label for image in images]
    found["randomised"] = {
        title: [
            each._asdict()
            for each in randomisation_check(model, batch[:CHECKED], labels[:CHECKED], seed=seed)
        ]
        for title, model in models.items()
    }
    regions = torch.from_numpy(np.stack([image.cropped(form)[1] for image in images]))
    found["spatial_gates"] = spatial_gates(models["cbam"], batch, regions)
    run = read_run(config.folder)
    accuracy = {one["variant"]: one["val_accuracy"] for one in run.results if one["seed"] == seed}
    return {"seed": seed, "machine": machine_text(run), "accuracy": accuracy, **found}


def trained(cell: Cell, config: CompareConfig, data: ImageData) -> nn.Module:
    """Return a network of the comparison with the weights it had after the last epoch."""
    model = build_cell(cell, config, data)
    load_weights(model, config.folder / "cells" / cell.name / "model.safetensors")
    return model.eval()


@torch.no_grad()
def spatial_gates(model: nn.Module, batch: Tensor, regions: Tensor) -> dict[str, dict[str, float]]:
    """Return for each site its mean gate on the object minus that beside it, with its interval over the images."""
    with cbam.attention_maps(model) as maps:
        model(batch)
    found = {}
    for site, gates in maps.items():
        if gates.spatial is None:
            continue
        gate = F.interpolate(gates.spatial, regions.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        inside, outside = ((gate * part).sum((1, 2)) / part.sum((1, 2)) for part in (regions, ~regions))
        spread = gate.flatten(1).std(1).mean()
        found[site] = {
            "mean": float(gate.mean()),
            "spread": float(spread),
            **vars(bootstrap((inside - outside).double().numpy())),
        }
    return found


def main() -> None:
    """Do what is not there yet."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--page", action="store_true")
    options.add_argument("--seeds", type=int, default=None, help="more or fewer than the recipe's")
    given = options.parse_args()
    if not given.page:
        recipe = [*RECIPE, *(["--seeds", str(given.seeds)] if given.seeds else [])]
        write_images(FOLDER)
        compare(recipe)
        config = parse(recipe)
        data = config.load()
        for seed in range(config.seeds):
            target = SCORES / f"seed{seed}.json"
            if not target.exists():
                sys.stderr.write(f"scoring the maps of seed {seed}\n")
                write_atomically(target, json.dumps(score_seed(seed, config, data)) + "\n")
    write_page(SCORES)


if __name__ == "__main__":
    main()
