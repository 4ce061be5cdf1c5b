"""Read a run folder, finished or not: missing files stay empty, for broken ones an error names the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cbam.errors import CBAMError


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
    folder = Path(folder)
    if not folder.is_dir():
        raise CBAMError(f"no run folder at {folder}; `cbam compare --output {folder} ...` makes one")
    if not (folder / "config.yaml").exists():
        raise CBAMError(f"{folder} holds no run: it has no config.yaml, which `cbam compare` writes first")
    config = _yaml(folder / "config.yaml")
    results = [_json(file) for file in sorted(folder.glob("cells/*/result.json"))]
    planned = _planned(config)
    order = {cell: position for position, cell in enumerate(planned)}
    results.sort(key=lambda result: order.get((result["variant"], result["seed"]), len(order)))
    return Run(
        folder=folder,
        config=config,
        environment=_json(folder / "env.json"),
        data=_json(folder / "data.json"),
        costs=_json(folder / "costs.json"),
        pictures=_json(folder / "pictures" / "pictures.json"),
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
            cells.setdefault(row["cell"], {})[row["epoch"]] = row
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number < len(lines):
                raise CBAMError(f"{file}, line {number}: not an epoch's metrics ({error})") from error
    return {cell: [epochs[epoch] for epoch in sorted(epochs)] for cell, epochs in cells.items()}


def _planned(config: dict[str, Any]) -> list[tuple[str, int]]:
    attention = config.get("attention", ())
    variants = (
        [name.strip() for name in attention.split(",")] if isinstance(attention, str) else list(attention)
    )
    seeds = config.get("seeds", 0)
    numbers = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    return [(variant, seed) for variant in variants for seed in numbers]


def _json(file: Path) -> Any:
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CBAMError(f"{file} is not readable as JSON: {error}") from error


def _yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CBAMError(f"{file} is not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise CBAMError(f"{file} should hold the settings of a run, one `name: value` per line")
    return content
