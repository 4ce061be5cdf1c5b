"""The trainings of detectors behind docs/results/detection.md: run folders condensed to a file, a table and curves.

    python benchmarks/detection_trainings.py runs/detect-small/* --output docs/results/detection

It reads folders of `cbam detect train`, finished or not, adds them to trainings.json, which keeps the trainings of
earlier days and other machines, and draws curves.svg; the table goes to the screen. A training that is in there with
the same settings is replaced.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml
from matplotlib.figure import Figure

OPTIONS = (
    "data",
    "model",
    "attention",
    "sites",
    "seed",
    "image_size",
    "width",
    "weights",
    "detector_options",
)
RECIPE = ("epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule", "warmup_steps", "precision")
PER_EPOCH = ("epoch", "train_loss", "val_map", "val_ap50", "val_mask_ap50", "images_per_s", "seconds")
GOAL = 0.8


def condense(folder: Path) -> dict[str, Any]:
    """Return what a reader needs of a run's folder.

    Args:
        folder: Of `cbam detect train`.
    """
    config = yaml.safe_load((folder / "config.yaml").read_text())
    environment = json.loads((folder / "env.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = folder / "result.json"
    done = json.loads(result.read_text()) if result.is_file() else {}
    settings = {name: config[name] for name in (*OPTIONS, *RECIPE)}
    settings["data"] = settings["data"].partition(":")[0] + ":" + "/".join(settings["data"].split("/")[-2:])
    if settings["weights"]:
        settings["weights"] = "/".join(str(settings["weights"]).split("/")[-3:])
    return {
        "settings": settings,
        "finished": bool(done),
        "parameters": done.get("parameters"),
        "per_class": done.get("per_class"),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "epochs": [{name: _short(row[name]) for name in PER_EPOCH if name in row} for row in rows],
        "machine": {**environment["machine"], "python": environment["python"]},
        "packages": {name: environment["packages"][name] for name in ("torch", "torchvision", "timm")},
    }


def _short(value: float) -> float:
    return round(value, 4)


def add(runs: list[dict[str, Any]], run: dict[str, Any]) -> None:
    """Add a run to those that are there, in the place of one with the same settings."""
    for number, known in enumerate(runs):
        if known["settings"] == run["settings"]:
            runs[number] = run
            return
    runs.append(run)


def table(runs: list[dict[str, Any]]) -> str:
    """Return the runs as a table in Markdown."""
    lines = [
        "| detector | parameters | epochs | AP50, last | AP50, best | AP, last | images/s | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        judged = [row for row in run["epochs"] if "val_ap50" in row]
        last, best = judged[-1], max(row["val_ap50"] for row in judged)
        masks = f" (masks {last['val_mask_ap50']:.1%})" if "val_mask_ap50" in last else ""
        speed = sorted(row["images_per_s"] for row in run["epochs"])[len(run["epochs"]) // 2]
        count = f"{run['parameters']:,}" if run["parameters"] else ""
        epochs = f"{run['epochs'][-1]['epoch']} of {run['settings']['epochs']}"
        lines.append(
            f"| {run['settings']['model']} | {count} | {epochs} | {last['val_ap50']:.1%}{masks} | {best:.1%} "
            f"| {last['val_map']:.1%} | {speed:.1f} | {run['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw AP50 over the minutes of training."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cbam", "font.size": 10}):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for row_number, (run, marker) in enumerate(
            zip(runs, itertools.cycle("osD^vPX<>*"), strict=False), start=1
        ):
            minutes, points, spent = [], [], 0.0
            for row in run["epochs"]:
                spent += row["seconds"] / 60
                if "val_ap50" in row:
                    minutes.append(spent)
                    points.append(100 * row["val_ap50"])
            # colours and markers come in tens
            style = ("-", "--", ":")[(row_number - 1) // 10 % 3]
            label = f"{row_number} {run['settings']['model']}"
            axes.plot(minutes, points, style, marker=marker, markersize=4, label=label)
        axes.axhline(100 * GOAL, color="grey", linewidth=0.8, linestyle="--")
        axes.set(xlabel="minutes of training, evaluation included", ylabel="AP50 in %", ylim=(0, 100))
        axes.grid(True, alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=8)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Condense the folders given."""
    parser = argparse.ArgumentParser(description="The trainings of detectors, condensed.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "trainings.json"
    runs = json.loads(file.read_text()) if file.is_file() else []
    for folder in options.folders:
        if (folder / "metrics.jsonl").is_file():
            add(runs, condense(folder))
    file.write_text(json.dumps(runs, indent=1) + "\n")
    draw(runs, options.output / "curves.svg")
    print(table(runs))


if __name__ == "__main__":
    main()
