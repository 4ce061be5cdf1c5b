"""What static int8 costs a small network with attention, and which part of it: plain and CBAM, trained on the digits.

    python benchmarks/export_int8.py [--epochs 10] [--seeds 3] [--write]

Trains ResNet-20 without attention and with the paper's and the authors' CBAM, quantizes each with 256 training images,
and counts decibels of the scores over their error, and accuracy, on the validation images. `--write` puts the table
into docs/results/export-int8.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from torch import Tensor, nn

from cbam.cli.main import main as cbam
from cbam.data import load_data
from cbam.export import load
from cbam.export.images import calibration_images
from cbam.export.onnx_file import gate_nodes, strip, to_onnx, write
from cbam.export.program import capture
from cbam.export.quantize import Batches, decibels, quantize
from cbam.pretrained import from_pretrained
from cbam.runs.tables import Section

NETWORKS = {
    "plain": ("--attention", "none"),
    "CBAM, authors' form": ("--preset", "official"),
    "CBAM, paper's form": ("--preset", "paper"),
}
TARGET = Path("docs/results/export-int8.md")
INTRODUCTION = """# Static int8 of a small network with attention

ResNet-20 on scikit-learn's digits, trained without attention and with CBAM in all nine blocks, then quantized by
onnxruntime, calibrated on 256 training images; twice: by `onnxruntime.quantization.quantize_static` with its defaults
(signed maps, one scale for all of a layer's weights), and as `cbam export` does it (unsigned maps, a scale for each
output channel). "dB" is how far the scores stand out from their error on the validation images, the mean of the seeds
with its range; top-1 is before and after. Made by `python benchmarks/export_int8.py --write`.
"""


def train(folder: Path, options: Sequence[str], seed: int, epochs: int) -> nn.Module:
    """Return a trained network."""
    words = [
        "train",
        "--data",
        "digits",
        "--model",
        "resnet20",
        "--epochs",
        str(epochs),
        "--optimizer",
        "adamw",
    ]
    words += ["--lr", "0.003", "--seed", str(seed), "--device", "cpu", "--output", str(folder), *options]
    with contextlib.redirect_stdout(io.StringIO()):
        assert cbam(words) == 0
    return from_pretrained(folder / "best")


def scores(path: Path, images: Tensor) -> Tensor:
    """Return the scores of an exported network."""
    loaded = load(path)
    return torch.cat([loaded(part)[0] for part in images.split(64)])


def parts(model: onnx.ModelProto, gates: Sequence[str]) -> dict[str, list[str]]:
    """Return what stays in float32 in each trial: names of nodes."""
    kinds = {node.name: node.op_type for node in model.graph.node}

    def of(*names: str) -> list[str]:
        return [name for name in gates if kinds[name] in names]

    if not gates:
        return {"everything in int8": []}
    return {
        "everything in int8": [],
        "products of map and gate in float": of("Mul"),
        "MLPs in float": of("Gemm", "Relu", "Add"),
        "spatial convolutions in float": of("Concat", "Conv"),
        "all of the attention in float": list(gates),
    }


def quantize_by_default(source: Path, target: Path, images: Tensor, batch: int, keep: Sequence[str]) -> None:
    """Quantize with onnxruntime's own defaults."""
    from onnxruntime.quantization import quantize_static

    quantize_static(source, target, Batches(images.split(batch)), nodes_to_exclude=list(keep))


RECIPES = {"onnxruntime's defaults": quantize_by_default, "cbam export": quantize}


def measure(model: nn.Module, folder: Path) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return {(recipe, trial): (dB, accuracy before, after)} of one network."""
    data = load_data("digits")
    images = torch.stack([data.val[0, index][0] for index in range(len(data.val))])
    labels = torch.tensor(data.val.labels)
    with torch.no_grad():
        expected = torch.cat([model(part) for part in images.split(64)])
    graph = to_onnx(capture(model, images[:2], ("batch",), plain=True), {0: "batch"})
    trials = parts(graph, gate_nodes(graph, model))
    strip(graph)
    write(graph, folder / "float32.onnx")
    seen = calibration_images(model, "digits", (1, 8, 8), 256)
    found = {}
    for recipe, (name, keep) in itertools.product(RECIPES, trials.items()):
        RECIPES[recipe](folder / "float32.onnx", folder / "int8.onnx", seen, 32, keep)
        got = scores(folder / "int8.onnx", images)
        right = [float((each.argmax(1) == labels).double().mean()) for each in (expected, got)]
        found[recipe, name] = (decibels(expected, got), *right)
    return found


def main() -> None:
    """Train, quantize, print the table."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--write", action="store_true")
    given = options.parse_args()
    rows = []
    for network, words in NETWORKS.items():
        found = []
        for seed in range(given.seeds):
            with TemporaryDirectory() as folder:
                model = train(Path(folder) / "run", words, seed, given.epochs)
                found.append(measure(model, Path(folder)))
                print(network, seed, found[-1], flush=True)
        for trial in found[0]:
            db, before, after = zip(*(each[trial] for each in found), strict=True)
            spread = f"{statistics.mean(db):.1f} ({min(db):.1f} to {max(db):.1f})"
            rows.append(
                [network, *trial, spread, f"{statistics.mean(before):.2%}", f"{statistics.mean(after):.2%}"]
            )
    table = Section(
        "Results", ["network", "quantized by", "what", "dB", "top-1 float32", "top-1 int8"], rows
    ).markdown()
    print(table)
    if given.write:
        TARGET.write_text(
            f"{INTRODUCTION}\n{given.seeds} seeds, {given.epochs} epochs.\n\n{table}\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
