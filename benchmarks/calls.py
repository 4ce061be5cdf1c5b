"""What it costs to call attention on a small map, in calls of what stands there without it.

    python benchmarks/calls.py [--threads 1] [--rounds 60]

On 1x64x4x4 there is next to nothing to compute: what is left is the call. The two sides of a ratio are timed in turns
in one process, so that a busy machine slows both down.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cbam import CBAM
from cbam.attach.wrapper import WithAttention
from cbam.evaluate.timing import Candidate, interleave, ratios

SHAPE = (1, 64, 4, 4)
RELU, NORM = "relu", "norm"
CASES = {  # name: (what is called, what it is compared with, training, forward and backward)
    "CBAM(64)": ("module", RELU, False, False),
    "CBAM(64), forward and backward": ("module", RELU, False, True),
    "norm with CBAM": ("attached", NORM, False, False),
    "norm with CBAM, training, forward and backward": ("attached", NORM, True, True),
}


def main() -> None:
    """Time all rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--rounds", type=int, default=60, help="how often each is timed (default: 60)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {'x'.join(map(str, SHAPE))}")
    print(f"{'':48}{'us, least':>10}{'median':>9}{'  ratio: least, median'}")
    for name, (kind, other, training, backward) in CASES.items():
        calls = {each: candidate(each, training, backward) for each in (kind, other)}
        times = interleave(calls, rounds=arguments.rounds)
        ours, plain = times[kind], times[other]
        ratio = min(ours) / min(plain), statistics.median(ratios(ours, plain))
        print(
            f"{name:48}{1e3 * min(ours):10.1f}{1e3 * statistics.median(ours):9.1f}"
            f"  {ratio[0]:.2f}, {ratio[1]:.2f} of {other} ({1e3 * min(plain):.1f})"
        )


def candidate(kind: str, training: bool, backward: bool) -> Candidate:
    """Return a call on a small map, with its backward pass or without gradients."""
    torch.manual_seed(0)
    x, grad = torch.randn(SHAPE), torch.randn(SHAPE)
    norm = nn.BatchNorm2d(SHAPE[1])
    parts: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        RELU: lambda: torch.relu,
        NORM: lambda: norm.train(training),
        "module": lambda: CBAM(SHAPE[1]).train(training),
        "attached": lambda: WithAttention(copy.deepcopy(norm), CBAM(SHAPE[1])).train(training),
    }
    call = parts[kind]()
    if not backward:
        return Candidate(lambda: call(x))
    x.requires_grad_()
    return Candidate(lambda: call(x).backward(grad), grad=True)


if __name__ == "__main__":
    main()
