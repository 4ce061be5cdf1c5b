"""Which tensor of a file sets which tensor of a model: all decisions that need names, shapes and types, but no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from cbam.checkpoints.backbones import from_pytorchcv
from cbam.checkpoints.committing import misfit
from cbam.checkpoints.fitting import NUMBERS, SCALES, attach_call
from cbam.checkpoints.formats import Format, check_shapes
from cbam.checkpoints.recognise import Found
from cbam.checkpoints.report import shortened
from cbam.checkpoints.sites import assign, sites_of
from cbam.checkpoints.unpacking import Unpacked
from cbam.errors import CBAMError
from cbam.nn import CBAM
from cbam.nn.base import AttentionModule

ORDER = "cbam.descriptor_order"  # metadata of our own files
MIXED = "mixed"  # its value where the sites differ: each kernel is in the order of its own module


@dataclass(frozen=True)
class Match:
    """A file matched with a model.

    Args:
        format: of the file; None for a plain network.
        sites: {prefix: attention module} of the model.
        assigned: {prefix of a block in the file: prefix of its site}.
        taken: {name in the file: name in the model} of all tensors outside blocks.
        unexpected: names in the file that the model does not have.
        misfits: a sentence for each tensor of another shape or type.
        missing: names in the model that the file does not have.
        kept: attention weights of the model, which keep their values if the file is a plain network's.
    """

    format: Format | None
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
    format = _format(packed, found, sites)
    if format is not None:
        for prefix, block in found.blocks.items():
            check_shapes(format, block, f"{packed.name}, block {prefix.removesuffix('.')!r}")
        if not sites and not partial:
            raise _no_attention(packed, found, format)
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
        sites,
        assigned,
        taken,
        tuple(unexpected),
        tuple(sentences.values()),
        tuple(missing),
        tuple(kept),
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


def _format(packed: Unpacked, found: Found, sites: Mapping[str, AttentionModule]) -> Format | None:
    """Return the file's format, for our own with the order of its kernels' planes: as recorded, or as in the model."""
    if found.format is None or found.format.name != "cbam":
        return found.format
    said = packed.metadata.get(ORDER)
    if said in ("max-avg", "avg-max"):
        return replace(found.format, max_first=said == "max-avg")
    if said == MIXED:
        return replace(found.format, max_first=None)
    orders = {
        site.spatial_attention.descriptor_order
        for site in sites.values()
        if isinstance(site, CBAM) and site.spatial_attention is not None
    }
    if orders == {"avg-max"} or not orders:
        return found.format
    names = {name for block in found.blocks.values() for name in block}
    bare = not any(".norm." in name or name.endswith(".bias") for name in names)
    if bare and not any(key.endswith(SCALES) for key in packed.shapes):
        raise CBAMError(
            f"{packed.name} has the names of the textbook module, whose kernel reads [mean, max], and of this"
            " library, and kernels in the model read [max, mean]. If it is the textbook's: format='textbook' (--from)."
            " If it is this library's: model.load_state_dict, or save it with cbam.save_pretrained."
        )
    return replace(found.format, max_first=True if len(orders) == 1 else None)


def _no_attention(packed: Unpacked, found: Found, format: Format) -> CBAMError:
    prefix, block = next(iter(found.blocks.items()))
    gates = format.parse(block, f"block {prefix.removesuffix('.')!r}")
    return CBAMError(
        f"{packed.name} holds {len(found.blocks)} blocks of CBAM ({format.name}), and the model has no attention."
        f" Attach it first: {attach_call(gates, format.max_first)}"
    )
