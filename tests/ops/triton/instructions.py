"""Count what the kernels' machine code (sm_90) does per element; no GPU is needed.

Usage: python -m tests.ops.triton.instructions [--output FILE | --json] [--quick]

"main loop" and "program": the instructions of a thread, times the threads, over the elements of the map that a program
works on; of the main loop alone, and of the whole program with its set-up, reductions and convolution. They are
counted along the shortest way through the program that runs the main loop, so parts for odd shapes and for NaN do not
count. For `convolution_grads`, "program" is the warp instructions of all its programs for 32 positions. bfloat16,
channels_last, the paper's module at ResNet-50's four stages, as launched on 132 multiprocessors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from cbam.ops.signature import (
    DESCRIPTORS,
    POOLINGS,
    BackwardArguments,
    ForwardArguments,
    NormBefore,
    OperatorConfig,
    Weights,
    flat,
)
from cbam.ops.triton import backward, blocks, forward
from tests.ops.triton.sass import Code, code
from tests.ops.triton.stand_in import Driver, Launch, recorded

MULTIPROCESSORS = 132
"""Of an H100 or H200."""
STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
"""Channels and side of ResNet-50's maps."""
PASSES = ("pool", "squeeze", "apply", "gate_grads", "weighted", "input_grad")
"""Kernels that walk over the map."""
# What the main loop walks along: the argument with the length of a program's part, and the tile's side.
_WALKS = {
    "pool": ("per_split", "BP"), "squeeze": ("C", "BC"), "apply": ("BG", "BP"),
    "gate_grads": ("per_program", "BC"), "weighted": ("per_split", "BP"), "input_grad": ("BG", "BP"),
}  # fmt: skip


class Row(NamedTuple):
    """One kernel as it is launched."""

    name: str
    tile: str
    grid: int
    registers: int
    spills: int
    shared: int
    loop: float
    program: float


