"""Find the attention blocks of a state dict and their format, and refuse attention that is not CBAM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cbam.checkpoints.formats import FORMATS, Format
from cbam.errors import CBAMError, unknown_name

# A name inside a block -> which module has it, and why it cannot be converted.
REFUSED = {
    "channel_attention.fc.weight": (
        "ultralytics' CBAM",
        (
            "its channel gate is one C x C layer on the average alone, with no bottleneck and no maximum: another"
            " function, which CBAM's two-layer MLP cannot compute"
        ),
    ),
    "channel_att.gate_c.gate_c_fc_0.weight": (
        "BAM (Park et al., BMVC 2018)",
        (
            "it multiplies by 1 + sigmoid of both gates at once, with batch norms in the MLP and dilated"
            " convolutions: another module"
        ),
    ),
}
_LIGHT = (
    "timm's light CBAM (lcbam)",
    (
        "it averages the mean and the maximum before one pass through the MLP, and ReLU(a + b) is not"
        " ReLU(a) + ReLU(b): CBAM's gate cannot compute it"
    ),
)


@dataclass(frozen=True)
class Found:
    """The blocks of one format in a state dict.

    Args:
        format: of the blocks; None where there is no attention.
        blocks: prefix of a block ("layer1.0.cbam.", or "") to {name inside the block: tensor}.
        rest: all other tensors.
    """

    format: Format | None
    blocks: dict[str, dict[str, Tensor]]
    rest: dict[str, Tensor]


def recognise(state: Mapping[str, Tensor], name: str, format: str = "auto") -> Found:
    """Find the attention blocks in a state dict; tensors need no data.

    Args:
        state: names to tensors.
        name: of the file, for messages.
        format: "auto", or a name from `FORMATS`.

    Raises:
        CBAMError: an unknown format, or one without blocks in the file; blocks of two formats; attention that is
            not CBAM.

    >>> import torch
    >>> keys = ("ca.fc.0.weight", "ca.fc.2.weight", "sa.conv1.weight")
    >>> recognise({f"layer1.0.{key}": torch.empty(0) for key in keys}, "the file").format.name
    'luuuyi'
    """
    if format != "auto" and format not in FORMATS:
        raise unknown_name("format", format, ["auto", *FORMATS])
    refuse_what_is_not_cbam(state, name)
    candidates = [d for d in FORMATS.values() if d.name != "textbook"]
    found = {d.name: prefixes for d in candidates if (prefixes := _prefixes(state, d))}
    if format != "auto":
        prefixes = _prefixes(state, FORMATS[format])
        if not prefixes:
            there = f"It holds {', '.join(found)}." if found else "It holds no attention that is known."
            raise CBAMError(f"{name} has no block of the format {format!r}. {there}")
        return _split(state, FORMATS[format], prefixes)
    if len(found) > 1:
        raise CBAMError(
            f"{name} holds blocks of {len(found)} formats: {', '.join(f'{k} ({len(v)})' for k, v in found.items())}."
            " Pass the one to load as format=... (--from)."
        )
    if not found:
        return Found(None, {}, dict(state))
    ((only, prefixes),) = found.items()
    return _split(state, FORMATS[only], prefixes)


def refuse_what_is_not_cbam(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse attention called CBAM, or used beside it, that computes another function.

    Raises:
        CBAMError: with the module's origin and why it cannot be converted.
    """
    for key, tensor in state.items():
        for ending, (whose, why) in REFUSED.items():
            if key == ending or key.endswith("." + ending):
                raise CBAMError(f"{name} holds {whose} ({key}), which is not converted: {why}.")
        prefix = key.removesuffix("spatial.conv.conv.weight")
        if prefix != key and f"{prefix}channel.fc1.weight" in state and tensor.shape[1:2] == (1,):
            raise CBAMError(f"{name} holds {_LIGHT[0]} ({key}), which is not converted: {_LIGHT[1]}.")


def _prefixes(state: Mapping[str, Tensor], format: Format) -> list[str]:
    mark = f"{format.first}.weight"
    prefixes = [key.removesuffix(mark) for key in state if key == mark or key.endswith("." + mark)]
    return [prefix for prefix in prefixes if format.has_block(state, prefix)]


def _split(state: Mapping[str, Tensor], format: Format, prefixes: list[str]) -> Found:
    names = format.names()
    blocks = {p: {n: state[p + n] for n in names if p + n in state} for p in prefixes}
    taken = {prefix + name for prefix, block in blocks.items() for name in block}
    return Found(format, blocks, {key: value for key, value in state.items() if key not in taken})
