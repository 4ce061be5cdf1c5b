"""The network of a folder with config.json: built as that says, and its weights from the file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from cbam.attach import detach
from cbam.attach.wrapper import WithAttention
from cbam.checkpoints import load_weights
from cbam.checkpoints.fitting import NUMBERS
from cbam.checkpoints.reading import look_at
from cbam.errors import CBAMError
from cbam.pretrained.config import FILE, Config
from cbam.pretrained.describe import attention_only, build_backbone, build_form
from cbam.pretrained.restore import restore


def build(config: Config, weights: Path) -> nn.Module:
    """Return the network that a config describes, with the weights of a file.

    Raises:
        CBAMError: the config names no backbone, or the file does not fit it.
    """
    if config.backbone is None or config.content == "attention":
        what = "gates, head and batch norms only" if config.content == "attention" else "no backbone's name"
        raise CBAMError(
            f"{str(weights.parent)!r} holds {what}. Pass the network: from_pretrained(source, model); on the"
            " command line --model NAME."
        )
    shape = build_form(config.backbone)
    restore(shape, config.attention)
    _compare(shape.state_dict(), weights)  # before the real network takes memory
    model = build_backbone(config.backbone)
    load_into(model, config, weights)
    return model


def _compare(state: Mapping[str, Tensor], weights: Path) -> None:
    """Refuse a file that lacks a tensor, has one too many, or one of another shape."""
    there = look_at(weights).tree
    optional = (*NUMBERS, "num_batches_tracked")
    for key in [*state, *there]:
        if key in state and key in there and there[key].shape == state[key].shape:
            continue
        if key.endswith(optional) and not (key in state and key in there):
            continue
        given = f"is {tuple(there[key].shape)}" if key in there else "is missing"
        needed = f"needs {tuple(state[key].shape)}" if key in state else "is not part of the network"
        raise CBAMError(f"{str(weights)!r} does not fit its {FILE}: {key} {given}, {needed}.")


def load_into(model: nn.Module, config: Config, weights: Path) -> None:
    """Load a file into a network, in place; attention that it lacks is attached as the config says.

    Raises:
        CBAMError: the file does not fit, or the network's other weights are not those of the base; the network is then
            unchanged.
    """
    bare = not any(isinstance(module, WithAttention) for module in model.modules())
    if bare:
        restore(model, config.attention, config.fuse_epilogue)
    try:
        state = model.state_dict()
        if config.content == "attention":
            state, rest = attention_only(model)
            if rest != config.base_sha256:
                raise CBAMError(
                    "the network's other weights are not those of the base that this attention was trained on. Load"
                    " the same pretrained weights first; if they were trained too, save the whole network instead."
                )
        _compare(state, weights)
        load_weights(model, weights, partial=config.content == "attention")
    except BaseException:
        if bare and config.attention:
            detach(model)
        raise
