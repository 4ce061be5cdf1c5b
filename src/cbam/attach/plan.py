"""What `attach` would do, as a table; making one changes nothing and makes every check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from cbam.attach.places import Place, find_blocks, find_convolutions, find_stages
from cbam.attach.probe import Probe, default_inputs, run_probe
from cbam.attach.residual import find_additions, find_branch_ends
from cbam.attach.select import KINDS, Selector, Selectors, as_list, select
from cbam.attach.with_tail import find_blocks as find_block_ends
from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError, unknown_name
from cbam.nn import CBAM, SqueezeExcitation
from cbam.nn.base import AttentionModule
from cbam.nn.presets import Preset, resolve_preset

Build: TypeAlias = Callable[..., AttentionModule]

ATTENTIONS: tuple[str, ...] = ("cbam", "se", "channel", "spatial")
INITS: tuple[str, ...] = ("identity", "paper")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Site:
    """One place where attention goes.

    Args:
        name: path of the module.
        module_type: its class.
        position: "output" (attention after it) or "input" (before it).
        channels, height, width: of the map there, with the probe's image.
        parameters: that the attention adds.
        tail: what of the block's end runs inside the operator: "add, relu" or "add", as far as there is one.
    """

    name: str
    module_type: str
    position: str
    channels: int
    height: int
    width: int
    parameters: int
    tail: str = ""


@dataclass(frozen=True)
class Plan:
    """The sites and what attention at them adds; `print(plan)` shows it as a table.

    Args:
        model_type: class of the model.
        attention: what goes in, such as "cbam (preset paper, r=16, k=7)".
        init: "identity" or "paper".
        sites: in the order of the forward pass.
        notes: what the user should know, such as branches that were left out.
        model_parameters: before anything is added.
        input_shapes: of the probe's tensors.
    """

    model_type: str
    attention: str
    init: str
    sites: tuple[Site, ...]
    notes: tuple[str, ...]
    model_parameters: int
    input_shapes: tuple[tuple[int, ...], ...]

    @property
    def added_parameters(self) -> int:
        """Parameters that all sites add together."""
        return sum(site.parameters for site in self.sites)

    def __str__(self) -> str:
        rows = [("site", "module", "attention", "channels", "map", "+parameters")]
        for s in self.sites:
            where = "after" if s.position == "output" else "before"
            rows.append(
                (s.name, s.module_type, where, str(s.channels), f"{s.height}x{s.width}", f"{s.parameters:,}")
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        before, added = self.model_parameters, self.added_parameters
        share = f" (+{added / before:.2%})" if before else ""
        tails = [s.tail for s in self.sites if s.tail]
        kinds = "; ".join(dict.fromkeys(tails))
        ends = [f"the operator takes in the block's end ({kinds}) at {len(tails)} sites"] if tails else []
        return "\n".join(
            [
                f"{self.attention} in {self.model_type}: {len(self.sites)} sites, init {self.init}",
                *(line.rstrip() for line in lines),
                f"parameters {before:,} -> {before + added:,}{share}",
                *ends,
                *(f"note: {note}" for note in self.notes),
            ]
        )


class MadePlan(NamedTuple):
    """A plan; the function that builds one attention module; the blocks whose end runs with theirs."""

    plan: Plan
    build: Build
    blocks: tuple[nn.Module, ...]


def make_plan(
    model: nn.Module,
    attention: str,
    sites: Selectors,
    init: str,
    exclude: Selectors,
    input_size: tuple[int, int, int] | None,
    example_input: Any,
    fuse_tail: bool,
    options: Mapping[str, Any],
) -> MadePlan:
    """Check everything and return the plan with what it takes to follow it; see `cbam.attach`."""
    if not isinstance(model, nn.Module):
        raise CBAMError(f"model expects a torch.nn.Module, got {type(model).__name__}.")
    if init not in INITS:
        raise unknown_name("init", init, INITS)
    build, described = attention_builder(attention, options)
    _check_host(model)
    if example_input is None:
        inputs: tuple[Any, ...] = default_inputs(model, input_size)
    else:
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    probe = run_probe(model, inputs)
    modules = {name: module for name, module in model.named_modules() if name}
    positions, notes = _choose(model, modules, sites, probe)
    for name in select(as_list(exclude), {n: modules[n] for n in positions}, "exclude"):
        del positions[name]
    if not positions:
        raise CBAMError("exclude leaves no site. Exclude fewer, or call nothing at all.")
    rows = [_site(name, modules[name], position, probe, build) for name, position in positions.items()]
    blocks = {}
    if fuse_tail:
        blocks = find_block_ends(model, [row.name for row in rows if row.position == "output"])
        rows = [replace(r, tail=str(blocks[r.name][1])) if r.name in blocks else r for r in rows]
    parameters = sum(p.numel() for p in model.parameters())
    shapes = tuple(tuple(t.shape) for t in inputs if isinstance(t, torch.Tensor))
    plan = Plan(type(model).__name__, described, init, tuple(rows), tuple(notes), parameters, shapes)
    return MadePlan(plan, build, tuple(block for block, _ in blocks.values()))


def attention_builder(attention: str, options: Mapping[str, Any]) -> tuple[Build, str]:
    """Return a function (channels, device=, dtype=) -> module for the named attention, and its description.

    Raises:
        CBAMError: an unknown attention, preset or switch.

    >>> attention_builder("se", {"reduction_ratio": 8})[1]
    'se (r=8)'
    """
    if attention not in ATTENTIONS:
        raise unknown_name("attention", attention, ATTENTIONS)
    settings: dict[str, Any] = dict(options)
    ratio = settings.pop("reduction_ratio", 16)
    if attention == "se":
        for unused in ("preset", "kernel_size"):
            settings.pop(unused, None)
        SqueezeExcitation(ratio, ratio, device="meta", **settings)  # raises on a bad option
        return lambda channels, **f: SqueezeExcitation(channels, ratio, **settings, **f), f"se (r={ratio})"
    if attention in ("channel", "spatial"):
        settings["arrangement"] = attention
    kernel_size = settings.pop("kernel_size", 7)
    preset: str | Preset = settings.pop("preset", "paper")
    resolve_preset(preset, settings)
    CBAM(16, ratio, kernel_size, preset=preset, device="meta", **settings)  # raises on a bad ratio or kernel
    name = preset if isinstance(preset, str) else "custom"
    shown = {k: v for k, v in settings.items() if k != "arrangement" or attention == "cbam"}
    switches = "".join(f", {key}={value}" for key, value in shown.items())
    return (
        lambda channels, **f: CBAM(channels, ratio, kernel_size, preset=preset, **settings, **f),
        f"{attention} (preset {name}, r={ratio}, k={kernel_size}{switches})",
    )


def _check_host(model: nn.Module) -> None:
    outer = type(model).__name__
    if outer in ("OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
        raise CBAMError(f"the model is wrapped in {outer}. Attach to the bare model first, then wrap it.")
    if isinstance(model, torch.jit.ScriptModule):
        raise CBAMError("a TorchScript module cannot be changed. Attach to the Python model, then script it.")
    attached = [name for name, module in model.named_modules() if isinstance(module, WithAttention)]
    if attached:
        raise CBAMError(
            f"the model carries attention already, at {len(attached)} sites, the first {attached[0]!r}."
            " Type cbam.detach(model) first; to use several places at once, give one call a list of sites."
        )


def _choose(
    model: nn.Module, modules: dict[str, nn.Module], sites: Selectors, probe: Probe
) -> tuple[dict[str, str], list[str]]:
    """Return {name: position} of the chosen sites in the order of the forward pass, and notes."""
    selectors: list[Selector] = as_list(sites)
    positions: dict[str, str] = {}
    notes: list[str] = []
    for kind in [s for s in selectors if isinstance(s, str) and s in KINDS]:
        places, more = _places(kind, modules, probe)
        if not places:
            raise _nothing_found(kind, model, modules, probe, more)
        notes += [note for note in more if note not in notes]
        if kind in modules:
            notes.append(f"sites={kind!r} is a kind of site; the module of that name is sites='re:{kind}'")
        positions.update({place.name: place.position for place in places if place.name not in positions})
    named = [s for s in selectors if not isinstance(s, str) or s not in KINDS]
    for name in select(named, modules):
        positions.setdefault(name, "output")
    ran = {name: rank for rank, name in enumerate(call.name for call in probe.calls)}
    return dict(sorted(positions.items(), key=lambda item: ran.get(item[0], 0))), notes


def _places(kind: str, modules: dict[str, nn.Module], probe: Probe) -> tuple[list[Place], list[str]]:
    """Return the sites of a kind and notes on what was left out."""
    if kind in ("auto", "residual"):
        ends, notes = find_branch_ends(probe)
        if kind == "residual" or ends or notes:
            return ends, notes
        stages = find_stages(probe)
        return stages, ["no residual branches: attention goes to the end of every stage"] if stages else []
    if kind == "stage":
        return find_stages(probe), []
    if kind == "conv":
        return find_convolutions(probe), []
    containers = [name for name, module in modules.items() if isinstance(module, _CONTAINERS)]
    return find_blocks(probe, find_additions(probe), containers), []


def _nothing_found(
    kind: str, model: nn.Module, modules: dict[str, nn.Module], probe: Probe, notes: list[str]
) -> CBAMError:
    found = {other: len(_places(other, modules, probe)[0]) for other in KINDS[1:] if other != kind}
    others = ", ".join(f"{other!r} ({count})" for other, count in found.items() if count)
    instead = f" Kinds that it has: {others}." if others else ""
    why = "".join(f" Left out: {note}." for note in notes)
    return CBAMError(
        f"sites={kind!r} finds no place in {type(model).__name__}.{why}{instead}"
        " Name the sites: a path, a glob such as 'features.*', a type such as torch.nn.MaxPool2d, a predicate."
    )


def _site(name: str, module: nn.Module, position: str, probe: Probe, build: Build) -> Site:
    shapes = [call.shape for call in probe.calls if call.name == name]
    if not shapes:
        raise CBAMError(
            f"site {name!r} ({type(module).__name__}) did not run in the probe forward. Leave it out."
        )
    kinds = Counter(shapes)
    shape = shapes[0]
    if len(kinds) > 1 and len({s[1] if s is not None and len(s) == 4 else None for s in kinds}) > 1:
        raise CBAMError(f"site {name!r} gives maps of different channels: {list(kinds)}. Name other sites.")
    if shape is None or len(shape) != 4:
        given = "no floating-point tensor" if shape is None else f"shape {shape}"
        raise CBAMError(
            f"site {name!r} ({type(module).__name__}) gives {given}, not a feature map (N, C, H, W). Name another."
        )
    channels = shape[1]
    parameters = sum(p.numel() for p in build(channels, device="meta").parameters())
    return Site(name, type(module).__name__, position, channels, shape[2], shape[3], parameters)
