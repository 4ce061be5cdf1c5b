"""Describe a model for config.json: its attached attention, its backbone, its head."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cbam.attach.replacement import Replacement
from cbam.attach.wrapper import WithAttention
from cbam.checkpoints import tensors_file
from cbam.checkpoints.sites import named_in_state, sites_of
from cbam.errors import CBAMError
from cbam.models import build_model, match_parameters
from cbam.models.classifier import last_layer
from cbam.models.files import first_convolution
from cbam.models.own import is_own
from cbam.models.registry import split_attention, timm_names
from cbam.nn.registry import describe
from cbam.pretrained.config import Attention, Backbone, SavedSite


def describe_attention(model: nn.Module) -> tuple[Attention, ...]:
    """Return the attached attention, sites of one form together.

    Raises:
        CBAMError: attention of a class that is not registered.

    >>> from cbam import attach
    >>> from cbam.models import build_model
    >>> model = build_model("resnet20", 10)
    >>> _ = attach(model, input_size=(3, 32, 32), preset="official")
    >>> (group,) = describe_attention(model)
    >>> group.preset, len(group.sites), group.options["spatial_norm"]
    ('official', 9, True)
    """
    positions = {
        id(module.cbam): module.position for module in model.modules() if isinstance(module, WithAttention)
    }
    groups: dict[str, tuple[str, str, dict[str, Any], list[SavedSite]]] = {}
    for prefix, block in sites_of(model).items():
        if id(block) not in positions:
            continue  # a part of the user's own network, not attached
        path = prefix.removesuffix("cbam.").removesuffix(".")
        try:
            found, options = describe(block)
        except CBAMError as error:
            raise CBAMError(f"the attention at {path!r}: {error}") from None
        channels, ratio = block.in_channels, options.pop("reduction_ratio", None)
        preset = options.pop("preset", found.name)
        key = repr((found.name, preset, sorted(options.items())))
        assert channels is not None
        site = SavedSite(path, positions[id(block)], channels, ratio)
        groups.setdefault(key, (found.name, preset, options, []))[3].append(site)
    return tuple(
        Attention(kind, preset, options, tuple(sites)) for kind, preset, options, sites in groups.values()
    )


def describe_backbone(model: nn.Module, name: str | None, widened_to: int | None = None) -> Backbone | None:
    """Return how to build the network without its attention, checked by building it without memory.

    Args:
        model: with or without attached attention.
        name: as for `cbam.models.build_model`; None: timm's networks know their own, of others nothing is known, nor
            of the user's own.
        widened_to: the target of `cbam.models.match_parameters`, where it was widened.

    Raises:
        CBAMError: the named network has other weights than the model.
    """
    if name is not None and is_own(name):
        return None  # a file must not say which code to run
    if name is None:
        said = getattr(model, "pretrained_cfg", None) or {}
        architecture = said.get("architecture") if isinstance(said, Mapping) else None
        if architecture is None:
            return None
        name = timm_names().get(architecture, f"timm/{architecture}")
    name, _ = split_attention(name)  # attention is described by its sites
    head, first = last_layer(model), first_convolution(model)
    if head is None or first is None:
        raise CBAMError(
            f"{type(model).__name__} is no classifier with convolutions, so {name!r} cannot build it."
        )
    width = head[1].out_features if isinstance(head[1], nn.Linear) else head[1].out_channels
    backbone = Backbone(name, width, first[1].in_channels, widened_to)
    theirs, ours = build_form(backbone).state_dict(), plain_state(model)
    gone = tuple(prefix for prefix, module in named_in_state(model) if isinstance(module, Replacement))
    theirs = {key: value for key, value in theirs.items() if not (gone and key.startswith(gone))}
    different = sorted(theirs.keys() ^ ours.keys()) or [k for k in ours if ours[k].shape != theirs[k].shape]
    if different:
        raise CBAMError(
            f"the model is not what {name!r} builds: {len(different)} tensors differ, the first {different[0]!r}."
            " Name its backbone, or leave the name out and pass the network to from_pretrained."
        )
    return backbone


def build_backbone(backbone: Backbone) -> nn.Module:
    """Return the network without its attention, with new weights.

    Raises:
        CBAMError: there is no such network here.
    """
    model = build_model(backbone.name, backbone.num_classes, in_channels=backbone.in_channels)
    if backbone.widened_to is not None:
        match_parameters(model, backbone.widened_to)
    return model


def build_form(backbone: Backbone) -> nn.Module:
    """Return the network for its shapes: without memory, unless it is widened, which looks at what blocks compute."""
    if backbone.widened_to is not None:
        with torch.random.fork_rng(devices=[]):
            return build_backbone(backbone)
    with torch.device("meta"):
        return build_backbone(backbone)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without attached attention."""
    attention = tuple(sites_of(model))
    return {
        key: value
        for key, value in model.state_dict().items()
        if not (attention and key.startswith(attention))
    }


def attention_only(model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Return gates, head and batch norms, and the digest of all other weights.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    >>> list(attention_only(net)[0])[:2]
    ['1.weight', '1.bias']
    """
    state, head, gates = model.state_dict(), last_layer(model), tuple(sites_of(model))
    small = [f"{head[0]}."] if head is not None else []
    small += [
        prefix
        for prefix, module in named_in_state(model)
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    kept = {key: value for key, value in state.items() if key.startswith((*small, *gates))}
    return kept, digest({key: value for key, value in state.items() if key not in kept})


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, types, shapes and bytes of tensors.

    >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2, 1)})
    False
    """
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensors_file.raw(tensor))
    return total.hexdigest()
