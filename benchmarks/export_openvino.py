"""Compare an exported network and its int8 form in onnxruntime and OpenVINO, on pictures and on noise.

    python benchmarks/export_openvino.py net.onnx int8.onnx [--data digits]

Both files come from `cbam export ... --dynamic batch` of one run. Needs the package openvino. Prints how far the scores
are from those of the float32 file, and from those of the int8 file computed as it is written: integers turned into
float32 in front of every step (onnxruntime without its optimizations). docs/export.md has the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray

from cbam.data import load_data
from cbam.export import load
from cbam.export.quantize import decibels
from cbam.formatting import columns

Scores = NDArray[np.float32]
Runner = Callable[[Scores], Scores]


def with_onnxruntime(path: str, optimized: bool = True) -> Runner:
    """Return a file as a function."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"input": images})[0]


def with_openvino(path: str, **options: str) -> Runner:
    """Return a file as a function."""
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda images: compiled(images)[0]


def main() -> None:
    """Print a table for each kind of input."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("float32")
    options.add_argument("int8")
    options.add_argument("--data", default="digits")
    given = options.parse_args()
    form = load(given.float32).metadata["preprocessing"]
    data = load_data(given.data, image_size=form["size"][0], mean=form["mean"], std=form["std"])
    pictures = torch.stack([data.val[0, index][0] for index in range(128)]).numpy()
    noise = np.random.default_rng(0).standard_normal(pictures.shape).astype(np.float32)
    runners = {
        "onnxruntime, int8": with_onnxruntime(given.int8),
        "onnxruntime, int8, as written": with_onnxruntime(given.int8, optimized=False),
        "OpenVINO, float32": with_openvino(given.float32, INFERENCE_PRECISION_HINT="f32"),
        "OpenVINO, float32, without the hint": with_openvino(given.float32),
        "OpenVINO, int8": with_openvino(given.int8, INFERENCE_PRECISION_HINT="f32"),
        "OpenVINO, int8, without the hint": with_openvino(given.int8),
    }
    print(openvino.__version__, openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    for name, images in {"pictures": pictures, "noise": noise}.items():
        expected = with_onnxruntime(given.float32)(images)
        written = runners["onnxruntime, int8, as written"](images)
        rows = [
            (f"{name}, scores up to {abs(expected).max():.1f}", "from float32", "dB", "from int8 as written")
        ]
        for title, run in runners.items():
            found = run(images)
            db = decibels(torch.from_numpy(expected), torch.from_numpy(found))
            apart = [abs(found - other).max() for other in (expected, written)]
            rows.append((title, f"{apart[0]:.2g}", f"{db:.1f}", f"{apart[1]:.2g}"))
        print("\n".join(columns(rows)))


if __name__ == "__main__":
    main()
