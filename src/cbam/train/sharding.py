"""Weights, gradients and optimizer states sharded over the processes (FSDP2), for networks too large for one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from cbam.errors import CBAMError


def shard(model: nn.Module, device_type: str, world: int) -> None:
    """Divide the parameters of `model` over all processes, in place: each stage is gathered when it runs.

    Args:
        model: On its device.
        device_type: "cuda", "cpu", ...
        world: Number of processes.

    Raises:
        CBAMError: There is one process only.
    """
    if world == 1:
        raise CBAMError(
            "--shard divides the network over processes, and there is one. Start several: torchrun ..."
        )
    mesh = init_device_mesh(device_type, (world,))
    for stage in list(_stages(model)):
        fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)


def set_sync(model: nn.Module, sync: bool) -> None:
    """Choose whether the next backward pass adds up gradients over the processes; False while accumulating."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(sync)


def _stages(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):  # never called itself
            yield from _stages(child)
        elif any(True for _ in child.parameters()):
            yield child
