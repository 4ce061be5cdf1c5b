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
from cbam.checkpoints.formats import FORMATS, Format, check_shapes, is_textbook
from cbam.checkpoints.gates import Gates
from cbam.checkpoints.reading import look_at
from cbam.checkpoints.recognise import Found, recognise
from cbam.checkpoints.report import BlockRow, block_table
from cbam.checkpoints.switches import (
    MIXED,
    ORDER,
    Switches,
    as_header,
    as_state_dict,
    of_block,
    parts_of,
    unusual,
)
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
        out: .safetensors, or .pth or .pt for a state dict by `torch.save`.
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
    state, switches, report = converted(source, to, format, outer_residual, entry, descriptor_order)
    write(out, state, to, switches)
    return report


def write(out: Path, state: Mapping[str, Tensor], to: str, switches: Switches) -> None:
    """Write a state dict atomically, as safetensors or as a pickle of tensors, by the file's suffix.

    Args:
        out: the file.
        state: names to tensors.
        to: their format.
        switches: of the attention, written beside the tensors.
    """
    if out.suffix == ".safetensors":
        tensors_file.write(out, state, {"cbam.format": to, **as_header(switches)})
        return
    buffer = io.BytesIO()
    whole = {name: value.detach().cpu().clone() for name, value in state.items()}
    torch.save(as_state_dict(whole, switches) if switches else whole, buffer)
    write_atomically(out, buffer.getvalue())


