"""What static int8 costs a small network with attention, and which part of it: docs/results/export-int8.md.

    python benchmarks/export_int8.py [--data digits] [--epochs 6] [--seeds 2] [--limit-train N] [--report]

Trains ResNet-20 without attention and with the authors' and the paper's CBAM, or takes random weights (`--epochs 0`),
quantizes each with 256 training images, and counts decibels of the scores over their error, and accuracy, on validation
images. Rows are appended to runs/export-int8.jsonl; `--report` makes the page of them and runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from torch import Tensor, nn

from cbam import attach
from cbam.cli.main import main as cbam
from cbam.data import load_data
from cbam.export import load
from cbam.export.images import calibration_images
from cbam.export.onnx_file import gate_nodes, strip, to_onnx, write
from cbam.export.program import capture
from cbam.export.quantize import Batches, decibels, quantize
from cbam.models import build_model
from cbam.pretrained import from_pretrained
from cbam.pretrained.saving import describe_network
from cbam.runs.rows import Rows
from cbam.runs.tables import Section

NETWORKS = {
    "plain": ("--attention", "none"),
    "CBAM, authors' form": ("--preset", "official"),
    "CBAM, paper's form": ("--preset", "paper"),
}
STEPS = {
    "pooled descriptors": ("ReduceMean", "ReduceMax"),
    "MLPs": ("Gemm", "Relu", "Add"),
    "spatial convolutions": ("Concat", "Conv"),
    "sigmoids": ("Sigmoid",),
    "products of map and gate": ("Mul",),
}
SIDES = {"digits": 8, "fashion-mnist": 28}
IMAGES = 1000  # of the validation part
INTRODUCTION = """# Static int8 of a small network with attention

ResNet-20 without attention and with CBAM in all nine blocks, quantized by onnxruntime, calibrated on 256 training
images; by `onnxruntime.quantization.quantize_static` with its defaults (signed maps, one scale for all of a layer's
weights), and as `cbam export` does it (unsigned maps, a scale for each output channel). "dB" is how far the scores
stand out from their error on up to 1,000 validation images: a loss of 3 dB is twice the error. Several seeds: the mean
with its range. Top-1 is before and after. "all but" leaves that one step of the attention in float32, "only" quantizes
it alone. Made by `python benchmarks/export_int8.py`, with the options below each heading, and `--report`.
"""


def make(folder: Path, data: str, network: str, seed: int, given: argparse.Namespace) -> nn.Module:
    """Return a trained network, or one with random weights."""
    if not given.epochs:
        torch.manual_seed(seed)
        model = build_model("resnet20", 10, in_channels=1)
        if network != "plain":
            attach(model, preset=NETWORKS[network][1], init="paper", input_size=(1, SIDES[data], SIDES[data]))
        model.cbam_config = describe_network(model, "resnet20", input_size=(1, SIDES[data], SIDES[data]))
        return model.eval()
    words = [
        "train",
        "--data",
        data,
        "--model",
        "resnet20",
        "--epochs",
        str(given.epochs),
        "--optimizer",
        "adamw",
    ]
    words += ["--lr", "0.003", "--seed", str(seed), "--device", "cpu", "--output", str(folder)]
    if given.limit_train:
        words += ["--limit-train", str(given.limit_train), "--limit-val", str(IMAGES)]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cbam([*words, *NETWORKS[network]]) == 0
    return from_pretrained(folder / "best")


def scores(path: Path, images: Tensor) -> Tensor:
    """Return the scores of an exported network."""
    loaded = load(path)
    return torch.cat([loaded(part)[0] for part in images.split(64)])


def trials(model: onnx.ModelProto, gates: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Return what stays in float32 in each trial, by recipe and name: names of nodes."""
    kinds = {node.name: node.op_type for node in model.graph.node}
    found: dict[tuple[str, str], list[str]] = {}
    for recipe in RECIPES:
        found[recipe, "everything"] = []
        if gates:
            found[recipe, "all but the attention"] = list(gates)
    for step, operations in STEPS.items() if gates else ():
        nodes = [name for name in gates if kinds[name] in operations]
        found["cbam export", f"all but the {step}"] = nodes
        found["cbam export", f"only the {step}"] = [name for name in kinds if name not in nodes]
    return found


