"""`cbam shards`: a folder of images as tar shards, for network disks, object stores and clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

DESCRIPTION = """Write a folder of images as tar shards in WebDataset's layout, with an index. Files stay as they are.
Stopped at any time, the same command goes on; the same folder always gives the same bytes.

Example: cbam shards photos photos-shards --per-shard 1000
         cbam compare --data shards:photos-shards"""


@dataclass(frozen=True)
class ShardsConfig:
    """Write a folder of images as tar shards."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """train/ and val/ with a folder for each class, or only the class folders, which are then split."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The folder to write into: a new one, or one that this command began."""
    per_shard: int = 1000
    """Samples in each shard; one shard is held in memory while it is written."""
    val_fraction: float = 0.2
    """Share of each class that validates, where there is no val/."""
    split_seed: int = 0
    """Another seed gives another split."""
    bad_images: Literal["fail", "skip"] = "fail"
    """fail: stop at images that cannot be read; skip: leave them out."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the `arguments` after it; return the exit code."""
    config = tyro.cli(ShardsConfig, prog="cbam shards", description=DESCRIPTION, args=list(arguments))
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
    kept = f" ({written.reused:,} of the shards were there already)" if written.reused else ""
    print(f"written to {written.out}{kept}. To train on them: --data shards:{written.out}")
    return 0
