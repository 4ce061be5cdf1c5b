"""Weights from any checkpoint into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cbam.checkpoints.committing import commit, unwrapped
from cbam.checkpoints.fitting import (
    DESCRIPTOR,
    SCALES,
    carries_over,
    fit,
    reads_maximum_first,
    refuse_another_function,
)
from cbam.checkpoints.foreign import recognise_for
from cbam.checkpoints.formats import Format
from cbam.checkpoints.matching import Match, match
from cbam.checkpoints.reading import look_at
from cbam.checkpoints.report import BlockRow, WeightsReport
from cbam.checkpoints.switches import of_block
from cbam.checkpoints.unpacking import Unpacked, unpack
from cbam.errors import CBAMError


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    format: str = "auto",
    partial: bool = False,
    *,
    sites: Mapping[str, str] | None = None,
    adapt: bool = False,
    outer_residual: bool = False,
    entry: str | None = None,
) -> WeightsReport:
    """Load a checkpoint of any known format into a model: all of it, or nothing.

    A plain network's file also fits the model with attached attention, whose gates then keep their values. A file with
    attention needs a model with attention of the same form; if a bias, a norm or a width differs, the error names the
    `cbam.attach` call that fits.

    Args:
        model: changed in place; unchanged if this raises.
        source: a .safetensors file, a file of `torch.save` (read with `weights_only=True`), a folder with
            model.safetensors, a run's folder (its best weights), or a state dict.
        format: "auto", or one of cbam, official, pytorchcv, timm, textbook, luuuyi, changzy00, mmyolo, xmu.
        partial: load the tensors that fit and report the others.
        sites: {block in the file: site in the model}, where the names are ambiguous.
        adapt: convert forms that differ: fold or add a norm (equal outputs in eval mode only), add or drop biases that
            are zero.
        outer_residual: the network itself computes `x + block(x)`, which xmu's block does inside.
        entry: which state dict of the file to load, such as "state_dict_ema".

    Returns:
        What was loaded and converted, and what was missing or unexpected; `print` shows a table.

    Raises:
        CBAMError: a file that is missing, damaged or hostile; attention that is not CBAM; weights that do not fit.

    >>> from torchvision.models import resnet18
    >>> from cbam import attach
    >>> plain, model = resnet18(), resnet18()
    >>> _ = attach(model)
    >>> print(str(load_weights(model, plain.state_dict())).splitlines()[0])
    the given state dict: no block of CBAM; 122 tensors loaded
    """
    if not isinstance(model, nn.Module):
        raise CBAMError(f"model expects a torch.nn.Module, got {type(model).__name__}.")
    inner = unwrapped(model)
    if any(tensor.is_meta for tensor in inner.parameters()):
        raise CBAMError(
            "the model has parameters without memory. Give it some first: model.to_empty(device=...)."
        )
    packed = unpack(look_at(source), entry, inner.state_dict())
    return load_unpacked(inner, packed, format, partial, sites, adapt, outer_residual)


def load_unpacked(
    inner: nn.Module,
    packed: Unpacked,
    format: str = "auto",
    partial: bool = False,
    sites: Mapping[str, str] | None = None,
    adapt: bool = False,
    outer_residual: bool = False,
) -> WeightsReport:
    """Load one state dict out of a file; arguments and errors are those of `load_weights`.

    Args:
        inner: the model without the wrappers of torch.compile and data parallelism.
        packed: the state dict.
        format, partial, sites, adapt, outer_residual: as for `load_weights`.
    """
    found = recognise_for(inner, packed, format)
    matched = match(inner, packed, found, sites, partial)
    tensors = packed.tensors()
    state = {name: tensors[key] for key, name in matched.taken.items()}
    rows = []
    for prefix, site in matched.assigned.items():
        block = {
            name: tensors[prefix + name]
            for name in (*found.blocks[prefix], *SCALES, DESCRIPTOR)
            if prefix + name in tensors
        }
        said = of_block(packed.switches, prefix)
        weights, row = _block(block, prefix, site, matched, said, adapt, outer_residual)
        state |= {site + name: value for name, value in weights.items()}
        rows.append(row)
    report = _report(packed, matched, state, rows, inner.state_dict())
    commit(inner, state)
    return report


def _block(
    block: dict[str, Tensor],
    prefix: str,
    site: str,
    matched: Match,
    said: Mapping[str, str],
    adapt: bool,
    outer_residual: bool,
) -> tuple[dict[str, Tensor], BlockRow]:
    """Return the weights of one site, and the report's row."""
    module, max_first = matched.sites[site], matched.max_first[prefix]
    assert matched.format is not None
    max_first = bool(reads_maximum_first(module)) if max_first is None else max_first
    format = replace(matched.format, max_first=max_first)
    source, target = prefix.removesuffix("."), site.removesuffix(".")
    where = f"block {source!r}, site {target!r}"
    changes: list[str] = []
    refuse_another_function(said, block, format, module, where)
    if not _is_own(block, module, format):
        gates = format.parse(block, where)
        if outer_residual:
            gates = replace(gates, adds_input=False)
        scales = {name: block[name] for name in SCALES if name in block}
        block, changes = fit(gates, module, format, where, adapt)
        block |= scales
    return block, BlockRow(source, target, len(block), tuple(changes))


def _is_own(block: Mapping[str, Tensor], module: Any, format: Format) -> bool:
    """Return whether a block goes into a module as it is."""
    if format.name != "cbam" or not carries_over(block, module):
        return False
    return reads_maximum_first(module) in (None, format.max_first)


def _report(
    packed: Unpacked,
    matched: Match,
    state: Mapping[str, Tensor],
    rows: list[BlockRow],
    own: Mapping[str, Tensor],
) -> WeightsReport:
    casts = {
        f"{str(value.dtype).removeprefix('torch.')} to {str(own[name].dtype).removeprefix('torch.')}"
        for name, value in state.items()
        if name in own and value.dtype != own[name].dtype
    }
    notes = [*packed.notes, *(f"cast from {cast}" for cast in sorted(casts))]
    notes += [f"not loaded: {text}" for text in matched.misfits]
    return WeightsReport(
        packed.name,
        matched.format.name if matched.format else None,
        tuple(state),
        tuple(rows),
        matched.missing,
        matched.unexpected,
        matched.kept,
        tuple(notes),
    )
