"""`cbam shards`: write a folder of images as tar shards, for network disks, object stores and clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cbam.cli.parsing import read_options

DESCRIPTION = """Write a folder of images as tar shards in WebDataset's layout, with an index. Files are copied
unchanged. If interrupted, the same command resumes. The same folder always gives the same bytes.

Example: cbam shards photos photos-shards --per-shard 1000
         cbam compare --data shards:photos-shards"""


@dataclass(frozen=True)
class ShardsConfig:
    """Write a folder of images as tar shards."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """train/ and val/ with a folder per class, or just the class folders, which are then split."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The output folder: new, or written in part by an interrupted run."""
    per_shard: int = 1000
    """Samples per shard; a shard is kept in memory until it is written."""
    val_fraction: float = 0.2
    """Share of each class used for validation, if there is no val/."""
    split_seed: int = 0
    """Seed of the split."""
    bad_images: Literal["fail", "skip"] = "fail"
    """fail: stop at images that cannot be read; skip: leave them out."""


def main(arguments: Sequence[str]) -> int:
    """Run the command with its `arguments`; return the exit code."""
    config = read_options(ShardsConfig, "cbam shards", DESCRIPTION, arguments)
    from cbam.data.shards.write import write_shards

    written = write_shards(
        config.folder,
        config.out,
        per_shard=config.per_shard,
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
        bad_images=config.bad_images,
    )
    for notice in written.notices:
        print(f"note: {notice}")
    for side, count in written.shards.items():
        print(f"{side}: {written.samples[side]:,} images in {count:,} shards")
    kept = f" ({written.reused:,} of the shards already existed)" if written.reused else ""
    print(f"written to {written.out}{kept}. Train on them with --data shards:{written.out}")
    return 0