def converted(
    source: str | Path | Mapping[str, Any],
    to: str,
    format: str = "auto",
    outer_residual: bool = False,
    entry: str | None = None,
    descriptor_order: str | None = None,
) -> tuple[dict[str, Tensor], Switches, Conversion]:
    """Return the converted state dict, the switches of its attention by module, and the report; see `convert`."""
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    packed, found, formats, order_notes = _open(source, format, entry, descriptor_order)
    for prefix, block in found.blocks.items():
        check_shapes(formats[prefix], block, f"{packed.name}, block {prefix.removesuffix('.')!r}")
    assert found.format is not None
    tensors = packed.tensors()
    scales = {prefix + name for prefix in found.blocks for name in SCALES}
    state = {_rename(key, found.format, FORMATS[to]): tensors[key] for key in found.rest if key not in scales}
    rows, notes, attach = [], dict.fromkeys([*packed.notes, *order_notes]), ""
    switches: dict[str, Mapping[str, str]] = {}
    for prefix, block in found.blocks.items():
        here, said, where = (
            formats[prefix],
            of_block(packed.switches, prefix),
            f"block {prefix.removesuffix('.')!r}",
        )
        there = replace(FORMATS[to], max_first=here.max_first) if to == "cbam" else FORMATS[to]
        gates = here.parse({name: tensors[prefix + name] for name in block}, where)
        _refuse_what_is_ours_alone(prefix, tensors, said, here, to)
        if outer_residual:
            gates = replace(gates, adds_input=there.adds_input)
        attach = attach_call(gates, here.max_first, said)
        target = _moved(prefix, here, there, found.rest)
        eval_only: list[str] = []
        written = there.write(gates, where, eval_only)
        state |= {target + name: value for name, value in written.items()}
        if to == "cbam":
            switches |= _with_order(parts_of(packed.switches, prefix), target, gates, here.max_first)
        changes = ["kernel planes swapped"] if here.max_first != there.max_first else []
        rows.append(
            BlockRow(prefix.removesuffix("."), target.removesuffix("."), len(written), (*changes, *eval_only))
        )
        notes |= dict.fromkeys(f"{note}: equal outputs in eval mode only" for note in eval_only)
    if to == "cbam":
        notes[f"attention that takes these weights: {attach}"] = None
    report = Conversion(packed.name, found.format.name, to, len(state), tuple(rows), attach, tuple(notes))
    return state, switches, report


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
    >>> form_in(CBAM(32, kernel_size=3, gate="hardsigmoid").state_dict())
    {'preset': 'paper', 'kernel_size': 3, 'gate': 'hardsigmoid', 'descriptor_order': 'avg-max'}
    """
    packed, found, formats, _ = _open(source, format, entry, descriptor_order)
    prefix, block = next(iter(found.blocks.items()))
    here, where = formats[prefix], f"block {prefix.removesuffix('.')!r}"
    check_shapes(here, block, where)
    options = attach_options(here.parse(block, where), here.max_first, of_block(packed.switches, prefix))
    return {**options, "descriptor_order": _order(here.max_first)}


def _open(
    source: str | Path | Mapping[str, Any], format: str, entry: str | None, descriptor_order: str | None
) -> tuple[Unpacked, Found, dict[str, Format], list[str]]:
    packed = unpack(look_at(source), entry)
    found = recognise(packed.shapes, packed.name, format)
    if found.format is None:
        raise CBAMError(
            f"{packed.name} holds no block of CBAM, so there is nothing to convert. Weights of a plain network, or with"
            " other attention, load as they are: cbam.load_weights(model, file)."
        )
    for prefix in found.blocks:
        descriptor = of_block(packed.switches, prefix).get("spatial_descriptor", "both")
        if descriptor != "both":
            raise CBAMError(
                f"block {prefix.removesuffix('.')!r} has spatial_descriptor={descriptor!r}, a kernel of one plane,"
                " which no other format has. Load it as it is: cbam.load_weights(model, file)."
            )
    formats, notes = _with_orders(packed, found, found.format, descriptor_order)
    return packed, found, formats, notes


def _with_orders(
    packed: Unpacked, found: Found, format: Format, given: str | None
) -> tuple[dict[str, Format], list[str]]:
    """Return each block's format with the order of its kernel's planes, and a note if that was assumed."""
    if given is not None and given not in DESCRIPTOR_ORDERS:
        raise unknown_name("descriptor_order", given, DESCRIPTOR_ORDERS)
    own = format.name == "cbam"
    if not own and given is not None and format.max_first != (given == "max-avg"):
        raise CBAMError(
            f"{packed.name}: {format.name} reads {_order(format.max_first)}. Leave out {given!r}."
        )
    if not own:
        return dict.fromkeys(found.blocks, format), []
    formats, notes = {}, dict[str, None]()
    for prefix, block in found.blocks.items():
        order = packed.order_of(prefix)
        if None not in (order, given) and order != given:
            raise CBAMError(f"{packed.name} says that its kernels read {order}. Leave out {given!r}.")
        order = order or given
        if f"{format.kernel}.weight" not in block:
            order = order or "avg-max"  # it has no kernel
        elif order is None and packed.metadata.get(ORDER) == MIXED:
            raise CBAMError(
                f"{packed.name} holds kernels that read mean and maximum in different orders and does not say which."
                " Load it as it is: cbam.from_pretrained(folder, model)."
            )
        elif order is None and not is_textbook(block):
            raise CBAMError(
                f"{packed.name} does not record in which order its kernels read mean and maximum: preset 'official'"
                " and 'timm' differ there. Pass descriptor_order='max-avg' (--descriptor-order) for official,"
                " 'avg-max' for timm. torch.save(model.state_dict()) and cbam.save_pretrained record it; a dictionary"
                " made from a state dict, and safetensors' own save_file, do not."
            )
        elif order is None:
            notes["its kernels were assumed to read [mean, max], as those of the preset 'paper' and the textbook"
                  " module do"] = None  # fmt: skip
        formats[prefix] = replace(format, max_first=order == "max-avg")
    return formats, list(notes)


def _order(max_first: bool | None) -> str:
    return "max-avg" if max_first else "avg-max"


def _with_order(
    said: Mapping[str, Mapping[str, str]], target: str, gates: Gates, max_first: bool | None
) -> dict[str, Mapping[str, str]]:
    """Return the switches of a block that are written beside its tensors, by module."""
    if gates.kernel is None:
        return dict(said)
    spatial = f"{target}spatial_attention"
    return {**said, spatial: {**said.get(spatial, {}), "descriptor_order": _order(max_first)}}


def _refuse_what_is_ours_alone(
    prefix: str, tensors: Mapping[str, Tensor], said: Mapping[str, str], here: Format, to: str
) -> None:
    if to != "cbam" and (odd := unusual(said)):
        raise CBAMError(
            f"block {prefix.removesuffix('.')!r} has {', '.join(f'{k}={v!r}' for k, v in odd.items())}: another"
            f" function than {to}'s block computes from the same weights."
        )
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
