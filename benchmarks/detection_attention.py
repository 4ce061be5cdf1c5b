"""Attention's share of a detector's training step: with this library's operator, and with the textbook module.

    python benchmarks/detection_attention.py --image-size 320 --batch-size 2 --rounds 11

Three detectors with the same weights take the same step in turns: forward, backward and SGD with momentum, on random
images with two objects each. CBAM is at the end of every residual branch. The table shows medians of the rounds' ratios
to the plain detector, with quartiles; a share is the time that the plain detector does not need, over the whole. Times
are those of the processor, which other work on the machine disturbs less: run it with OMP_NUM_THREADS=1.
Needs pip install '.[compare]'.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cbam.attach import attach
from cbam.evaluate.references import Textbook, with_module
from cbam.evaluate.timing import Candidate, ProcessorClock, interleave, quartiles, ratios
from cbam.models.detection import build_detector
from cbam.nn import CBAM
from cbam.nn.route import route

FEW = {"rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 24}
CLASSES = 3
PLAIN, OURS, TEXTBOOK = "plain", "cbam operator", "textbook"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fasterrcnn_resnet18_fpn")
    parser.add_argument("--norm", choices=("batch", "frozen"), default="batch")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    side = options.image_size
    torch.manual_seed(0)
    images = [torch.rand(3, side, side) for _ in range(options.batch_size)]
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.7], [0.3, 0.4, 0.9, 0.8]]) * side
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
    detectors = build(options.model, options.norm, side)
    steps = {name: step_of(model, images, targets) for name, model in detectors.items()}
    times = interleave(
        {name: Candidate(step, grad=True) for name, step in steps.items()},
        rounds=options.rounds,
        clock=ProcessorClock(),
    )
    print(f"{options.model}, norms {options.norm}, {options.batch_size} images of {side} px,", end=" ")
    print(f"{options.rounds} rounds, {torch.get_num_threads()} thread(s); torch {torch.__version__}")
    print("| detector | ms a step | over plain | attention's share |\n|---|---|---|---|")
    for name, samples in times.items():
        over = ratios(samples, times[PLAIN])
        low, middle, high = quartiles(over)
        shares = quartiles([1 - 1 / ratio for ratio in over])
        share = "{1:.1%} [{0:.1%}, {2:.1%}]".format(*shares) if name != PLAIN else ""
        print(f"| {name} | {quartiles(samples)[1]:.1f} | {middle:.3f} [{low:.3f}, {high:.3f}] | {share} |")


def build(name: str, norm: str, side: int) -> dict[str, nn.Module]:
    """Return the plain detector, with this library's CBAM, and with the textbook module at the same places."""
    plain = build_detector(name, CLASSES, norm=norm, min_size=side, max_size=side, **FEW)
    attended = copy.deepcopy(plain)
    attachment = attach(attended, "cbam", init="paper", example_input=([torch.rand(3, side, side)],))
    for gate in attended.modules():
        if isinstance(gate, CBAM) and (why := route(gate)) != ("operator", ""):
            raise SystemExit(f"the operator is what is measured, and it does not run: {why}")
    textbook = with_module(Textbook, plain, attended, attachment)
    return {PLAIN: plain.train(), OURS: attended.train(), TEXTBOOK: textbook.train()}


def step_of(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Callable[[], object]:
    """Return one training step; every one draws the same samples of regions."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9)

    def step() -> None:
        torch.manual_seed(0)
        loss = sum(model(images, [dict(target) for target in targets]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