def quantize_by_default(source: Path, target: Path, images: Tensor, batch: int, keep: Sequence[str]) -> None:
    """Quantize with onnxruntime's own defaults."""
    from onnxruntime.quantization import quantize_static

    quantize_static(source, target, Batches(images.split(batch)), nodes_to_exclude=list(keep))


RECIPES = {"onnxruntime's defaults": quantize_by_default, "cbam export": quantize}


def measure(model: nn.Module, data: str, folder: Path) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return {(recipe, trial): (dB, accuracy before, after)} of one network."""
    side = SIDES[data]
    known = load_data(data, image_size=side, mean=model.cbam_config.mean, std=model.cbam_config.std)
    images = torch.stack([known.val[0, index][0] for index in range(min(IMAGES, len(known.val)))])
    labels = torch.tensor(known.val.labels)[: len(images)]
    with torch.no_grad():
        expected = torch.cat([model(part) for part in images.split(64)])
    graph = to_onnx(capture(model, images[:2], ("batch",), plain=True), {0: "batch"})
    chosen = trials(graph, gate_nodes(graph, model))
    strip(graph)
    write(graph, folder / "float32.onnx")
    seen = calibration_images(model, data, (1, side, side), 256)
    found = {}
    for (recipe, name), keep in chosen.items():
        RECIPES[recipe](folder / "float32.onnx", folder / "int8.onnx", seen, 32, keep)
        got = scores(folder / "int8.onnx", images)
        right = [float((each.argmax(1) == labels).double().mean()) for each in (expected, got)]
        found[recipe, name] = (decibels(expected, got), *right)
    return found


def report(rows: Sequence[dict[str, object]]) -> str:
    """Return the page."""
    lines = [INTRODUCTION]
    for heading in dict.fromkeys(str(row["heading"]) for row in rows):
        of = [row for row in rows if row["heading"] == heading]
        table = []
        for network, recipe, trial in dict.fromkeys((r["network"], r["recipe"], r["trial"]) for r in of):
            same = [r for r in of if (r["network"], r["recipe"], r["trial"]) == (network, recipe, trial)]
            db = [float(r["dB"]) for r in same]  # type: ignore[arg-type]
            spread = f" ({min(db):.1f} to {max(db):.1f})" if len(db) > 1 else ""
            before, after = (statistics.mean(float(r[n]) for r in same) for n in ("before", "after"))  # type: ignore[arg-type]
            row = [str(network), str(recipe), str(trial), f"{statistics.mean(db):.1f}{spread}"]
            table.append(row + ([] if of[0]["random"] else [f"{before:.2%}", f"{after:.2%}"]))
        columns = ["network", "quantized by", "in int8", "dB"]
        columns += [] if of[0]["random"] else ["top-1 float32", "top-1 int8"]
        lines += [Section(heading, columns, table).markdown(), ""]
    return "\n".join(lines)


def main() -> None:
    """Train, quantize, append rows; or write the page."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--data", choices=sorted(SIDES), default="digits")
    options.add_argument("--epochs", type=int, default=6, help="0: random weights")
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--limit-train", type=int)
    options.add_argument("--rows", type=Path, default=Path("runs/export-int8.jsonl"))
    options.add_argument("--report", action="store_true")
    given = options.parse_args()
    rows = Rows(given.rows)
    if given.report:
        Path("docs/results/export-int8.md").write_text(report(rows.read()), encoding="utf-8")
        return
    limited = f" of {given.limit_train:,} images" if given.limit_train else ""
    trained = f"{given.epochs} epochs{limited}" if given.epochs else "random weights"
    heading = f"{given.data}, {trained}, {given.seeds} seed{'s' if given.seeds > 1 else ''}"
    done = {(row["heading"], row["network"], row["seed"]) for row in rows.read()}
    for network in NETWORKS:
        for seed in range(given.seeds):
            if (heading, network, seed) in done:
                continue
            with TemporaryDirectory() as folder:
                model = make(Path(folder) / "run", given.data, network, seed, given)
                for (recipe, trial), values in measure(model, given.data, Path(folder)).items():
                    numbers = dict(zip(("dB", "before", "after"), values, strict=True))
                    about = {"heading": heading, "network": network, "seed": seed, "random": not given.epochs}
                    rows.append({**about, "recipe": recipe, "trial": trial, **numbers})
                    print(heading, network, seed, recipe, trial, values, flush=True)


if __name__ == "__main__":
    main()
