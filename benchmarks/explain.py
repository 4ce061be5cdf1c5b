"""What it costs to look: gates beside a forward pass, Grad-CAM beside forward and backward, explain beside the network.

    python benchmarks/explain.py [--threads 1] [--rounds 25]

A paper_resnet50_cbam, 224 x 224. The sides of a ratio are timed in turns in one process, by the time that it has a
processor, so that a busy machine matters less; the table shows the median of the rounds' ratios with its quartiles,
and that of the fastest rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import cbam
from cbam.evaluate.timing import Candidate, ProcessorClock, interleave, quartiles, ratios
from cbam.explain.cams import class_activation_maps
from cbam.models import build_model
from cbam.runs.tables import markdown

MODEL = "paper_resnet50_cbam"
HEADS = ["", "beside", "ratio, median", "quartiles", "fastest rounds", "milliseconds", "aim"]


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Return the scores."""
    with torch.inference_mode():
        return model(images)


def recorded(model: nn.Module, images: Tensor) -> object:
    """Run the same and record all gates."""
    with torch.inference_mode(), cbam.attention_maps(model) as maps:
        model(images)
    return maps


def forward_backward(model: nn.Module, images: Tensor) -> None:
    """Make gradients for all weights and drop them."""
    F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()
    model.zero_grad(set_to_none=True)


def rows_of(
    name: str,
    ours: Callable[[], object],
    others: dict[str, Callable[[], object]],
    aims: dict[str, str],
    rounds: int,
) -> list[list[str]]:
    """Time one thing beside others, in turns; return a row for each of the others."""
    times = interleave(
        {
            name: Candidate(ours, grad=True),
            **{other: Candidate(call, grad=True) for other, call in others.items()},
        },
        rounds=rounds,
        seconds=600,
        clock=ProcessorClock(),
    )
    rows = []
    for other in others:
        found = ratios(times[name], times[other])
        low, middle, high = quartiles(found)
        least = min(times[name]) / min(times[other])
        cells = [f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{least:.3f}"]
        rows.append([name, other, *cells, f"{statistics.median(times[name]):.1f}", aims.get(other, "")])
        print("  ".join(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Time all rows and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build_model(MODEL, 1000).eval()
    rows: list[list[str]] = []
    for count in options.batches:
        images = torch.rand(count, 3, 224, 224)
        one = partial(forward, model, images)
        both = partial(forward_backward, model, images)
        cams = partial(class_activation_maps, model, "layer4", images, [0] * count)
        what = f"of {count} image{'s' * (count > 1)}"
        rows += rows_of(f"attention_maps {what}", partial(recorded, model, images), {"forward": one},
                        {"forward": "at most 1.02"}, options.rounds)  # fmt: skip
        rows += rows_of(f"Grad-CAM {what}", cams, {"forward and backward": both, "forward": one},
                        {"forward and backward": "at most 1.1"}, options.rounds)  # fmt: skip
        pictures = [Image.new("RGB", (320, 240), (index, 90, 200)) for index in range(count)]
        seen = partial(cbam.explain, model, pictures, label=0)
        rows += rows_of(f"explain {what}", seen, {"forward and backward": both, "forward": one},
                        {"forward and backward": "at most 2"}, options.rounds)  # fmt: skip
    print(
        "\n".join(["", *markdown(HEADS, rows), "", f"torch {torch.__version__}, {options.threads} thread(s)"])
    )


if __name__ == "__main__":
    main()
