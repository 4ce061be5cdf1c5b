"""What of a file goes where in a model: every decision that needs names, shapes and types, and no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from cbam.checkpoints.backbones import from_pytorchcv
from cbam.checkpoints.committing import misfit
from cbam.checkpoints.dialects import Dialect, check_shapes
from cbam.checkpoints.fitting import SCALES, attach_call
from cbam.checkpoints.placing import place, sites_of
from cbam.checkpoints.recognise import Found
from cbam.checkpoints.report import shortened
from cbam.checkpoints.unpacking import Unpacked
from cbam.errors import CBAMError
from cbam.nn import CBAM
from cbam.nn.base import AttentionModule

ORDER = "cbam.descriptor_order"  # a string beside the tensors of our own files
MIXED = "mixed"  # its value where the sites differ: each reads its kernel as its own module does


@dataclass(frozen=True)
class Match:
    """A file matched with a model.

    Args:
        dialect: of the file, None for a plain network.
        sites: {prefix: attention module} of the model.
        places: {block's prefix: site's prefix}.
        taken: {name in the file: name in the model}, blocks left out.
        left_over: names in the file that have no place.
        misfits: what has another shape or type, in words.
        missing: names in the model that nothing sets.
        kept: attention weights of the model, if the file is that of a plain network.
    """

    dialect: Dialect | None
    sites: dict[str, AttentionModule]
    places: dict[str, str]
    taken: dict[str, str]
    left_over: tuple[str, ...]
    misfits: tuple[str, ...]
    missing: tuple[str, ...]
    kept: tuple[str, ...]


def match(
    model: nn.Module, packed: Unpacked, found: Found, given: Mapping[str, str] | None, partial: bool
) -> Match:
    """Match a file with a model.

    Args:
        model: looked at only.
        packed, found: the file and what was recognised in it.
        given: sites that the user has named.
        partial: what is missing or left over is no error.

    Raises:
        CBAMError: blocks of impossible shapes or without a place; tensors that do not fit the model.
    """
    own, sites = model.state_dict(), sites_of(model)
    dialect = _dialect(packed, found, sites)
    if dialect is not None:
        for prefix, block in found.blocks.items():
            check_shapes(dialect, block, f"{packed.name}, block {prefix.removesuffix('.')!r}")
        if not sites and not partial:
            raise _no_attention(packed, found, dialect)
    rename: Callable[[str], str] = (
        from_pytorchcv if dialect is not None and dialect.name == "pytorchcv" else str
    )
    said = {rename(f"{block}.").removesuffix("."): site for block, site in (given or {}).items()}
    placed = place([rename(prefix) for prefix in found.blocks], sites, said) if sites else {}
    places = {prefix: placed[rename(prefix)] for prefix in found.blocks if sites}
    taken, left_over = _rest(found, own, rename)
    left_over += [p + name for p, block in found.blocks.items() if p not in places for name in block]
    words = {
        key: text
        for key, name in taken.items()
        if name in own and (text := misfit(name, found.rest[key], own[name]))
    }
    misshapen = {taken.pop(key) for key in words}
    missing, kept = _missing(own, sites, places, set(taken.values()))
    absent = [key for key in missing if key not in misshapen]
    parts = (
        ("missing", absent),
        ("without a place", left_over),
        ("of another shape or type", list(words.values())),
    )
    if any(names for _, names in parts) and not partial:
        problems = "; ".join(f"{len(names)} {kind} ({shortened(names)})" for kind, names in parts if names)
        raise CBAMError(
            f"{packed.name} does not fit {type(model).__name__}: {problems}. Is it the network that they were"
            " trained for? In Python, cbam.load_weights(model, file, partial=True) loads what fits."
        )
    return Match(
        dialect, sites, places, taken, tuple(left_over), tuple(words.values()), tuple(missing), tuple(kept)
    )


def _rest(
    found: Found, own: Mapping[str, Tensor], rename: Callable[[str], str]
) -> tuple[dict[str, str], list[str]]:
    """Return {name in the file: name in the model} beside the blocks, and the names that have no place."""
    taken, left_over = {}, []
    scales = {prefix + name for prefix in found.blocks for name in SCALES}
    for key in found.rest:
        name = rename(key)
        if name in own or (key not in scales and _is_scale(name, found.rest[key], own)):
            taken[key] = name
        elif key not in scales:
            left_over.append(key)
    return taken, left_over


def _is_scale(name: str, value: Tensor, own: Mapping[str, Tensor]) -> bool:
    """Return whether this is the scale of a gate that has none now: the gate takes it all the same."""
    gate = name.removesuffix("gate_scale")
    return gate != name and value.ndim == 0 and any(key.startswith(gate) for key in own)


def _missing(
    own: Mapping[str, Tensor], sites: Mapping[str, AttentionModule], places: Mapping[str, str], set_: set[str]
) -> tuple[list[str], list[str]]:
    """Return what nothing sets, and, for the file of a plain network, the attention that stays as it is."""
    attention = {key for key in own if key.startswith(tuple(sites))} if sites else set()
    filled = tuple(places.values())
    missing = [
        key
        for key in own
        # Older files lack the counters, which only norms without a momentum read; a scale is set with its gate.
        if key not in set_ and not key.endswith(("num_batches_tracked", "gate_scale"))
        and not (filled and key.startswith(filled))
    ]  # fmt: skip
    if places or attention & set_:
        return missing, []
    return [key for key in missing if key not in attention], [key for key in missing if key in attention]


def _dialect(packed: Unpacked, found: Found, sites: Mapping[str, AttentionModule]) -> Dialect | None:
    """Return the file's dialect; a file in our own names reads its kernels as it says, or else as the model does."""
    if found.dialect is None or found.dialect.name != "cbam":
        return found.dialect
    said = packed.metadata.get(ORDER)
    if said in ("max-avg", "avg-max"):
        return replace(found.dialect, max_first=said == "max-avg")
    if said == MIXED:
        return replace(found.dialect, max_first=None)
    orders = {
        site.spatial_attention.descriptor_order
        for site in sites.values()
        if isinstance(site, CBAM) and site.spatial_attention is not None
    }
    if orders == {"avg-max"} or not orders:
        return found.dialect
    names = {name for block in found.blocks.values() for name in block}
    bare = not any(".norm." in name or name.endswith(".bias") for name in names)
    if bare and not any(key.endswith(SCALES) for key in packed.shapes):
        raise CBAMError(
            f"{packed.name} has the names of the textbook module, whose kernel reads [mean, max], and of this"
            " library, and kernels in the model read [max, mean]. If it is the textbook's: dialect='textbook' (--from)."
            " If it is this library's: model.load_state_dict, or save it with cbam.save_pretrained."
        )
    return replace(found.dialect, max_first=True if len(orders) == 1 else None)


def _no_attention(packed: Unpacked, found: Found, dialect: Dialect) -> CBAMError:
    prefix, block = next(iter(found.blocks.items()))
    gates = dialect.parse(block, f"block {prefix.removesuffix('.')!r}")
    return CBAMError(
        f"{packed.name} holds {len(found.blocks)} blocks of CBAM ({dialect.name}), and the model has no attention."
        f" Attach it first: {attach_call(gates, dialect.max_first)}"
    )
