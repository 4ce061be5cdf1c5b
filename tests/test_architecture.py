"""Imports run downward only: a folder may use the floors below its own (and its own), never one above."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "cbam"
FLOORS = {
    "errors": 0, "files": 0, "formatting": 0, "preserve_state": 0, "ops": 1, "nn": 2, "functional": 2, "attach": 3,
    "checkpoints": 3, "models": 4, "evaluate": 4, "data": 4, "explain": 4, "runs": 4, "pretrained": 5, "train": 5,
    "compare": 6, "bench": 6, "cli": 7, "__main__": 8,
}  # fmt: skip


def imports(source):
    """Top-level parts of `cbam` that a file imports, `from cbam import X` counted as the part that holds X."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cbam":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("cbam."))


def upward(part, source):
    return [used for used in imports(source) if FLOORS.get(used, 0) > FLOORS[part]]


def test_every_part_has_a_floor():
    parts = {
        path.stem
        for path in SOURCE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert parts - {"__init__", "__pycache__"} <= set(FLOORS)


# The package's own __init__ gathers the public names, so it stands on all floors.
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_downward(path):
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert upward(part, path.read_text()) == []


def test_the_check_can_fail():
    assert upward("nn", "from cbam.train.loop import train_model") == ["train"]
