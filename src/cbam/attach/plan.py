"""What `attach` would do, as a table. Making a plan runs every check and changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from cbam.attach.choose_replaced import Chosen, choose_replaced
from cbam.attach.config import AS_BUILT, AttentionConfig, SiteConfig, by_selector
from cbam.attach.fusion.with_epilogue import find_blocks
from cbam.attach.graph.example import split_example
from cbam.attach.graph.probe import Call, InputSize, Node, Probe, default_inputs, run_probe
from cbam.attach.insert import check_unattached, like
from cbam.attach.replacement import check_replace
from cbam.attach.sites.select import Selector, Selectors, Sites, as_list, select
from cbam.attach.sites.table import FINDERS, KINDS, find, patch_embedding
from cbam.attach.trial import try_attention
from cbam.errors import CBAMError
from cbam.formatting import columns, counted
from cbam.nn import ChannelAttention
from cbam.ops.dims import SIZES, batched

_WHERE = {"output": "after", "input": "before", "instead": "in place of"}


@dataclass(frozen=True)
class Site:
    """One site of attention.

    Args:
        name: path of the module.
        module_type: its class.
        position: "output" (attention after it), "input" (before it) or "instead" (in its place).
        channels: of the map there.
        size: of the map, (H, W), with the probe's image; (L,) of a signal, (D, H, W) of a volume.
        parameters: of the attention.
        epilogue: what of the block's epilogue runs inside the operator: "add, relu", "add" or nothing.
        attention: what goes in, such as "cbam (preset paper, r=16, k=7)".
        init: its first weights: "identity" or "paper", or "as built" where it cannot start as the identity.
        replaced_parameters: of the module that it replaces.
        hidden: units of the channel gate's hidden layer, 0 without such a gate.
    """

    name: str
    module_type: str
    position: str
    channels: int
    size: tuple[int, ...]
    parameters: int
    epilogue: str = ""
    attention: str = ""
    init: str = ""
    replaced_parameters: int = 0
    hidden: int = 0

    @property
    def added_parameters(self) -> int:
        """Parameters that the attention adds to the network, less those of what it replaces."""
        return self.parameters - self.replaced_parameters

    @property
    def dims(self) -> int:
        """How many sizes follow the channels."""
        return len(self.size)


@dataclass(frozen=True)
class Plan:
    """The sites and what attention at them adds; `print(plan)` shows it as a table.

    Args:
        model_type: class of the model.
        attention, init: what goes in, at most of the sites where they differ.
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
        """Parameters that all sites add together, less those of what they replace."""
        return sum(site.added_parameters for site in self.sites)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("site", "module", "attention", "channels", "map", "+parameters", "")]
        usual = f"{self.attention}, init {self.init}"
        for s in self.sites:
            where = _WHERE[s.position]
            own = f"{s.attention or self.attention}, init {s.init or self.init}"
            size, added = "x".join(map(str, s.size)), f"{s.added_parameters:,}"
            row = (s.name, s.module_type, where, str(s.channels), size, added, own if own != usual else "")
            rows.append(row)
        before, added_in_all = self.model_parameters, self.added_parameters
        share = f" ({added_in_all / before:+.2%})" if before else ""
        epilogues = [s.epilogue for s in self.sites if s.epilogue]
        fused = ""
        if epilogues:
            kinds = "; ".join(dict.fromkeys(epilogues))
            fused = f"the epilogue of the block ({kinds}) runs inside the operator at {counted(len(epilogues), 'site')}"
        instead = [s.replaced_parameters for s in self.sites if s.position == "instead"]
        replaced = (
            f"in place of {counted(len(instead), 'squeeze-excitation')} with {sum(instead):,} parameters"
            if instead
            else ""
        )
        others = sum(bool(row[-1]) for row in rows[1:])
        more = f", {others} of them with options of their own" if others else ""
        return "\n".join(
            [
                f"{self.attention} in {self.model_type}: {counted(len(self.sites), 'site')}, init {self.init}{more}",
                *columns(rows, left=(0, 1, 2, 6)),
                f"parameters {before:,} -> {before + added_in_all:,}{share}",
                *filter(None, [replaced, fused]),
                *(f"note: {note}" for note in self.notes),
            ]
        )


class MadePlan(NamedTuple):
    """A plan, what goes in at each site by name, the blocks whose epilogue runs with it, and what to warn of."""

    plan: Plan
    configs: dict[str, SiteConfig]
    blocks: tuple[nn.Module, ...]
    changes: list[str]