def call(
    shape: Sequence[int], dtype: torch.dtype = torch.bfloat16, *, norm: bool = False, epilogue: bool = False,
    training: bool = True, channels_last: bool = True,
) -> None:  # fmt: skip
    """Run forward and, in training, backward of the paper's module, as `fused.attend` does; the numbers do not matter.

    Args:
        shape: N, C, H, W.
        dtype: of the map.
        norm: with a batch norm in front, of batch statistics.
        epilogue: with a residual and a ReLU behind.
        training: keep what backward needs, and run that.
        channels_last: the map's memory format.
    """
    channels, hidden = shape[1], max(1, shape[1] // 16)
    new = torch.empty
    weights = Weights(w0=new(hidden, channels), w1=new(channels, hidden), kernel=new(1, 2, 7, 7))
    before = NormBefore(*(new(channels) for _ in range(4))) if norm else NormBefore()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(tuple(shape), dtype=dtype).contiguous(memory_format=layout)
    config = OperatorConfig(POOLINGS["both"], DESCRIPTORS["both", "avg-max"], relu=epilogue)
    config = config._replace(pre_training=norm)
    residual = x if epilogue else None
    y, saved, argmax, _ = forward(*flat(ForwardArguments(x, weights, before, residual, config, training)))
    if training:
        out = y if epilogue else None
        backward(*flat(BackwardArguments(x, x, weights, before, out, saved, argmax, config)))


@lru_cache
def _code(compiled: Any) -> Code:
    return code(compiled)


def row(launch: Launch) -> Row:
    """Measure one launch."""
    found, given, threads = _code(launch.compiled), launch.arguments, 32 * launch.warps
    loop = program = 0.0
    if launch.name in PASSES:
        length, side = _WALKS[launch.name]
        extent = given["C" if side == "BC" else "P"]
        turns = -(-min(given.get(length, extent), extent) // given[side])
        # Tiles of positions inside a loop over channels, or the other way round.
        outer = -(-min(given["per_program"], given["C"]) // given["BC"]) if "BG" in given else 1
        tile = given["BC"] * given["BP"] * given.get("STEPS", 1)
        main = found.main
        turn = found.turn(main) if main else 0
        loop = turn * threads / tile
        program = (found.around(main) / (turns * outer) + turn) * threads / tile
    elif launch.name == "convolution_grads":  # warp instructions for 32 positions
        program = _for_32_positions(launch, found)
    sides = [str(given[name]) for name in ("BN", "BC", "BH", "BP", "BQ") if name in given]
    programs = 1
    for extent in launch.grid:
        programs *= extent
    tile_text = f"{' x '.join(sides)}, {launch.warps} warp{'s' * (launch.warps > 1)}"
    shared = launch.compiled.metadata.shared
    return Row(launch.name, tile_text, programs, found.registers, found.spills, shared, loop, program)


def _for_32_positions(launch: Launch, found: Code) -> float:
    """Warp instructions of all programs of a sample, over the sample's positions."""
    given = launch.arguments
    side = given["P"] if "TAPS" in given else given["height"] * -(-given["width"] // given["RUN"])
    turns = -(-min(given["per_part"], side) // given["BP" if "TAPS" in given else "BQ"])
    inner = [loop for loop in found.loops if not found.inside(loop)]
    if "TAPS" in given:  # the first kernel had one loop a plane
        total: float = found.around(inner[0]) + turns * sum(map(found.turn, inner))
    else:  # one program for the gradients of the maps, with a loop over the rows inside, and one for each of the rows
        outer = next(loop for loop in found.loops if found.inside(loop))
        (rows,) = found.inside(outer)
        alone = next(loop for loop in inner if loop != rows)
        total = found.around(outer) + turns * (found.turn(outer) + (given["K"] - 1) * found.turn(rows))
        total += given["K"] * (found.around(alone) + turns * found.turn(alone))
    return total * launch.warps * given["parts"] / (given["P"] / 32)


def launches(shape: Sequence[int], **options: Any) -> list[Launch]:
    """Return the launches of one call."""
    counted = blocks.multiprocessors
    blocks.parts.cache_clear()
    blocks.multiprocessors = lambda device: MULTIPROCESSORS
    try:
        with recorded(Driver("cuda", "90")) as found:
            call(shape, **options)
    finally:
        blocks.multiprocessors = counted
        blocks.parts.cache_clear()
    return found


def table(shapes: Sequence[Sequence[int]], **options: Any) -> list[Row]:
    """Return one row a launch of inference, then of training, without what both have."""
    rows: list[Row] = []
    for shape in shapes:
        for training in (False, True):
            for found in map(row, launches(shape, training=training, **options)):
                if found not in rows:
                    rows.append(found)
    return rows


def counts(**options: Any) -> tuple[int, int]:
    """Return the launches forward and backward of one block with a norm in front and an epilogue, in training."""
    names = [launch.name for launch in launches((128, 256, 56, 56), norm=True, epilogue=True, **options)]
    before = names.index("apply") + 1
    return before, len(names) - before


def report(rows_of: dict[str, list[Row]], numbers: tuple[int, int]) -> str:
    """Return the tables as Markdown."""
    block = "one block (norm in front, residual and ReLU behind, training)"
    lines = [f"Launches of {block}: {numbers[0]} forward, {numbers[1]} backward."]
    for title, rows in rows_of.items():
        lines += [
            "", f"## {title}", "",
            "| kernel | tile | programs | registers | spills | shared | main loop | program |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {r.name} | {r.tile} | {r.grid} | {r.registers} | {r.spills} | {r.shared} | "
            f"{r.loop or '':{'.1f' if r.loop else ''}} | {r.program or '':{'.1f' if r.program else ''}} |"
            for r in rows
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Print the tables, or write them to a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file to write; prints without")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="only the first stage at batch 128")
    options = parser.parse_args(arguments)
    tables = {}
    for n in (128,) if options.quick else (128, 1):
        for c, side in STAGES[:1] if options.quick else STAGES:
            tables[f"{n} x {c} x {side} x {side}"] = table([(n, c, side, side)])
    if not options.quick:
        tables["128 x 256 x 56 x 56, norm in front, residual and ReLU behind"] = table(
            [(128, 256, 56, 56)], norm=True, epilogue=True
        )
    if options.json:
        rows = {title: [found._asdict() for found in table] for title, table in tables.items()}
        json.dump({"launches": counts(), "rows": rows}, sys.stdout)
        return
    text = report(tables, counts())
    if options.output:
        head = f"# Instructions of the kernels, Triton {triton.__version__}, sm_90\n\n"
        options.output.write_text(head + (__doc__ or "").split("\n\n", 2)[2] + "\n" + text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
