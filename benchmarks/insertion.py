"""Does CBAM at identity do harm when a trained network is fine-tuned, and what does a scaled spatial kernel change?

python benchmarks/insertion.py data             # three image folders and the weights, into runs/insertion
python benchmarks/insertion.py run --seeds 5    # 3 sets x SGD and AdamW x 3 networks; may be stopped and repeated
python benchmarks/insertion.py scratch          # the same starts without pretrained weights; three minutes
python benchmarks/insertion.py page > docs/results/insertion.md
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor

import cbam
from cbam.attach.variants import label
from cbam.compare.ablation_page import gap_text, machine_text
from cbam.compare.reading import Run, read_run
from cbam.compare.statistics import VariantSummary, summarise
from cbam.data.detection import load_detection, write_generated
from cbam.data.fine_tuning import write_images, write_weights
from cbam.models import build_model
from cbam.runs.imports import import_modules
from cbam.runs.markdown import wrap
from cbam.runs.tables import markdown

FOLDER = Path("runs/insertion")
SCRATCH = FOLDER / "digits-scratch"
OPTIMIZERS = {
    "sgd": ("0.01", "SGD with Nesterov momentum, peak rate 0.01"),
    "adamw": ("0.001", "AdamW, peak rate 0.001"),
}
VARIANTS = "none,cbam"
OLD = "none,cbam_unscaled,cbam"
# Those of runs from before the identity start was scaled: "cbam" was not, beside "cbam_scaled".
LABELS = {"cbam_unscaled": "identity, kernel as it is", "cbam_scaled": "identity, kernel / √fan-in"}
PLAIN_NAMES = {"cbam_unscaled": "cbam_scaled", "cbam_scaled": "cbam_unscaled"}
PIXELS = 96
SEEDS = 5
HEADS = [
    "images", "optimizer", "network", "seeds", "accuracy (%)", "minus plain (points)", "epoch 1 (%)",
    "gates from 1: channel, spatial",
]  # fmt: skip


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as class folders: the first 1,000 to train on, 797 to validate."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for index, (pixels, digit) in enumerate(zip(found.images, found.target, strict=True)):
        grey = torch.from_numpy(pixels * (255 / 16)).round().to(torch.uint8).numpy()
        _save(Image.fromarray(grey), folder, "train" if index < 1000 else "val", str(digit), index)


def write_crops(folder: Path) -> None:
    """Write the objects of a generated detection set, each cut out with its surroundings, as class folders."""
    with tempfile.TemporaryDirectory() as temporary:
        sources = write_generated(
            temporary, ("coco",), images=700, validation=700, size=192, most_objects=3, seed=1
        )
        data = load_detection(sources["coco"])
        for part, split in (("train", data.train), ("val", data.validation)):
            count = 0
            for pixels, target in split:
                image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
                for (left, top, right, bottom), number in zip(
                    target["boxes"].tolist(), target["labels"].tolist(), strict=True
                ):
                    if count == 1000:
                        break
                    edge = 0.15 * max(right - left, bottom - top)
                    box = tuple(round(at) for at in (left - edge, top - edge, right + edge, bottom + edge))
                    _save(image.crop(box), folder, part, data.classes[number - 1], count)
                    count += 1


def _save(image: Image.Image, folder: Path, part: str, title: str, number: int) -> None:
    target = folder / part / title.replace("/", "-").replace(" ", "-").lower()
    target.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(target / f"{number:05d}.png")


SETS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "fashion": (
        "Fashion-MNIST, the first 100 and 200 of each class",
        lambda folder: write_images(folder, 100, 200),
    ),
    "digits": ("scikit-learn's digits", write_digits),
    "crops": ("garments on photographs, cut out of a generated detection set", write_crops),
}


def write_data() -> None:
    """Write what is not there yet."""
    for name, (_, write) in SETS.items():
        if not (FOLDER / name).exists():
            write(FOLDER / name)
    if not (FOLDER / "lite0.safetensors").exists():
        write_weights(FOLDER / "lite0.safetensors")


def run(seeds: int) -> None:
    """Train what is missing, seed by seed, so that a stopped run has every set and optimizer."""
    for count in range(1, seeds + 1):
        for name in SETS:
            for optimizer, (rate, _) in OPTIMIZERS.items():
                command = [sys.executable, "-m", "cbam", "compare", "--import", "benchmarks.scaled_gates"]
                command += [
                    "--data",
                    str(FOLDER / name),
                    "--model",
                    "tf_efficientnet_lite0",
                    "--mean",
                    "0.5",
                    "--std",
                    "0.5",
                ]
                command += ["--weights", str(FOLDER / "lite0.safetensors"), "--image-size", str(PIXELS)]
                command += ["--attention", VARIANTS, "--epochs", "5", "--batch-size", "32", "--device", "cpu"]
                command += [
                    "--optimizer",
                    optimizer,
                    "--lr",
                    rate,
                    "--gate-weight-decay",
                    "0",
                    "--seeds",
                    str(count),
                ]
                subprocess.run([*command, "--output", str(output(name, optimizer))], check=True)


def run_from_scratch() -> None:
    """Train resnet20 on digits, each start three times."""
    command = [
        sys.executable,
        "-m",
        "cbam",
        "compare",
        "--import",
        "benchmarks.scaled_gates",
        "--data",
        "digits",
    ]
    command += ["--model", "resnet20", "--attention", "none,cbam_unscaled:identity,cbam:identity,cbam"]
    command += ["--seeds", "3", "--epochs", "4", "--device", "cpu", "--output", str(SCRATCH)]
    subprocess.run(command, check=True)


def output(name: str, optimizer: str) -> Path:
    """Return the run's folder."""
    return FOLDER / f"{name}-{optimizer}"