def make_plan(
    model: nn.Module,
    config: AttentionConfig,
    sites: Sites,
    exclude: Selectors,
    input_size: InputSize,
    example_input: Any,
    fuse_epilogue: bool,
    replace_kind: str | None = None,
) -> MadePlan:
    """Check everything and return the plan with what is needed to carry it out; see `cbam.attach`."""
    if not isinstance(model, nn.Module):
        raise CBAMError(f"model expects a torch.nn.Module, got {type(model).__name__}.")
    selectors = by_selector(sites, config)
    if not selectors:
        raise CBAMError("sites is empty. Name a site, or leave it out for sites='auto'.")
    check_replace(replace_kind)
    _check_host(model)
    example = default_inputs(model, input_size) if example_input is None else example_input
    inputs, keywords = split_example(model, example)
    probe = run_probe(model, inputs, keywords)
    modules = {name: module for name, module in model.named_modules() if name}
    choose = _choose if replace_kind is None else choose_replaced
    chosen, notes = choose(model, modules, selectors, probe)
    for name in select(as_list(exclude), {n: modules[n] for n in chosen}, "exclude"):
        del chosen[name]
    if not chosen:
        raise CBAMError("exclude leaves no site. Exclude fewer, or call nothing at all.")
    rows = [_site(name, modules[name], one, probe, model) for name, one in chosen.items()]
    blocks = {}
    if fuse_epilogue:
        blocks = find_blocks(
            model, [row.name for row in rows if row.dims == 2 and _may_end_a_block(chosen[row.name])]
        )
        rows = [replace(r, epilogue=str(blocks[r.name][1])) if r.name in blocks else r for r in rows]
    changes = [*_changed_outputs(rows, chosen), *_rebuilt(model)]
    notes += [*_frozen_norms(model, chosen), *_narrow_gates(rows), *changes]
    (attention, init), _ = Counter((row.attention, row.init) for row in rows).most_common(1)[0]
    parameters = sum(p.numel() for p in model.parameters())
    given = (*inputs, *keywords.values())
    shapes = tuple(tuple(t.shape) for t in given if isinstance(t, torch.Tensor))
    plan = Plan(type(model).__name__, attention, init, tuple(rows), tuple(notes), parameters, shapes)
    built = {name: one.config for name, one in chosen.items()}
    return MadePlan(plan, built, tuple(block for block, _ in blocks.values()), changes)


