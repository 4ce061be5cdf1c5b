"""Read a run folder, finished or not: missing files stay empty, for broken ones an error names the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from cbam.documents import read_json, read_yaml
from cbam.errors import CBAMError
from cbam.files import checked_path

_MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Run:
    """The contents of a run folder.

    `history` maps a cell to its epochs in order; `planned` lists the (variant, seed) pairs that the
    configuration asks for.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    costs: dict[str, dict[str, Any]]
    pictures: dict[str, Any]
    results: list[dict[str, Any]]
    history: dict[str, list[dict[str, Any]]]
    planned: list[tuple[str, int]]

    @property
    def variants(self) -> list[str]:
        """All variants, those of the configuration first, in its order."""
        found = [variant for variant, _ in self.planned]
        found += [result["variant"] for result in self.results]
        found += [epochs[0]["variant"] for epochs in self.history.values()]
        return list(dict.fromkeys(found))

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers of parameters by variant, as far as a network of it is trained."""
        return {result["variant"]: result["parameters"] for result in self.results if "parameters" in result}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All epochs of all cells."""
        return [row for epochs in self.history.values() for row in epochs]

    @property
    def missing(self) -> list[tuple[str, int]]:
        """The planned cells that have no result yet."""
        done = {(result["variant"], result["seed"]) for result in self.results}
        return [cell for cell in self.planned if cell not in done]


def read_run(folder: Path) -> Run:
    """Read the files that a comparison leaves in its folder.

    Args:
        folder: the run folder (`--output` of `cbam compare`).

    Raises:
        CBAMError: the folder does not exist or holds no run, or one of its files is invalid.
    """
    folder = checked_path(folder)
    if not folder.is_dir():
        raise CBAMError(f"no run folder at {folder}; `cbam compare --output {folder} ...` makes one")
    if not (folder / "config.yaml").exists():
        raise CBAMError(f"{folder} holds no run: it has no config.yaml, which `cbam compare` writes first")
    config = _settings(folder / "config.yaml")
    results = [_result(file) for file in sorted(folder.glob("cells/*/result.json"))]
    planned = _planned(config, folder / "config.yaml")
    order = {cell: position for position, cell in enumerate(planned)}
    results.sort(key=lambda result: order.get((result["variant"], result["seed"]), len(order)))
    return Run(
        folder=folder,
        config=config,
        environment=read_object(folder / "env.json"),
        data=read_object(folder / "data.json"),
        costs=read_object(folder / "costs.json"),
        pictures=read_object(folder / "pictures" / "pictures.json"),
        results=results,
        history=read_history(folder / "metrics.jsonl"),
        planned=planned,
    )


def read_history(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Read `metrics.jsonl`: cell -> its epochs in order.

    A cell that was interrupted repeats epochs: the later line wins. The last line may be torn and is then left
    out; a line that is broken elsewhere is an error.
    """
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if (
                not all(isinstance(row[key], str) for key in ("cell", "variant"))
                or type(row["epoch"]) is not int
            ):
                raise ValueError("cell and variant should be names, epoch a whole number")
            cells.setdefault(row["cell"], {})[row["epoch"]] = row
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number < len(lines):
                raise CBAMError(f"{file}, line {number}: not an epoch's metrics ({error})") from error
    return {cell: [epochs[epoch] for epoch in sorted(epochs)] for cell, epochs in cells.items()}


@contextmanager
def telling_damage(folder: Path) -> Iterator[None]:
    """Turn what a value of another type than expected raises, deep in a report, into an error that names the folder."""
    try:
        yield
    except CBAMError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TemplateError,
        TypeError,
        ValueError,
    ) as error:
        raise CBAMError(
            f"{folder}: a file holds something else than was written by the run ({type(error).__name__}: {error})"
        ) from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one where there is no file.

    Raises:
        CBAMError: it is no JSON, or something else than an object.
    """
    if not file.exists():
        return {}
    content = read_json(file)
    if not isinstance(content, dict):
        raise CBAMError(f"{file} should hold an object, and holds {type(content).__name__}")
    return content


def _result(file: Path) -> dict[str, Any]:
    result = read_object(file)
    if not isinstance(result.get("variant"), str) or type(result.get("seed")) is not int:
        raise CBAMError(f"{file} is damaged: it needs the name of a 'variant' and a whole number 'seed'")
    return result


def _settings(file: Path) -> dict[str, Any]:
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise CBAMError(f"{file} should hold the settings of a run, one `name: value` per line")
    return content


def _planned(config: dict[str, Any], file: Path) -> list[tuple[str, int]]:
    attention, seeds = config.get("attention", ()), config.get("seeds", 0)
    if isinstance(attention, str):
        attention = [name.strip() for name in attention.split(",")]
    if not isinstance(attention, (list, tuple)) or not all(isinstance(name, str) for name in attention):
        raise CBAMError(f"{file}: attention should list the names of variants, given {str(attention)[:80]}")
    numbers = list(range(min(seeds, _MOST_SEEDS))) if type(seeds) is int else seeds
    if (
        not isinstance(numbers, list)
        or len(numbers) >= _MOST_SEEDS
        or any(type(n) is not int for n in numbers)
    ):
        raise CBAMError(f"{file}: seeds should be a number or a list of numbers, given {str(seeds)[:80]}")
    return [(variant, seed) for variant in attention for seed in numbers]
