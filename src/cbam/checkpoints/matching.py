"""Which tensor of a file sets which tensor of a model: all decisions that need names, shapes and types, but no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from cbam.checkpoints.backbones import from_pytorchcv
from cbam.checkpoints.committing import misfit
from cbam.checkpoints.fitting import NUMBERS, SCALES, attach_call
from cbam.checkpoints.formats import Format, check_shapes, is_textbook
from cbam.checkpoints.recognise import Found
from cbam.checkpoints.report import shortened
from cbam.checkpoints.sites import assign, sites_of
from cbam.checkpoints.switches import MIXED, ORDER, of_block
from cbam.checkpoints.unpacking import Unpacked
from cbam.errors import CBAMError
from cbam.nn import CBAM
from cbam.nn.base import AttentionModule


@dataclass(frozen=True)
class Match:
    """A file matched with a model.

    Args:
        format: of the file; None for a plain network.
        max_first: {prefix of a block in the file: its kernel's first plane reads the maximum}; None: as in its site.
        sites: {prefix: attention module} of the model.
        assigned: {prefix of a block in the file: prefix of its site}.
        taken: {name in the file: name in the model} of all tensors outside blocks.
        unexpected: names in the file that the model does not have.
        misfits: a sentence for each tensor of another shape or type.
        missing: names in the model that the file does not have.
        kept: attention weights of the model, which keep their values if the file is a plain network's.
    """

    format: Format | None
    max_first: dict[str, bool | None]
    sites: dict[str, AttentionModule]
    assigned: dict[str, str]
    taken: dict[str, str]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    missing: tuple[str, ...]
    kept: tuple[str, ...]


def match(
    model: nn.Module, packed: Unpacked, found: Found, given: Mapping[str, str] | None, partial: bool
) -> Match:
    """Match a file with a model.

    Args:
        model: is not changed.
        packed, found: the file and the blocks found in it.
        given: {block: site} from the user.
        partial: missing and unexpected tensors are no error.

    Raises:
        CBAMError: blocks of impossible shapes or without a site; tensors that do not fit the model.
    """
    own, sites = model.state_dict(), sites_of(model)
    format, max_first = found.format, _orders(packed, found, sites)
    if format is not None:
        for prefix, block in found.blocks.items():
            if not _is_in(own, prefix, block):
                check_shapes(format, block, f"{packed.name}, block {prefix.removesuffix('.')!r}")
        if not sites and not partial:
            raise _no_attention(packed, found, format, max_first)
    rename: Callable[[str], str] = (
        from_pytorchcv if format is not None and format.name == "pytorchcv" else str
    )
    said = {rename(f"{block}.").removesuffix("."): site for block, site in (given or {}).items()}
    sites_by_name = assign([rename(prefix) for prefix in found.blocks], sites, said) if sites else {}
    assigned = {prefix: sites_by_name[rename(prefix)] for prefix in found.blocks if sites}
    taken, unexpected = _rest(found, own, rename)
    unexpected += [p + name for p, block in found.blocks.items() if p not in assigned for name in block]
    sentences = {
        key: text
        for key, name in taken.items()
        if name in own and (text := misfit(name, found.rest[key], own[name]))
    }
    misshapen = {taken.pop(key) for key in sentences}
    missing, kept = _missing(own, sites, assigned, set(taken.values()))
    absent = [key for key in missing if key not in misshapen]
    parts = (
        ("missing", absent),
        ("unexpected", unexpected),
        ("of another shape or type", list(sentences.values())),
    )
    if any(names for _, names in parts) and not partial:
        problems = "; ".join(f"{len(names)} {kind} ({shortened(names)})" for kind, names in parts if names)
        raise CBAMError(
            f"{packed.name} does not fit {type(model).__name__}: {problems}. Is it the network that they were"
            " trained for? In Python, cbam.load_weights(model, file, partial=True) loads what fits."
        )
    return Match(
        format,
        max_first,
        sites,
        assigned,
        taken,
        tuple(unexpected),
        tuple(sentences.values()),
        tuple(missing),
        tuple(kept),
    )


def _is_in(own: Mapping[str, Tensor], prefix: str, block: Mapping[str, Tensor]) -> bool:
    """Return whether the model has a block of these names and shapes at the same place, of whatever form."""
    return all(
        prefix + name in own and own[prefix + name].shape == value.shape for name, value in block.items()
    )


def _rest(
    found: Found, own: Mapping[str, Tensor], rename: Callable[[str], str]
) -> tuple[dict[str, str], list[str]]:
    """Return {name in the file: name in the model} outside blocks, and the unexpected names."""
    taken, unexpected = {}, []
    scales = {prefix + name for prefix in found.blocks for name in SCALES}
    gates = {key[: dot + 1] for key in own for dot, letter in enumerate(key) if letter == "."} | {""}
    for key in found.rest:
        name = rename(key)
        if name in own or (key not in scales and _is_scale(name, found.rest[key], gates)):
            taken[key] = name
        elif key not in scales:
            unexpected.append(key)
    return taken, unexpected


def _is_scale(name: str, value: Tensor, gates: set[str]) -> bool:
    """Return whether this is a number of a gate that has none now but accepts one."""
    gate, dot, last = name.rpartition(".")
    return last in NUMBERS and value.ndim == 0 and gate + dot in gates


def _missing(
    own: Mapping[str, Tensor],
    sites: Mapping[str, AttentionModule],
    assigned: Mapping[str, str],
    set_: set[str],
) -> tuple[list[str], list[str]]:
    """Return the missing names, and, for a plain network's file, those of the attention, which keeps its values."""
    attention = {key for key in own if key.startswith(tuple(sites))} if sites else set()
    filled = tuple(assigned.values())
    missing = [
        key
        for key in own
        # Older files lack the counters, which only norms without a momentum read; these of a gate are set with it.
        if key not in set_ and not key.endswith(("num_batches_tracked", *NUMBERS))
        and not (filled and key.startswith(filled))
    ]  # fmt: skip
    if assigned or attention & set_:
        return missing, []
    return [key for key in missing if key not in attention], [key for key in missing if key in attention]


def _orders(packed: Unpacked, found: Found, sites: Mapping[str, AttentionModule]) -> dict[str, bool | None]:
    """Return whether each kernel's first plane reads the maximum: as the format or the file says; None: as its site."""
    if found.format is None or found.format.name != "cbam":
        return dict.fromkeys(found.blocks, found.format.max_first if found.format else None)
    said = {prefix: packed.order_of(prefix) for prefix in found.blocks}
    kernel = f"{found.format.kernel}.weight"
    unsaid = [prefix for prefix, order in said.items() if order is None and kernel in found.blocks[prefix]]
    orders = {
        site.spatial_attention.descriptor_order
        for site in sites.values()
        if isinstance(site, CBAM) and site.spatial_attention is not None
    }
    names = {name for prefix in unsaid for name in found.blocks[prefix]}
    own = packed.metadata.get(ORDER) == MIXED or any(key.endswith(SCALES) for key in packed.shapes)
    if orders - {"avg-max"} and unsaid and is_textbook(names) and not own:
        raise CBAMError(
            f"{packed.name} has the names of the textbook module, whose kernel reads [mean, max], and of this"
            " library, and kernels in the model read [max, mean]. If it is the textbook's: format='textbook' (--from)."
            " If it is this library's: model.load_state_dict, or save it with cbam.save_pretrained."
        )
    return {prefix: None if order is None else order == "max-avg" for prefix, order in said.items()}


def _no_attention(
    packed: Unpacked, found: Found, format: Format, max_first: Mapping[str, bool | None]
) -> CBAMError:
    prefix, block = next(iter(found.blocks.items()))
    gates = format.parse(block, f"block {prefix.removesuffix('.')!r}")
    call = attach_call(gates, max_first[prefix], of_block(packed.switches, prefix))
    return CBAMError(
        f"{packed.name} holds {len(found.blocks)} blocks of CBAM ({format.name}), and the model has no attention."
        f" Attach it first: {call}"
    )
