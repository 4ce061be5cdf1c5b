"""Convert a checkpoint of one format to another."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbam.checkpoints import tensors_file
from cbam.checkpoints.backbones import from_pytorchcv, to_pytorchcv
from cbam.checkpoints.fitting import SCALES, attach_call, attach_options
from cbam.checkpoints.formats import FORMATS, Format, check_shapes
from cbam.checkpoints.matching import MIXED, ORDER
from cbam.checkpoints.reading import look_at
from cbam.checkpoints.recognise import Found, recognise
from cbam.checkpoints.report import BlockRow, block_table
from cbam.checkpoints.unpacking import Unpacked, unpack
from cbam.errors import CBAMError, unknown_name
from cbam.files import write_atomically
from cbam.ops.reference import DESCRIPTOR_ORDERS

SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote; `print` it.

    Args:
        source: the file.
        format, to: source and target format.
        tensors: how many were written.
        blocks: a row for each attention block.
        attach: the call that gives a model the attention these weights need.
        notes: other remarks.
    """

    source: str
    format: str
    to: str
    tensors: int
    blocks: tuple[BlockRow, ...]
    attach: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.source}: {self.format} to {self.to}; {self.tensors} tensors written",
                *block_table(self.blocks),
                *(f"note: {note}" for note in self.notes),
            ]
        )


def convert(
    source: str | Path | Mapping[str, Any],
    out: str | Path,
    to: str = "cbam",
    format: str = "auto",
    *,
    outer_residual: bool = False,
    entry: str | None = None,
    descriptor_order: str | None = None,
) -> Conversion:
    """Convert a checkpoint from one format to another; the network's other weights are kept.

    Args:
        source, format, outer_residual, entry: as for `cbam.load_weights`.
        out: .safetensors, or .pth or .pt for a plain dictionary by `torch.save`.
        to: the format to write.
        descriptor_order: "avg-max" or "max-avg", for files with this library's names that do not record it.

    Returns:
        What was converted; `print` shows a table.

    Raises:
        CBAMError: as `cbam.load_weights`, or weights that the other format cannot express; nothing is written then.

    >>> import tempfile
    >>> from cbam import CBAM
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(str(convert(CBAM(32).state_dict(), f"{folder}/luuuyi.pth", to="luuuyi")).splitlines()[0])
    the given state dict: cbam to luuuyi; 3 tensors written
    """
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise unknown_name("kind of file", out.suffix or out.name, SUFFIXES)
    state, metadata, report = converted(source, to, format, outer_residual, entry, descriptor_order)
    write(out, state, metadata)
    return report


