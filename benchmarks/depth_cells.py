"""What benchmarks/depth.py measures of one network: its costs, its first gradients and gates, and a short training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cbam
from cbam.data import load_data
from cbam.models import build_model, made_for

QUARTERED = "plain, branches / 4"
# Name -> (attention, init). The paper's equations without a norm in the spatial gate.
VARIANTS = {
    "plain": ("none", ""),
    QUARTERED: ("none", ""),
    "SE": ("se", "identity"),
    "cbam, identity init": ("cbam", "identity"),
    "cbam, paper init": ("cbam", "paper"),
}
START_IMAGES = 16
SATURATED = 0.05  # a sigmoid below this or above one minus this
DEAD = 0.01  # a gate that differs by less between all images of a batch


@dataclass(frozen=True)
class Training:
    """How a network is trained: SGD with Nesterov momentum 0.9, a warm-up over a tenth of the steps, then a cosine."""

    data: str = "fashion-mnist"
    image_size: int = 14
    steps: int = 200
    batch_size: int = 32
    lr: float = 0.05
    weight_decay: float = 1e-4
    limit_train: int = 10_000
    limit_val: int = 500


def cost_cell(model: str, variant: str) -> dict[str, Any]:
    """Count parameters, multiply-adds and bytes saved for backward, for one image of the size that it was made for."""
    classes, size = made_for(model)
    found = cbam.cost(build(model, variant, 0, classes, size), size)
    return {
        "blocks": len(blocks_of(build(model, "plain", 0, classes, size))),
        "parameters": found.parameters,
        "macs": found.macs,
        "bytes_saved": found.bytes_saved,
        "input": list(size),
    }


def start_cell(model: str, variant: str, seed: int, data: str) -> dict[str, Any]:
    """Return the relative gradient norm of every block and what its gates do, for one batch before any training."""
    size = 28 if made_for(model)[0] == 10 else 64
    images, labels = batch_of(images_of(data, size, 1000, 500).train, seed, 0, START_IMAGES)
    network = build(model, variant, seed, 10, tuple(images.shape[1:]))
    scores, gates = looked_at(network.train(), images)
    loss = F.cross_entropy(scores, labels)
    loss.backward()
    return {
        "loss": loss.item(),
        "gradients": [relative_gradient(block) for block in blocks_of(network)],
        "gates": gates,
    }


def train_cell(model: str, variant: str, seed: int, training: Training) -> dict[str, Any]:
    """Train for a few steps; return the loss of every step, the accuracy, and what the gates do before and after."""
    data = images_of(training.data, training.image_size, training.limit_train, training.limit_val)
    network = build(model, variant, seed, len(data.classes), data.input_size).train()
    rates = {"lr": training.lr, "momentum": 0.9, "weight_decay": training.weight_decay}
    optimizer = torch.optim.SGD(network.parameters(), **rates, nesterov=True)
    warm = max(1, training.steps // 10)

    def rate(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / training.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses: list[float] = []
    watched = {0: "first", training.steps // 2: "middle", training.steps - 1: "last"}
    gates: dict[str, Any] = {}
    for step in range(training.steps):
        images, labels = batch_of(data.train, seed, step, training.batch_size)
        if step in watched:
            scores, gates[watched[step]] = looked_at(network, images)
        else:
            scores = network(images)
        loss = F.cross_entropy(scores, labels)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {"losses": losses, "accuracy": accuracy(network, data.val), "gates": gates}


def build(model: str, variant: str, seed: int, classes: int, size: tuple[int, int, int]) -> nn.Module:
    """Build a network with fresh weights; those outside the gates depend on the seed alone."""
    torch.manual_seed(seed)
    network = build_model(model, classes, in_channels=size[0])
    attention, init = VARIANTS[variant]
    if variant == QUARTERED:
        quarter_branches(network, size)
    if attention != "none":
        cbam.attach(network, attention, init=init, input_size=size)
    return network


def quarter_branches(network: nn.Module, size: tuple[int, int, int]) -> None:
    """Multiply every residual branch by 1/4 where CBAM would be: what two fresh sigmoids do on average."""
    for site in cbam.plan(network, input_size=size).sites:
        network.get_submodule(site.name).register_forward_hook(lambda module, inputs, output: output * 0.25)


@cache
def images_of(data: str, size: int, limit_train: int, limit_val: int) -> Any:
    """Load the images once, grey ones at `size` x `size`."""
    return load_data(data, image_size=size, limit_train=limit_train, limit_val=limit_val)


def batch_of(dataset: Any, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the images (N, C, H, W) and labels (N) of one step, the same for every network and variant."""
    per_epoch = max(1, len(dataset) // size)
    epoch, number = divmod(step, per_epoch)
    chosen = dataset.order(seed, epoch, True)[number * size : (number + 1) * size]
    items = [dataset.with_seed(seed)[epoch, int(index)] for index in chosen]
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


@torch.no_grad()
def accuracy(network: nn.Module, dataset: Any, batch_size: int = 50) -> float:
    """Return the share of the images that are classified correctly."""
    network.eval()
    correct = 0
    for begin in range(0, len(dataset), batch_size):
        items = [dataset[0, index] for index in range(begin, min(begin + batch_size, len(dataset)))]
        logits = network(torch.stack([image for image, _ in items]))
        correct += int((logits.argmax(1) == torch.tensor([label for _, label in items])).sum())
    return correct / len(dataset)


def looked_at(network: nn.Module, images: Tensor) -> tuple[Tensor, list[dict[str, float]]]:
    """Return the scores, and what the gates of every CBAM do to make them: means, saturated and dead shares."""
    blocks = [module for module in network.modules() if isinstance(module, cbam.CBAM)]
    if not blocks:
        return network(images), []
    with cbam.attention_maps(network) as maps:
        scores = network(images)
    rows = []
    for block, gates in zip(blocks, maps.values(), strict=True):
        parts = {"channel": block.channel_attention, "spatial": block.spatial_attention}
        row: dict[str, float] = {}
        for name, part in parts.items():
            scale = 1.0 if part.gate_scale is None else part.gate_scale
            row |= {f"{name} {key}": value for key, value in describe(getattr(gates, name) / scale).items()}
        rows.append(row)
    return scores, rows


def describe(sigmoid: Tensor) -> dict[str, float]:
    """Return mean, saturated share and dead share of gates (N, ...) before their scale."""
    spread = sigmoid.amax(0) - sigmoid.amin(0)
    saturated = (sigmoid < SATURATED) | (sigmoid > 1 - SATURATED)
    return {
        "mean": float(sigmoid.mean()),
        "saturated": float(saturated.float().mean()),
        "dead": float((spread < DEAD).float().mean()),
        "spread": float(spread.mean()),
    }


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the residual blocks in the order in which they run."""
    stages = [getattr(network, f"layer{number}", None) for number in (1, 2, 3, 4)]
    return [block for stage in stages if stage is not None for block in stage]


def relative_gradient(block: nn.Module) -> float:
    """Return the norm of the gradient over the norm of the weights, of all convolutions that are not gates'."""
    attention = [m for m in block.modules() if isinstance(m, (cbam.CBAM, cbam.SqueezeExcitation))]
    gates = {parameter for module in attention for parameter in module.parameters()}
    weights = [p for p in block.parameters() if p.ndim == 4 and p not in gates]
    gradient = math.sqrt(sum(float(p.grad.square().sum()) for p in weights if p.grad is not None))
    return gradient / math.sqrt(sum(float(p.detach().square().sum()) for p in weights))
