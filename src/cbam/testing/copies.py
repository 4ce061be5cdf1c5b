"""Checks of what a module survives: copies, files, conversion of its norms, moving averages."""

from __future__ import annotations

import copy
import io
import json
import pickle

import torch
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.nn.base import AttentionModule
from cbam.nn.registry import describe
from cbam.testing.subject import Subject, expect, not_applicable, same, same_bits

_SAME = "has the same state dict and computes something else: what counts is not in the state dict"


def deepcopy(s: Subject) -> None:
    """A deep copy computes the same and shares nothing with the module."""
    block, x = s.build(), s.map()
    clone = _copy(block)
    with torch.no_grad():
        y = block(x)
        same_bits(clone(x), y, "the map of a deep copy")
        _move(clone)
        same_bits(block(x), y, "the map after the weights of a copy changed")
        if any(True for _ in block.parameters()):
            expect(
                not torch.equal(clone(x), y),
                "the weights of a deep copy do not count: it uses the original's",
            )


def pickled(s: Subject) -> None:
    """A pickle of the whole module computes the same; what workers that spawn and `torch.save` need."""
    block, x = s.build(), s.map()
    try:
        loaded = pickle.loads(pickle.dumps(block))
    except Exception as error:  # whatever a module's parts raise
        raise AssertionError(f"it cannot be pickled ({type(error).__name__}: {error})") from error
    with torch.no_grad():
        same_bits(loaded(x), block(x), "the map of the unpickled module")


def state_dict(s: Subject) -> None:
    """Another module with the state dict of a trained one computes the same, at identity too."""
    block, x = s.build(), s.map()
    _train(block, x)
    twin = copy.deepcopy(block)
    s.kind.set_identity(twin)
    for trained in (block, twin):
        with torch.no_grad():
            other = s.build(seed=7)
            other(x)  # it may keep what it computed from its own weights
            other.load_state_dict(_through_a_file(trained.state_dict()), strict=True)
            same_bits(other.eval()(x), trained.eval()(x), f"the map of a module that {_SAME}")


def saved(s: Subject) -> None:
    """Its name and options, as `save_pretrained` writes them, build one that computes the same."""
    block, x = s.build(), s.map()
    _train(block, x)
    try:
        kind, options = describe(block)
    except CBAMError as error:
        raise not_applicable("not registered, so save_pretrained refuses it") from error
    try:
        options = json.loads(json.dumps(options))
    except TypeError as error:
        raise AssertionError(f"JSON cannot hold its options ({error})") from error
    other = kind.build_again(s.channels, options, device=s.device, dtype=s.dtype)
    with torch.no_grad():
        other.load_state_dict(block.state_dict(), strict=True)
        same_bits(other.eval()(x), block.eval()(x), "the map of the module built again")


def sync_batch_norm(s: Subject) -> None:
    """`convert_sync_batchnorm` converts every norm, and the module still computes the same."""
    block, x = s.build(), s.map()
    y = block(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(_copy(block)).eval()
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    left = [name for name, m in converted.named_modules() if isinstance(m, plain)]
    same(left, [], "norms that were not converted")
    s.close(converted(x), y, "the map after the conversion")


def moving_average(s: Subject) -> None:
    """A moving average of the weights (EMA) follows the module and computes with its own weights."""
    block, x = s.build(), s.map()
    average = torch.optim.swa_utils.AveragedModel(
        block, use_buffers=True, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(block)
    with torch.no_grad():
        s.close(average.eval()(x), block(x), "the map of the first average")
        before = [p.clone() for p in average.parameters()]
        _move(block)
        average.update_parameters(block)
        moved = [not torch.equal(a, b) for a, b in zip(before, average.parameters(), strict=True)]
        expect(all(moved), "the average does not follow every weight")
        half = _copy(block)
        for parameter, b in zip(half.parameters(), before, strict=True):
            parameter.copy_((parameter + b) / 2)
        half.load_state_dict({**half.state_dict(), **dict(average.module.named_buffers())}, strict=False)
        s.close(average.eval()(x), half.eval()(x), "the map of the average")


def _copy(block: AttentionModule) -> AttentionModule:
    try:
        return copy.deepcopy(block)
    except Exception as error:  # whatever a module's parts raise
        raise AssertionError(f"it cannot be copied ({type(error).__name__}: {error})") from error


def _through_a_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _move(block: nn.Module) -> None:
    for parameter in block.parameters():
        parameter.add_(0.25)


def _train(block: nn.Module, x: Tensor) -> None:
    """Take two steps; some modules move numbers that are no parameters."""
    optimizer = (
        torch.optim.SGD(block.parameters(), lr=0.01) if any(True for _ in block.parameters()) else None
    )
    for _ in range(2):
        block.train()(x).square().mean().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    block.eval()
