"""Whose CBAM is it? Find the blocks in a state dict, or say why what is there is not CBAM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cbam.checkpoints.dialects import DIALECTS, Dialect
from cbam.errors import CBAMError, unknown_name

# A name inside a block -> whose it is and why it cannot be converted.
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
    """The blocks of one dialect in a state dict.

    Args:
        dialect: theirs; None where there is no attention.
        blocks: prefix of a block ("layer1.0.cbam.", or "") to {name inside the block: tensor}.
        rest: all other tensors.
    """

    dialect: Dialect | None
    blocks: dict[str, dict[str, Tensor]]
    rest: dict[str, Tensor]


def recognise(state: Mapping[str, Tensor], name: str, dialect: str = "auto") -> Found:
    """Find the attention blocks in a state dict; tensors need no data.

    Args:
        state: names to tensors.
        name: of the file, for messages.
        dialect: "auto", or a name from `DIALECTS`.

    Raises:
        CBAMError: an unknown dialect, or one that the file does not hold; blocks of two dialects; attention that is
            not CBAM.

    >>> import torch
    >>> keys = ("ca.fc.0.weight", "ca.fc.2.weight", "sa.conv1.weight")
    >>> recognise({f"layer1.0.{key}": torch.empty(0) for key in keys}, "the file").dialect.name
    'luuuyi'
    """
    if dialect != "auto" and dialect not in DIALECTS:
        raise unknown_name("dialect", dialect, ["auto", *DIALECTS])
    refuse_what_is_not_cbam(state, name)
    candidates = [d for d in DIALECTS.values() if d.name != "textbook"]
    found = {d.name: prefixes for d in candidates if (prefixes := _prefixes(state, d))}
    if dialect != "auto":
        prefixes = _prefixes(state, DIALECTS[dialect])
        if not prefixes:
            there = f"It holds {', '.join(found)}." if found else "It holds no attention that is known here."
            raise CBAMError(f"{name} has no block of the dialect {dialect!r}. {there}")
        return _split(state, DIALECTS[dialect], prefixes)
    if len(found) > 1:
        raise CBAMError(
            f"{name} holds blocks of {len(found)} dialects: {', '.join(f'{k} ({len(v)})' for k, v in found.items())}."
            " Pass the one to load as dialect=... (--from)."
        )
    if not found:
        return Found(None, {}, dict(state))
    ((only, prefixes),) = found.items()
    return _split(state, DIALECTS[only], prefixes)


def refuse_what_is_not_cbam(state: Mapping[str, Tensor], name: str) -> None:
    """Raise for attention that goes by CBAM's name, or comes with it, and is another function.

    Raises:
        CBAMError: whose it is and why it cannot be converted.
    """
    for key, tensor in state.items():
        for ending, (whose, why) in REFUSED.items():
            if key == ending or key.endswith("." + ending):
                raise CBAMError(f"{name} holds {whose} ({key}), which is not converted: {why}.")
        prefix = key.removesuffix("spatial.conv.conv.weight")
        if prefix != key and f"{prefix}channel.fc1.weight" in state and tensor.shape[1:2] == (1,):
            raise CBAMError(f"{name} holds {_LIGHT[0]} ({key}), which is not converted: {_LIGHT[1]}.")


def _prefixes(state: Mapping[str, Tensor], dialect: Dialect) -> list[str]:
    mark = f"{dialect.first}.weight"
    prefixes = [key.removesuffix(mark) for key in state if key == mark or key.endswith("." + mark)]
    return [prefix for prefix in prefixes if dialect.has_block(state, prefix)]


def _split(state: Mapping[str, Tensor], dialect: Dialect, prefixes: list[str]) -> Found:
    names = dialect.names()
    blocks = {p: {n: state[p + n] for n in names if p + n in state} for p in prefixes}
    taken = {prefix + name for prefix, block in blocks.items() for name in block}
    return Found(dialect, blocks, {key: value for key, value in state.items() if key not in taken})
