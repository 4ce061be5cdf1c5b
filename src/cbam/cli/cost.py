"""`cbam cost`: the cost of a model's forward pass, plain and with attention; the paper's cost tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from cbam.attach import attach
from cbam.cli.attention import with_kinds
from cbam.cli.parsing import first_word_is, read_options
from cbam.cli.plan import PlanConfig
from cbam.errors import CBAMError
from cbam.evaluate import Cost, cost
from cbam.evaluate.paper_costs import render_table
from cbam.evaluate.paper_detection import render_detectors
from cbam.evaluate.paper_tables import TABLES
from cbam.formatting import columns

DESCRIPTION = """Count parameters, MACs, FLOPs, bytes moved and bytes saved for backward of one forward pass.

Examples: cbam cost paper_resnet50 --attention cbam --preset official; cbam cost --table 4"""


@dataclass(frozen=True)
class CostConfig(PlanConfig):
    """Count parameters, MACs, FLOPs, bytes moved and bytes saved of one forward pass."""

    model: str = ""
    """A backbone: resnet20, paper_resnet50, a name that torchvision or timm knows, or your own as
    my_package.my_net:build, a function or class that returns the network."""
    attention: str = "none"
    """Kind of attention, compared with the plain model; none: the plain model only."""
    batch_size: int = 1
    """Images in the forward pass."""
    depth: int = 1
    """Levels of modules in the table."""
    table: int | None = None
    """Instead of a model: the cost columns of this table of the paper (1 to 7), next to our counts."""


def main(arguments: Sequence[str]) -> int:
    """Run the command with its `arguments`; return the exit code."""
    words = first_word_is("model", arguments)
    return run(read_options(CostConfig, "cbam cost", with_kinds(DESCRIPTION), words))


def run(config: CostConfig) -> int:
    """Print the model's table, and what the attention adds; return the exit code."""
    _check(config)
    if config.table is not None:
        print(render_table(config.table) if config.table in TABLES else render_detectors(config.table))
        return 0
    model, size = config.build()
    plain = cost(model, size, batch_size=config.batch_size)
    if config.attention == "none":
        print(plain.table(config.depth))
        return 0
    attach(model, input_size=size, init="paper", **config.attach_arguments)
    attended = cost(model, size, batch_size=config.batch_size)
    print(attended.table(config.depth))
    print()
    print(beside(plain, attended, config.attention))
    return 0


_USUAL = {"reduction_ratio": 16}  # what None means; giving it changes nothing
_OF_ATTENTION = ("sites", "replace", "exclude", "preset", "reduction_ratio", "kernel_size")


def _check(config: CostConfig) -> None:
    if config.table is None and not config.model:
        raise CBAMError(
            "cost needs a model, such as cbam cost resnet50, or --table N for a table of the paper."
        )
    names = [field for field in fields(config) if field.name not in ("table", "imports")]
    values = {field.name: getattr(config, field.name) for field in names}
    usual = {field.name: field.default for field in names}
    others = [name for name, value in values.items() if value not in (usual[name], _USUAL.get(name))]
    if config.table is not None and others:
        given = ", ".join("--" + name.replace("_", "-") for name in others)
        raise CBAMError(
            f"--table {config.table} already sets the networks and their options. Leave out {given}, or --table."
        )
    idle = [name for name in others if name in _OF_ATTENTION] if config.attention == "none" else []
    if idle:
        given = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise CBAMError(
            f"{given} ha{'ve' if len(idle) > 1 else 's'} no effect with --attention none. Leave out {given}, or add "
            "--attention cbam."
        )


def beside(plain: Cost, attended: Cost, name: str) -> str:
    """Return a table of two costs and their difference."""
    rows: list[tuple[str, ...]] = [("", "plain", name, "added", "")]
    for label, before, after, unit in (
        ("parameters", plain.parameters, attended.parameters, 1.0),
        ("MACs (G)", plain.macs, attended.macs, 1e9),
        ("FLOPs (G)", plain.flops, attended.flops, 1e9),
        ("bytes moved (MB)", plain.bytes_moved, attended.bytes_moved, 1e6),
        ("bytes saved for backward (MB)", plain.bytes_saved, attended.bytes_saved, 1e6),
    ):
        digits = {1.0: 0, 1e9: 3, 1e6: 2}[unit]
        shown = [f"{value / unit:,.{digits}f}" for value in (before, after, after - before)]
        rows.append((label, *shown, f"{(after - before) / before:+.2%}"))
    return "\n".join(columns(rows))