def _check_host(model: nn.Module) -> None:
    outer = type(model).__name__
    if outer in ("OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
        raise CBAMError(f"the model is wrapped in {outer}. Attach to the bare model first, then wrap it.")
    if isinstance(model, torch.jit.ScriptModule):
        raise CBAMError(
            "a TorchScript module cannot be changed. Attach to the Python model, then trace it:"
            " torch.jit.trace(model, image)."
        )
    check_unattached(model)


def _choose(
    model: nn.Module,
    modules: dict[str, nn.Module],
    selectors: list[tuple[Selector, SiteConfig]],
    probe: Probe,
) -> tuple[dict[str, Chosen], list[str]]:
    """Return the chosen sites by name in the order of the forward pass, and notes; of two configs the last one."""
    positions: dict[str, str] = {}
    chosen: dict[str, SiteConfig] = {}
    notes: list[str] = []
    for selector, config in selectors:
        if not (isinstance(selector, str) and selector in KINDS):
            named = select([selector], modules)
            chosen.update(dict.fromkeys(named, config))
            notes += [
                f"{name} runs in eval mode only: its gates get no gradient"
                for name in named
                if name in probe.eval_only
            ]
            continue
        locations, more = find(selector, probe)
        if not locations:
            raise _nothing_found(selector, model, probe, more)
        notes += [note for note in more if note not in notes]
        if selector in modules:
            notes.append(
                f"sites={selector!r} is a kind of site; the module of that name is sites='re:{selector}'"
            )
        for location in locations:
            positions.setdefault(location.name, location.position)
            chosen[location.name] = config
    ran = {name: rank for rank, name in enumerate(call.name for call in probe.calls)}
    ordered = sorted(chosen.items(), key=lambda item: ran.get(item[0], 0))
    return {name: Chosen(positions.get(name, "output"), config) for name, config in ordered}, notes


def _frozen_norms(model: nn.Module, chosen: Mapping[str, Chosen]) -> list[str]:
    """Return a note where norms that keep their statistics meet gates whose own norm takes those of each batch."""
    frozen = [m for m in model.modules() if "running_var" in m._buffers and "weight" in m._buffers]
    if not frozen or not any(_has_norm(one.config) for one in chosen.values()):
        return []
    kind = type(frozen[0]).__name__
    note = f"the model's {kind} keep their statistics in training, the spatial gates' norm takes those of each batch"
    return [f"{note}: with few images a batch, spatial_norm=False leaves it out"]


def _has_norm(config: SiteConfig) -> bool:
    if not config.kind.has_operator:
        return False
    return any(isinstance(module, nn.BatchNorm2d) for module in config.build(16, device="meta").modules())


def _narrow_gates(rows: list[Site]) -> list[str]:
    """Return a note for the sites whose channel gate has so few hidden units that all may be off for every input."""
    notes = []
    for init in dict.fromkeys(row.init for row in rows):
        narrow = [row for row in rows if row.init == init and 0 < row.hidden < ChannelAttention.narrow]
        if narrow:
            least = min(narrow, key=lambda row: row.hidden)
            where = f"{counted(least.hidden, 'hidden unit')} at {least.name}, fewer than {ChannelAttention.narrow}"
            start = (
                "a unit of each starts with weights above 0, so that the gate learns"
                if init == "identity"
                else "drawn as torch does, they may be off for every input, and the gate then never learns"
            )
            wider = "a smaller reduction_ratio gives more"
            notes.append(
                f"narrow channel gates at {counted(len(narrow), 'site')} ({where}): {start}; {wider}"
            )
    return notes


def _rebuilt(model: nn.Module) -> list[str]:
    """Return a note for the network of a YOLO object; one that its trainer has just built has no `args` yet."""
    if not isinstance(getattr(model, "yaml", None), dict) or not hasattr(model, "args"):
        return []
    again = "ultralytics' trainer builds the network again from its yaml, without attention"
    return [f"{again}: attach it in the trainer's get_model (docs/yolo.md)"]


def _may_end_a_block(chosen: Chosen) -> bool:
    return chosen.position == "output" and chosen.config.kind.has_operator


def _changed_outputs(rows: list[Site], chosen: Mapping[str, Chosen]) -> list[str]:
    """Return a note for each kind of attention that was to start as the identity and cannot."""
    counts = Counter(chosen[row.name].config.kind.name for row in rows if row.init == AS_BUILT)
    return [
        f"{name} cannot start as the identity: the model's output changes (at {count} of {len(rows)} sites)"
        for name, count in counts.items()
    ]


def _nothing_found(kind: str, model: nn.Module, probe: Probe, notes: list[str]) -> CBAMError:
    if patches := patch_embedding(probe):
        return CBAMError(
            f"{type(model).__name__} is no CNN: {patches} embeds patches, and what follows are tokens with their"
            " channels last, as in a transformer. The attention here multiplies the feature maps (N, C, H, W) of"
            " convolutions. Take a network that has them, such as resnet50 or timm/convnext_tiny."
        )
    found = {other: len(finder(probe).locations) for other, finder in FINDERS.items() if other != kind}
    others = ", ".join(f"{other!r} ({count})" for other, count in found.items() if count)
    instead = f" Kinds that it has: {others}." if others else ""
    why = "".join(f" Left out: {note}." for note in notes)
    return CBAMError(
        f"sites={kind!r} finds no site in {type(model).__name__}.{why}{instead}"
        " Name the sites: a path, a glob such as 'features.*', a type such as torch.nn.MaxPool2d, a predicate."
    )


def _site(name: str, module: nn.Module, chosen: Chosen, probe: Probe, model: nn.Module) -> Site:
    calls = [call for call in probe.calls if call.name == name]
    if not calls:
        raise CBAMError(
            f"site {name!r} ({type(module).__name__}) did not run in the probe forward. Leave it out."
        )
    seen = [_node_at(call, chosen.position, probe) for call in calls]
    if len({(node.shape[1:2], node.dims) if node is not None else () for node in seen}) > 1:
        shapes = dict.fromkeys(None if node is None else node.shape for node in seen)
        raise CBAMError(f"site {name!r} gives maps of different channels: {list(shapes)}. Name other sites.")
    kind, position, node = type(module).__name__, chosen.position, seen[0]
    if node is None or node.dims is None:
        raise _no_map(f"site {name!r} ({kind})", node)
    _, channels, *size = node.shape
    config = chosen.config
    trial = try_attention(config, (channels, *size), like(module, model))
    init = AS_BUILT if config.init == "identity" and not trial.is_identity else config.init
    site = Site(
        name, kind, position, channels, tuple(size), trial.parameters, "", config.description, init, 0, trial.hidden
    )  # fmt: skip
    if position != "instead":
        return site
    return replace(site, replaced_parameters=sum(p.numel() for p in module.parameters()))


def _node_at(call: Call, position: str, probe: Probe) -> Node | None:
    if position == "input" and call.source is not None:
        return probe.nodes[call.source]
    return None if call.output is None or call.shape is None else probe.nodes[call.output]


def _no_map(site: str, node: Node | None) -> CBAMError:
    """Return the error for a tensor that is no map (N, C, ...), or not known to be one."""
    if node is None:
        return CBAMError(
            f"{site} gives no floating-point tensor, not a feature map (N, C, H, W). Name another."
        )
    shape, axis, rank = node.shape, node.channel_axis, len(node.shape)
    if rank - 2 not in SIZES:
        return CBAMError(f"{site} gives shape {shape}, not a feature map (N, C, H, W). Name another.")
    expected = batched(rank - 2)
    if axis is None:
        return CBAMError(
            f"{site} gives shape {shape}, and what made it does not tell which axis holds the channels, as a"
            f" convolution or a norm would. Name a module that returns a map {expected}."
        )
    where = "last" if axis == rank - 1 else "first, without a batch" if axis == 0 else f"on axis {axis}"
    return CBAMError(
        f"{site} gives shape {shape} with its {shape[axis]} channels {where}, not a feature map {expected}."
        " Name a module that returns one, such as the block around it."
    )
