"""What a file says of its attention beside the tensors: the switches that neither names nor shapes of weights show.

A state dict has them in torch's own `_metadata`, by module, where each attention module writes them; safetensors files
of this library have the same as JSON in their header. Other formats say nothing: each of them has one order.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from cbam.checkpoints.sites import named_in_state
from cbam.errors import CBAMError
from cbam.nn import CBAM
from cbam.nn.base import SWITCHES, AttentionModule
from cbam.nn.presets import CHOICES, Preset

HEADER = "cbam.switches"  # in the metadata of safetensors files
ORDER = "cbam.descriptor_order"  # in those of earlier versions: that of all kernels, or
MIXED = "mixed"  # where the sites differ
# Switches of which all formats but this library's have one choice.
OURS = ("arrangement", "gate", "channel_pooling", "spatial_descriptor")
_PARTS = ("", "channel_attention", "spatial_attention")
_HOST = "host"  # in the paths of modules, and not in the names of tensors; see `cbam.attach.names`

Switches: TypeAlias = Mapping[str, Mapping[str, str]]
"""{path of a module: {switch: value}}."""


def switches_of(model: nn.Module) -> dict[str, dict[str, str]]:
    """Return the switches of a model's attention by module, as they stand beside its tensors in a state dict.

    >>> switches_of(nn.Sequential(CBAM(16, preset="official")))["0.spatial_attention"]["descriptor_order"]
    'max-avg'
    """
    modules = ((prefix.removesuffix("."), module) for prefix, module in named_in_state(model))
    return {
        path: module.switches
        for path, module in modules
        if isinstance(module, AttentionModule) and module.switches
    }


def as_header(switches: Switches) -> dict[str, str]:
    """Return metadata for a safetensors file."""
    return {HEADER: json.dumps(switches)} if switches else {}


def as_state_dict(state: Mapping[str, Tensor], switches: Switches) -> OrderedDict[str, Tensor]:
    """Return a state dict as `torch.nn.Module.state_dict` does, with the switches beside its tensors."""
    whole = OrderedDict(state)
    metadata = OrderedDict((path, {"version": 1, SWITCHES: dict(said)}) for path, said in switches.items())
    whole._metadata = metadata  # type: ignore[attr-defined]
    return whole


def read_switches(tree: Any, header: Mapping[str, str], prefix: str, name: str) -> dict[str, dict[str, str]]:
    """Return what a file says.

    Args:
        tree: the state dict, as it was found in the file.
        header: metadata of a safetensors file.
        prefix: that was dropped from the names.
        name: of the file, for messages.

    Raises:
        CBAMError: it says what no attention has.

    >>> read_switches(CBAM(16).state_dict(), {}, "", "the state dict")["channel_attention"]
    {'gate': 'sigmoid', 'channel_pooling': 'both'}
    """
    if HEADER in header:
        try:
            said = json.loads(header[HEADER])
        except (ValueError, RecursionError):
            raise _damaged(name, header[HEADER]) from None
    else:
        metadata = getattr(tree, "_metadata", None)
        about = metadata.items() if isinstance(metadata, Mapping) else ()
        said = {
            path: each[SWITCHES] for path, each in about if isinstance(each, Mapping) and SWITCHES in each
        }
    if not isinstance(said, Mapping):
        raise _damaged(name, said)
    found = {}
    for path, switches in said.items():
        if not isinstance(path, str) or not isinstance(switches, Mapping):
            raise _damaged(name, switches)
        for switch, value in switches.items():
            if switch not in CHOICES or value not in CHOICES[switch]:
                raise _damaged(name, {switch: value})
        found[f"{path}.".removeprefix(prefix).removesuffix(".")] = dict(switches)
    return found


def parts_of(switches: Switches, prefix: str) -> dict[str, Mapping[str, str]]:
    """Return what is said of the block at a prefix of the names of tensors, and of its gates, by path."""
    paths = [(prefix + part).removesuffix(".") for part in _PARTS]
    found = {path: switches.get(path) or _behind_hosts(switches, path) for path in paths}
    return {path: said for path, said in found.items() if said}


def of_block(switches: Switches, prefix: str) -> dict[str, str]:
    """Return all switches of the block at a prefix of the names of tensors."""
    return {name: value for said in parts_of(switches, prefix).values() for name, value in said.items()}


def of_module(block: CBAM) -> dict[str, str]:
    """Return all switches of a block.

    >>> of_module(CBAM(16, arrangement="channel"))
    {'arrangement': 'channel', 'gate': 'sigmoid', 'channel_pooling': 'both'}
    """
    return of_block(switches_of(block), "")


def unusual(switches: Mapping[str, str]) -> dict[str, str]:
    """Return those in which this is another function than the block of all other formats.

    >>> unusual(of_module(CBAM(16, gate="hardsigmoid", descriptor_order="max-avg")))
    {'gate': 'hardsigmoid'}
    """
    usual = {"arrangement": ("channel-spatial", "channel")}
    return {
        name: switches[name]
        for name in OURS
        if name in switches and switches[name] not in usual.get(name, (getattr(Preset, name),))
    }


def _behind_hosts(switches: Switches, path: str) -> Mapping[str, str]:
    """Return what is said of a module inside a container that has attention itself: its path has a "host" more."""
    return next((said for own, said in switches.items() if _shown(own) == path), {})


def _shown(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _HOST)


def _damaged(name: str, said: Any) -> CBAMError:
    return CBAMError(f"{name}: what it says of its attention is damaged: {repr(said)[:80]}.")