def shown(variant: str, variants: Sequence[str]) -> str:
    """Return a network's name in the table: what "cbam" was depends on what stood beside it."""
    other = next((name for name in LABELS if name in variants), "cbam_unscaled")
    return LABELS[PLAIN_NAMES[other]] if variant == "cbam" else LABELS.get(variant, label(variant))


def moved(name: str, optimizer: str, variant: str, seed: int) -> tuple[float, float] | None:
    """Return how far the channel and the spatial gates are from 1 after a training, as a mean over 64 images."""
    weights = output(name, optimizer) / "cells" / f"{variant}-seed{seed}" / "model.safetensors"
    if variant == "none" or not weights.exists():
        return None
    model = build_model("tf_efficientnet_lite0", len(list((FOLDER / name / "train").iterdir())))
    cbam.attach(model, variant, input_size=PIXELS)
    model.load_state_dict(load_file(weights), strict=True)
    pictures = sorted((FOLDER / name / "val").glob("*/*.png"))
    pictures = pictures[:: len(pictures) // 64][:64]
    images = [Image.open(path).convert("RGB").resize((PIXELS, PIXELS)) for path in pictures]
    batch = torch.stack([pil_to_tensor(image) for image in images]) / 127.5 - 1
    with torch.inference_mode(), cbam.attention_maps(model.eval()) as maps:
        model(batch)
    channel, spatial = zip(*maps.values(), strict=True)
    far = [sum(float((g - 1).abs().mean()) for g in gates) / len(gates) for gates in (channel, spatial)]
    return far[0], far[1]


def page() -> str:
    """Return docs/results/insertion.md."""
    import_modules(["benchmarks.scaled_gates"])
    rows, missing, machine = [], 18 * SEEDS, ""
    for name, (images, _) in SETS.items():
        for optimizer, (_, recipe) in OPTIMIZERS.items():
            if not (output(name, optimizer) / "config.yaml").exists():
                continue
            found = read_run(output(name, optimizer))
            missing -= len(found.results)
            machine = machine_text(found)
            for row in summaries(found):
                gates = [moved(name, optimizer, row.variant, seed) for seed in row.seeds]
                far = zip(*filter(None, gates), strict=True)
                after = ", ".join(f"{sum(values) / len(values):.3f}" for values in far)
                rows.append(
                    [images, recipe, shown(row.variant, found.variants), *cells_of(row, found), after]
                )
                images = recipe = ""
    unfinished = f"**Unfinished:** {missing} of {18 * SEEDS} trainings are missing." if missing else ""
    parts = [INTRODUCTION, unfinished, "\n".join(markdown(HEADS, rows)), NOTE, from_scratch(), machine]
    return wrap("\n\n".join(part for part in parts if part)) + "\n"


def summaries(found: Run) -> list[VariantSummary]:
    """Return the finished rows of a run."""
    return [row for row in summarise(found.results, found.variants).variants if row.seeds]


def cells_of(row: VariantSummary, found: Run) -> list[str]:
    """Return seeds, accuracy, the difference to plain, and the accuracy after the first epoch."""
    first = [
        history[0]["val_accuracy"]
        for history in found.history.values()
        if history[0]["variant"] == row.variant and history[0]["seed"] in row.seeds
    ]
    accuracy = f"{100 * (row.mean or 0):.2f}" + (f" ± {100 * row.sd:.2f}" if row.sd else "")
    return [str(len(row.seeds)), accuracy, gap_text(row.to_baseline), f"{100 * sum(first) / len(first):.1f}"]


def from_scratch() -> str:
    """Return what the two starts do where nothing is trained yet."""
    if not (SCRATCH / "config.yaml").exists():
        return ""
    found = read_run(SCRATCH)
    names = {"cbam_unscaled:identity": "cbam_unscaled", "cbam:identity": "cbam_scaled"}
    rows = [
        [LABELS.get(names.get(row.variant, ""), "fresh gates" if row.variant == "cbam" else label(row.variant)),
         *cells_of(row, found)]
        for row in summaries(found)
    ]  # fmt: skip
    return f"{FROM_SCRATCH}\n\n" + "\n".join(markdown(HEADS[2:7], rows))


INTRODUCTION = """# Does CBAM at identity do harm when a trained network is fine-tuned?

```
python benchmarks/insertion.py data
python benchmarks/insertion.py run --seeds 5
python benchmarks/insertion.py scratch
python benchmarks/insertion.py page > docs/results/insertion.md
```

timm's `tf_efficientnet_lite0` with its ImageNet weights, all weights trained, images of 96 pixels, 1,000 to train on, 5
epochs, batch 32, cosine, half an epoch of warm-up, no decay on the gates. All networks of a seed start from the same
weights, give the same outputs to the bit before the first step, and see the same images in the same order.

Hypothesis, written before the runs: at identity the spatial kernel (1, 2, 7, 7) is zero, and its gradient sums over
all positions of maps that are not small, so with one rate for all weights its first steps are far too long. Divided by
the square root of its fan-in, 98, which is how weights are usually scaled, a step of SGD moves the gate by 1/98.
Prediction: under SGD the identity start loses 1 to 3 points to the plain network and the scaled one between 0.5 lost
and 1 won; under AdamW, which sets the length of each step itself, neither differs from plain by more than the noise."""
FROM_SCRATCH = """## From scratch

A gate whose steps are short could learn too little where everything has to be learned. resnet20 on scikit-learn's
digits, 4 epochs of the default recipe (SGD, peak rate 0.1, decay on the gates as well):"""
NOTE = """± is the standard deviation over the seeds, [ ] the 95 % interval of the paired difference (t test); one or
two seeds get none. Last column: mean of |gate - 1| after training, over sites and 64 validation images. What differs
between seeds is the classifier's first weights, the order, the augmentation and the channel gates' first layer; the
pretrained weights and the images stay the same."""


def main() -> None:
    """Run the step that is named."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("step", choices=("data", "run", "scratch", "page"))
    options.add_argument("--seeds", type=int, default=SEEDS)
    given = options.parse_args()
    if given.step == "data":
        write_data()
    elif given.step == "run":
        run(given.seeds)
    elif given.step == "scratch":
        run_from_scratch()
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main()
