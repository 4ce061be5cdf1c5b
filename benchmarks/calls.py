"""What it costs to call attention where next to nothing is computed, and what a network of small maps pays for it.

    python benchmarks/calls.py [calls|networks|divisor ...] [--threads 1] [--rounds 100]

Everything that is compared is timed in turns in one process, so that a busy machine slows all of it down; a ratio is
the median over the rounds, in brackets its 95% interval. With one thread the clock is the time that the process has had
a processor. `networks` and `divisor` take about a minute each.

calls: one call on 1x64x4x4, in calls of what stands there without it.
networks: inference of one image and a training step of two (forward, cross entropy, backward and SGD with momentum), in
    times of the plain network: with the textbook module and with timm's, each put behind its host by nn.Sequential, and
    with `cbam.attach`, as it is by default and in the paper's form, which has no scales.
divisor: CBAM at the identity start, which divides the logits of its spatial gate, in times of the same without
    it; beside it the same without it once more, in times of itself: what this machine can tell.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam import CBAM, attach
from cbam.attach.wrapper import WithAttention
from cbam.evaluate import references
from cbam.evaluate.timing import Candidate, Clock, ProcessorClock, interleave, ratios
from cbam.models import build_model

SHAPE = (1, 64, 4, 4)
RELU, NORM, MODULE, ATTACHED = "relu", "norm", "module", "attached"
CALLS = {  # name: (what is called, what it is compared with, training, forward and backward, aim in microseconds)
    "CBAM(64)": (MODULE, RELU, False, False, 40),
    "CBAM(64), forward and backward": (MODULE, RELU, False, True, 250),
    "norm with CBAM": (ATTACHED, NORM, False, False, 60),
    "norm with CBAM, training, forward and backward": (ATTACHED, NORM, True, True, 250),
}
PLAIN, TEXTBOOK, TIMM, OURS, PAPER = "plain", "textbook", "timm's", "cbam.attach", "the same, init='paper'"
NETWORKS = (("resnet18", 32), ("mobilenet_v3_small", 224))
MAPS = ((64, 56), (128, 28), (256, 14), (512, 7))
WITHOUT, WITH, AGAIN = "without", "with", "without, again"
Timer: TypeAlias = Callable[[Mapping[str, Candidate]], dict[str, list[float]]]


def main() -> None:
    """Time what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--rounds", type=int, default=100, help="how often each is timed (default: 100)")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}: {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.rounds} rounds")
    clock = ProcessorClock() if arguments.threads == 1 else Clock()
    for part in arguments.parts or PARTS:
        print(f"\n{part}")
        PARTS[part](partial(interleave, rounds=arguments.rounds, clock=clock))


def calls(time: Timer) -> None:
    """Time single calls."""
    for name, (kind, other, training, backward, aim) in CALLS.items():
        times = time({each: _call(each, training, backward) for each in (kind, other)})
        ours, plain = times[kind], times[other]
        print(
            f"{name:48}{1e3 * min(ours):7.1f} us, median {1e3 * statistics.median(ours):7.1f} (aim {aim}),"
            f" {median_of(ratios(ours, plain))} of {other} ({1e3 * min(plain):.1f} us)"
        )


def networks(time: Timer) -> None:
    """Time inference and a training step of whole networks."""
    for model, side in NETWORKS:
        for training in (False, True):
            built = _networks(model, side)
            torch.manual_seed(0)
            # At 32 px the last maps are 1 x 1: of one image a batch norm takes no statistics.
            images, target = torch.randn(2, 3, side, side), torch.tensor([3, 4])
            batch = images if training else images[:1]
            steps = {name: _step(network, batch, target, training) for name, network in built.items()}
            what = "training step, 2 images" if training else "inference, 1 image"
            _print_ratios(f"{model}, {side} px, {what}", time(steps), PLAIN)


def divisor(time: Timer) -> None:
    """Time the module with and without the divisor of its spatial logits."""
    for batch in (1, 8):
        for channels, side in MAPS:
            for backward in (False, True):
                torch.manual_seed(0)
                x = torch.randn(batch, channels, side, side)
                given = CBAM(channels)
                given.set_identity()
                modules = {name: copy.deepcopy(given) for name in (WITHOUT, WITH, AGAIN)}
                for name in (WITHOUT, AGAIN):
                    modules[name].get_submodule("spatial_attention").set_divisor(None)  # type: ignore[operator]
                timed = {name: _timed(module, x.clone(), backward) for name, module in modules.items()}
                what = "forward and backward" if backward else "forward"
                times = time(timed)
                _print_ratios(f"{batch}x{channels}x{side}x{side}, {what}", times, WITHOUT)


PARTS: dict[str, Callable[[Timer], None]] = {"calls": calls, "networks": networks, "divisor": divisor}


def median_of(values: Sequence[float]) -> str:
    """Return the median with its 95% interval, which supposes nothing of how the values are spread.

    >>> median_of([1.0] * 10 + [2.0] * 11)
    '2.000 (1.000 to 2.000)'
    """
    ordered = sorted(values)
    # The number of values below the median is binomial: its mean is n / 2, its deviation sqrt(n) / 2.
    reach = 0.98 * len(ordered) ** 0.5
    low = ordered[max(0, int(len(ordered) / 2 - reach))]
    high = ordered[min(len(ordered) - 1, int(len(ordered) / 2 + reach))]
    return f"{statistics.median(ordered):.3f} ({low:.3f} to {high:.3f})"


def _print_ratios(title: str, times: Mapping[str, Sequence[float]], reference: str) -> None:
    print(f"{title}: {reference} {statistics.median(times[reference]):.3f} ms")
    for name, each in times.items():
        if name != reference:
            print(f"    {name:24} {median_of(ratios(each, times[reference]))}")


def _call(kind: str, training: bool, backward: bool) -> Candidate:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(SHAPE[1])
    parts: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        RELU: lambda: torch.relu,
        NORM: lambda: norm.train(training),
        MODULE: lambda: CBAM(SHAPE[1]).train(training),
        ATTACHED: lambda: WithAttention(copy.deepcopy(norm), CBAM(SHAPE[1])).train(training),
    }
    return _timed(parts[kind](), torch.randn(SHAPE), backward)


def _timed(call: Callable[[Tensor], Tensor], x: Tensor, backward: bool) -> Candidate:
    if not backward:
        return Candidate(lambda: call(x))
    x.requires_grad_()
    grad = torch.ones_like(x)
    return Candidate(lambda: call(x).backward(grad), grad=True)


def _networks(model: str, side: int) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    plain = build_model(model, 10)
    paper, ours, timm = (copy.deepcopy(plain) for _ in range(3))
    attachment = attach(paper, init="paper", input_size=side)
    attach(ours, input_size=side)
    for site in attachment.sites:
        host, block = timm.get_submodule(site.name), paper.get_submodule(f"{site.name}.cbam")
        theirs = references.timm_module(block.state_dict(), site.channels)
        timm.set_submodule(site.name, nn.Sequential(host, theirs))
    textbook = references.with_module(references.Textbook, plain, paper, attachment)
    built = {PLAIN: plain, TEXTBOOK: textbook, TIMM: timm, OURS: ours, PAPER: paper}
    for network in built.values():
        references.calibrate(network, torch.randn(4, 3, side, side))
    return built


def _step(network: nn.Module, images: Tensor, target: Tensor, training: bool) -> Candidate:
    network.train(training)
    if not training:
        return Candidate(partial(network, images))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        F.cross_entropy(network(images), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Candidate(step, grad=True)


if __name__ == "__main__":
    main()
