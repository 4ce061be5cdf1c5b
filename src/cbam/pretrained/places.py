"""Where the network is that a user names: in a run, a checkpoint, a comparison, a folder or a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cbam.errors import CBAMError, nearest, unknown_name
from cbam.files import checked_path
from cbam.pretrained.config import FILE, WEIGHTS

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SETTINGS, DETECTOR = "config.yaml", "detector.json"
FORMS = (
    "a run of cbam train, its best/, final/ or checkpoints/step-N/, a run of cbam compare with --variant, one of its"
    " cells, a folder of cbam.save_pretrained, a file of weights with --model"
)
_OF_RUN = ("best", "final", "best_ema", "final_ema")


@dataclass(frozen=True)
class Place:
    """Where a network's weights are, and what says how to build it.

    Attributes:
        weights: the file.
        config: the folder of config.json; None: the weights are alone.
        run: the folder of the run that they are of, with its config.yaml; None: of none.
        title: a short name, for pages and tables.
    """

    weights: Path
    config: Path | None
    run: Path | None
    title: str


def find_network(source: str | Path, variant: str | None = None) -> Place | None:
    """Return where a network is; None for a name that is no path here.

    Args:
        source: a folder or a file.
        variant: of a run of `cbam compare`: a variant, whose first finished seed is taken, or a cell such as
            "cbam-seed2".

    Raises:
        CBAMError: there is no network; the message names the neighbour that has one.
    """
    path = checked_path(source)
    if not path.exists():
        _refuse_missing(path, str(source))
        return None
    if path.is_file() and path.name == FILE:
        path = path.parent
    cells = path / "cells"
    if variant is not None:
        path = _cell(path, variant)
    elif cells.is_dir():
        raise _names_cells(path)
    if path.is_file():
        return _in_file(path)
    for folder in (path, path / "best", path / "final"):
        if (folder / FILE).is_file():
            return Place(_weights_of(folder), folder, run_of(folder), _title(folder))
    if (path / WEIGHTS["full"]).is_file() and not (path / DETECTOR).is_file():
        return Place(path / WEIGHTS["full"], None, run_of(path), _title(path))
    raise _no_network(path)


def run_of(folder: Path) -> Path | None:
    """Return the folder of the run that a folder belongs to: itself, the one above, or that of its cell."""
    levels = [folder, *folder.absolute().parents[:4]]
    for number, level in enumerate(levels):
        if (level / SETTINGS).is_file():
            between = {part.name for part in levels[:number]}
            return level if number < 2 or between & {"cells", "checkpoints"} else None
    return None


def finished_cells(run: Path) -> dict[str, Path]:
    """Return the cells of a comparison that hold weights, by name."""
    cells = sorted((run / "cells").iterdir()) if (run / "cells").is_dir() else []
    return {cell.name: cell for cell in cells if (cell / WEIGHTS["full"]).is_file()}


def variants_of(run: Path) -> list[str]:
    """Return the variants of a comparison of which a cell holds weights, as its cells are named."""
    return list(dict.fromkeys(name.rpartition("-seed")[0] for name in finished_cells(run)))


def _cell(run: Path, variant: str) -> Path:
    cells = finished_cells(run) if run.is_dir() else {}
    if not (run / "cells").is_dir():
        raise CBAMError(
            f"--variant {variant} names a network of a comparison, and {run} is no run of cbam compare."
        )
    if variant in cells:
        return cells[variant]
    if not cells:
        raise _names_cells(run)
    name = variant.replace(":", "-")
    seeds = {int(n.rpartition("-seed")[2]): p for n, p in cells.items() if n.rpartition("-seed")[0] == name}
    if not seeds:
        raise unknown_name(f"variant in {run}:", variant, [*variants_of(run), *cells])
    return seeds[min(seeds)]


def _names_cells(run: Path) -> CBAMError:
    cells = finished_cells(run)
    if not cells:
        return CBAMError(
            f"{run} is a comparison in which no network is finished yet. The same command resumes it."
        )
    first = next(iter(cells.values()))
    if (first / DETECTOR).is_file():
        return _of_detector(first)
    variants = variants_of(run)
    chosen = "cbam" if "cbam" in variants else variants[-1]
    return CBAMError(
        f"{run} is a comparison; its trained networks: {', '.join(variants)}. Name one: --variant {chosen}"
        f" (in Python variant={chosen!r}), or a cell: {_cell(run, chosen)}"
    )


def _in_file(path: Path) -> Place:
    if path.suffix not in SUFFIXES:
        run = run_of(path.parent)
        hint = f" Give {run}." if run is not None and path.is_relative_to(run) else ""
        raise CBAMError(f"{path} is no network: expected a folder, or a file {', '.join(SUFFIXES)}.{hint}")
    folder = path.parent
    if (folder / DETECTOR).is_file():
        raise _of_detector(folder)
    inside = (folder / FILE).is_file() and path.suffix == ".safetensors"
    title = _title(folder) if path.name in WEIGHTS.values() and (inside or run_of(folder)) else path.stem
    return Place(path, folder if inside else None, run_of(folder), title)


def _weights_of(folder: Path) -> Path:
    there = [folder / name for name in WEIGHTS.values() if (folder / name).is_file()]
    return there[0] if there else folder / WEIGHTS["full"]


def _no_network(path: Path) -> CBAMError:
    for folder in (path, path / "best", path / "final"):
        if (folder / DETECTOR).is_file():
            return _of_detector(path)
    steps = sorted([*path.glob("step-*"), *path.glob("checkpoints/step-*")], reverse=True)
    if steps and (path / SETTINGS).is_file():
        return CBAMError(
            f"{path} has no best/ yet: it was not validated so far. Give its newest checkpoint: {steps[0]}"
        )
    if steps:
        held = "one checkpoint" if len(steps) == 1 else f"{len(steps)} checkpoints"
        one = "it" if len(steps) == 1 else "one, such as the newest"
        return CBAMError(f"{path} is no network itself; it holds {held}. Give {one}: {steps[0]}")
    run = run_of(path)
    if path.name == "cells" and run is not None:
        return _names_cells(path.parent)
    if run is not None and run.resolve() != path.resolve():
        return CBAMError(
            f"{path} holds no network. Give {run if path.is_absolute() else os.path.relpath(run)}."
        )
    if run is not None:
        return CBAMError(
            f"{path} holds no network yet: no epoch is finished. The same command resumes the run."
        )
    inside = [child for child in sorted(path.iterdir()) if child.is_dir() and _opens(child)][:3]
    files = [child for child in sorted(path.iterdir()) if child.suffix in SUFFIXES][:3]
    close = [str(child) for child in (*inside, *files)]
    hint = f" Did you mean {', '.join(close)}?" if close else f" Give {FORMS}."
    return CBAMError(f"{path} holds no network: neither {FILE} nor {WEIGHTS['full']}.{hint}")


def _opens(folder: Path) -> bool:
    inside: Sequence[Path] = (folder, *(folder / name for name in _OF_RUN))
    return (folder / "cells").is_dir() or any((each / FILE).is_file() for each in inside)


def _of_detector(path: Path) -> CBAMError:
    folder = path if path.name not in _OF_RUN or path.parent == path else path.parent
    return CBAMError(
        f"{path} holds a detector. Its commands: cbam detect predict {folder} IMAGES, cbam detect evaluate {folder};"
        " in Python cbam.detect.saved.open_detector"
    )


def _refuse_missing(path: Path, source: str) -> None:
    """Refuse a name that looks like a path with a mistake in it, and not like a model or a name on the hub."""
    parent = path.parent
    if path.suffix in SUFFIXES and "/" not in source:
        raise _missing(path, [])
    if str(parent) == "." and not source.startswith((".", "~")):
        return
    if parent.is_dir() or path.is_absolute() or source.startswith((".", "~")) or path.suffix in SUFFIXES:
        raise _missing(path, [child.name for child in parent.iterdir()] if parent.is_dir() else [])


def _missing(path: Path, siblings: Sequence[str]) -> CBAMError:
    close = nearest(path.name, siblings, count=1)
    hint = f" Did you mean {path.parent / close[0]}?" if close else f" Give {FORMS}."
    return CBAMError(f"there is nothing at {path}.{hint}")


def _title(folder: Path) -> str:
    """Return a folder's name; of a run's best/ and final/ that of the run.

    >>> _title(Path("runs/digits/best")), _title(Path("runs/digits/checkpoints/step-000000012"))
    ('digits', 'digits step-000000012')
    """
    if folder.name in ("best", "final") and folder.parent.name:
        return folder.parent.name
    if folder.parent.name == "checkpoints" and folder.parent.parent.name:
        return f"{folder.parent.parent.name} {folder.name}"
    return folder.name or str(folder)