def write(out: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict atomically, as safetensors or as a pickle of tensors, by the file's suffix.

    Raises:
        CBAMError: a pickle for weights that need `metadata`, which it cannot hold.
    """
    if out.suffix == ".safetensors":
        tensors_file.write(out, state, metadata)
        return
    if ORDER in metadata:
        raise CBAMError(
            "weights with this library's names need .safetensors, which also records the order of their kernels."
        )
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu().clone() for name, value in state.items()}, buffer)
    write_atomically(out, buffer.getvalue())


def converted(
    source: str | Path | Mapping[str, Any],
    to: str,
    format: str = "auto",
    outer_residual: bool = False,
    entry: str | None = None,
    descriptor_order: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, str], Conversion]:
    """Return the converted state dict, its metadata, and the report; see `convert`."""
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    packed, found, here, order_notes = _open(source, format, entry, descriptor_order)
    for prefix, block in found.blocks.items():
        check_shapes(here, block, f"{packed.name}, block {prefix.removesuffix('.')!r}")
    there = replace(FORMATS[to], max_first=here.max_first) if to == "cbam" else FORMATS[to]
    tensors = packed.tensors()
    scales = {prefix + name for prefix in found.blocks for name in SCALES}
    state = {_rename(key, here, there): tensors[key] for key in found.rest if key not in scales}
    rows, notes, attach = [], dict.fromkeys([*packed.notes, *order_notes]), ""
    for prefix, block in found.blocks.items():
        where = f"block {prefix.removesuffix('.')!r}"
        gates = here.parse({name: tensors[prefix + name] for name in block}, where)
        _refuse_scales(prefix, tensors, here, to)
        if outer_residual:
            gates = replace(gates, adds_input=there.adds_input)
        attach = attach_call(gates, here.max_first)
        target = _moved(prefix, here, there, found.rest)
        eval_only: list[str] = []
        written = there.write(gates, where, eval_only)
        state |= {target + name: value for name, value in written.items()}
        changes = ["kernel planes swapped"] if here.max_first != there.max_first else []
        rows.append(
            BlockRow(prefix.removesuffix("."), target.removesuffix("."), len(written), (*changes, *eval_only))
        )
        notes |= dict.fromkeys(f"{note}: equal outputs in eval mode only" for note in eval_only)
    metadata = {"cbam.format": to}
    if to == "cbam":
        metadata[ORDER] = "max-avg" if there.max_first else "avg-max"
        notes[f"attention that takes these weights: {attach}"] = None
    return (
        state,
        metadata,
        Conversion(packed.name, here.name, to, len(state), tuple(rows), attach, tuple(notes)),
    )


def form_in(
    source: str | Path | Mapping[str, Any],
    format: str = "auto",
    entry: str | None = None,
    descriptor_order: str | None = None,
) -> dict[str, Any]:
    """Return the options of `cbam.attach` with which a model takes a checkpoint unchanged.

    Args:
        source, format, entry, descriptor_order: as for `convert`.

    Raises:
        CBAMError: as `convert`.

    >>> from cbam import CBAM
    >>> form_in(CBAM(32, kernel_size=3).state_dict())
    {'preset': 'paper', 'kernel_size': 3, 'descriptor_order': 'avg-max'}
    """
    _, found, here, _ = _open(source, format, entry, descriptor_order)
    prefix, block = next(iter(found.blocks.items()))
    where = f"block {prefix.removesuffix('.')!r}"
    check_shapes(here, block, where)
    order = "max-avg" if here.max_first else "avg-max"
    return {**attach_options(here.parse(block, where), here.max_first), "descriptor_order": order}


def _open(
    source: str | Path | Mapping[str, Any], format: str, entry: str | None, descriptor_order: str | None
) -> tuple[Unpacked, Found, Format, list[str]]:
    packed = unpack(look_at(source), entry)
    found = recognise(packed.shapes, packed.name, format)
    if found.format is None:
        raise CBAMError(
            f"{packed.name} holds no attention, so there is nothing to convert. A plain network's weights load as"
            " they are: cbam.load_weights(model, file)."
        )
    here, notes = _with_order(found, packed.name, packed.metadata.get(ORDER, descriptor_order))
    return packed, found, here, notes


def _with_order(found: Found, name: str, order: str | None) -> tuple[Format, list[str]]:
    """Return the file's format with the order of its kernels' planes, and a note if that was assumed."""
    format = found.format
    assert format is not None
    if format.name != "cbam":
        return format, []
    if order == MIXED:
        raise CBAMError(
            f"{name} holds kernels that read mean and maximum in different orders, by site, and no other format has"
            " that. Load it as it is: cbam.from_pretrained(folder, model)."
        )
    if order is not None:
        if order not in DESCRIPTOR_ORDERS:
            raise unknown_name("descriptor_order", order, DESCRIPTOR_ORDERS)
        return replace(format, max_first=order == "max-avg"), []
    names = {name for block in found.blocks.values() for name in block}
    if any(".norm." in name or name.endswith(".bias") for name in names):
        raise CBAMError(
            f"{name} does not record in which order its kernels read mean and maximum: preset 'official' and 'timm'"
            " differ there. Pass descriptor_order='max-avg' (--descriptor-order) for official, 'avg-max' for timm."
        )
    return format, [
        "its kernels were assumed to read [mean, max], as those of the preset 'paper' and the textbook module do"
    ]


def _refuse_scales(prefix: str, tensors: Mapping[str, Tensor], here: Format, to: str) -> None:
    scales = {name: float(tensors[prefix + name]) for name in SCALES if prefix + name in tensors}
    if here.name == "cbam" and any(scale != 1 for scale in scales.values()):
        of_gates = [scale for name, scale in scales.items() if name.endswith("gate_scale")]
        variance = next((value for name, value in scales.items() if not name.endswith("gate_scale")), 1.0)
        logits = "z" if variance == 1 else f"z / {variance**0.5:g}"
        gate = f"{max(of_gates, default=1.0):g} sigmoid({logits})"
        raise CBAMError(
            f"block {prefix.removesuffix('.')!r} has gates of {gate}, as after cbam.attach(init='identity'), and"
            f" {to} has none. Type cbam.fold_gate_scale(model) and save again."
        )


def _moved(prefix: str, here: Format, there: Format, rest: Mapping[str, Tensor]) -> str:
    """Return the prefix of a block in the other format's network."""
    if not prefix:
        return ""
    if here.name == there.name:
        return prefix
    path = prefix.removesuffix(".")
    if here.attribute and path.rpartition(".")[2] == here.attribute:
        path = path.rpartition(".")[0]
        # Attached attention hangs on a layer of the block: layer1.0.bn3.cbam belongs to layer1.0.
        if any(f"{path}.{leaf}" in rest for leaf in ("weight", "running_mean")):
            path = path.rpartition(".")[0]
    moved = ".".join(filter(None, (path, there.attribute))) + "."
    return _rename(moved, here, there)


def _rename(key: str, here: Format, there: Format) -> str:
    if here.name == there.name:
        return key
    key = from_pytorchcv(key) if here.name == "pytorchcv" else key
    return to_pytorchcv(key) if there.name == "pytorchcv" else key
