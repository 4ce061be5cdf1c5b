"""Write a folder of images as tar shards: the same bytes for the same folder, resumable."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbam.data.doctor import FolderReport, check_folder
from cbam.data.folder import labelled_images, refuse
from cbam.data.hashing import name_hash
from cbam.data.pictures import DEFAULT_MAX_PIXELS
from cbam.data.shards.index import load_index
from cbam.data.shards.locations import find_shards
from cbam.data.split import stratified_split
from cbam.errors import CBAMError
from cbam.files import remove_leftovers, write_atomically
from cbam.runs.progress import counting

PLAN = "shards.json"
_LARGEST_SHARD = 8 << 30


@dataclass(frozen=True)
class Written:
    """What `write_shards` did: shards and samples on each side, and how many shards an earlier run had written."""

    out: Path
    shards: dict[str, int]
    samples: dict[str, int]
    reused: int
    notices: tuple[str, ...] = ()


def write_shards(
    folder: Path,
    out: Path,
    *,
    per_shard: int = 1000,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    bad_images: str = "fail",
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Written:
    """Write the images of `folder` as train-*.tar and val-*.tar with classes.txt and the index into the folder `out`.

    The files are copied as they are, in an order shuffled by their names, each with its class as KEY.cls. Every shard
    appears as a whole; stopped at any time, the same call goes on and ends with the same bytes.

    Args:
        folder: train/ and val/, or one folder for each class, which is then split.
        out: a new folder, an empty one, or one that was begun by the same call.
        per_shard: samples in each shard but the last; one shard is held in memory.
        val_fraction: share of each class that validates, where there is no validation folder.
        split_seed: another seed gives another split.
        bad_images: "fail" stops at images that cannot be read, "skip" leaves them out.
        max_pixels: images with more pixels are bad ones.

    Raises:
        CBAMError: images that cannot be used, or `out` holds something else.
    """
    if per_shard < 1:
        raise CBAMError(f"per_shard must be at least 1, given {per_shard}.")
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise CBAMError(
            f"{out} lies inside {folder}: the shards would become images of it. Give another folder."
        )
    report = check_folder(folder, max_pixels=max_pixels)
    refuse(report, bad_images)
    roots = {"train": report.train.folder, "val": (report.val or report.train).folder}
    sides = _sides(report, val_fraction, split_seed)
    for members in sides.values():
        members.sort(key=lambda pair: (name_hash(pair[0], 0), pair[0]))
    _begin(out, sides, roots, per_shard)
    reused = _write_sides(out, sides, roots, per_shard)
    write_atomically(out / "classes.txt", "".join(f"{name}\n" for name in report.train.classes))
    load_index(find_shards(str(out)), {})
    return Written(
        out,
        {side: len(_cuts(members, per_shard)) for side, members in sides.items()},
        {side: len(members) for side, members in sides.items()},
        reused,
        (*report.notices, *(f"left out: {line}" for line in report.bad_lines())),
    )


def _sides(report: FolderReport, val_fraction: float, split_seed: int) -> dict[str, list[tuple[str, int]]]:
    train = labelled_images(report, report.train)
    if report.val is not None:
        return {"train": train, "val": labelled_images(report, report.val)}
    names, labels = zip(*train, strict=True)
    parts = stratified_split(names, labels, val_fraction, split_seed)
    return {
        side: [train[index] for index in part] for side, part in zip(("train", "val"), parts, strict=True)
    }


def _begin(
    out: Path, sides: dict[str, list[tuple[str, int]]], roots: dict[str, Path], per_shard: int
) -> None:
    """Record what is to be written, so that shards of another folder cannot be mixed with these."""
    digest = hashlib.sha256(str(per_shard).encode())
    for side, members in sides.items():
        for name, label in members:
            status = (roots[side] / name).stat()
            line = f"{side}\0{name}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    plan = {"per_shard": per_shard, "sources_sha256": digest.hexdigest()}
    if (out / PLAN).is_file():
        if json.loads((out / PLAN).read_text()) != plan:
            raise CBAMError(
                f"{out} holds shards of other images or of another --per-shard. Give a new folder, or delete it."
            )
        remove_leftovers(out)
        return
    if out.exists() and any(out.iterdir()):
        raise CBAMError(f"{out} is not empty and was not begun by this command. Give a new folder.")
    write_atomically(out / PLAN, json.dumps(plan, indent=1) + "\n")


def _write_sides(
    out: Path, sides: dict[str, list[tuple[str, int]]], roots: dict[str, Path], per_shard: int
) -> int:
    reused = 0
    total = sum(len(_cuts(members, per_shard)) for members in sides.values())
    done = 0
    with counting("writing shards") as count:
        for side, members in sides.items():
            for number, start in enumerate(_cuts(members, per_shard)):
                path = out / f"{side}-{number:06d}.tar"
                if path.is_file():
                    reused += 1
                else:
                    write_atomically(path, _packed(roots[side], members[start : start + per_shard], start))
                count(done := done + 1, total)
    return reused


def _cuts(members: Sequence[object], per_shard: int) -> list[int]:
    return np.arange(0, len(members), per_shard).tolist()


def _packed(root: Path, members: Sequence[tuple[str, int]], first: int) -> bytes:
    """Return a tar file of images and classes; times and owners are zero, so that it depends on nothing else."""
    stream = io.BytesIO()
    # Names and sizes are within its limits, and the oldest format is read everywhere.
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (name, label) in enumerate(members, first):
            content = (root / name).read_bytes()
            if stream.tell() + len(content) > _LARGEST_SHARD:
                raise CBAMError(
                    f"a shard would be larger than {_LARGEST_SHARD:,} bytes. Type a smaller --per-shard."
                )
            suffix = Path(name).suffix.lower()
            for ending, part in ((suffix, content), (".cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:09d}{ending}")
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
    return stream.getvalue()
