"""Imports run downward only, from a folder to the floors below its own, and files import each other in no circle."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "cbam"
FLOORS = {
    "errors": 0, "version": 0, "files": 0, "documents": 0, "formatting": 0, "preserve_state": 0, "page": 1, "ops": 1,
    "nn": 2, "functional": 2, "attach": 3, "checkpoints": 3, "models": 4, "evaluate": 4, "data": 4, "explain": 4,
    "runs": 4, "testing": 4, "pretrained": 5, "train": 5, "detect": 5, "compare": 6, "bench": 6, "demo": 6,
    "export": 6, "predict": 6, "cli": 7, "__main__": 8,
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


def file_imports(name, package, source, files):
    """The modules that a file imports, late imports and those for type checkers included.

    Args:
        name: of the file as a module.
        package: what a relative import starts from.
        source: its text.
        files: all modules; what is not one of them is a name inside its parent.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= inside & files
            if inside - files:
                found.add(base)
    return (found & files) - {name}


def circles(graph):
    """The strongly connected parts of a graph {module: modules} that have more than one member (Tarjan)."""
    number, low, stack, found = {}, {}, [], []

    def visit(module):
        number[module] = low[module] = len(number)
        stack.append(module)
        for used in graph[module]:
            if used not in number:
                visit(used)
                low[module] = min(low[module], low[used])
            elif used in stack:
                low[module] = min(low[module], number[used])
        if low[module] == number[module]:
            part = set(stack[stack.index(module) :])
            del stack[stack.index(module) :]
            if len(part) > 1:
                found.append(part)

    for module in graph:
        if module not in number:
            visit(module)
    return found


def module_of(path):
    """A file's name as a module, and the package that it is in."""
    parts = ("cbam", *path.relative_to(SOURCE).with_suffix("").parts)
    package = ".".join(parts[:-1])
    return (package, package) if parts[-1] == "__init__" else (".".join(parts), package)


def file_graph():
    modules = {module_of(path): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}
    files = {name for name, _ in modules}
    return {name: file_imports(name, package, text, files) for (name, package), text in modules.items()}


# Being removed.


def without_the_face(graph):
    return {name: used - {"cbam"} for name, used in graph.items() if name != "cbam"}


def test_no_circle_of_files():
    assert circles(without_the_face(file_graph())) == []


def test_only_the_command_line_uses_the_package_s_face():
    """`cbam/__init__.py` imports all of the package, so a part of it that imports `cbam` closes a circle."""
    users = {name for name, used in file_graph().items() if "cbam" in used}
    assert {name for name in users if not name.startswith("cbam.cli.")} == set()


CIRCLE = {
    "cbam": "from cbam import a",
    "cbam.a": "def late():\n    from cbam.b import name",
    "cbam.b": "if TYPE_CHECKING:\n    from .c import d, name",
    "cbam.c": "from cbam.d import name",
    "cbam.c.d": "",
    "cbam.d": "import cbam.a",
    "cbam.e": "from cbam.a import name\nfrom cbam import name",
}


def test_the_search_for_circles_can_fail():
    files = set(CIRCLE)
    graph = {name: file_imports(name, "cbam", text, files) for name, text in CIRCLE.items()}
    assert graph["cbam.b"] == {"cbam.c", "cbam.c.d"}
    assert graph["cbam.e"] == {"cbam.a", "cbam"}
    assert circles(without_the_face(graph)) == [{"cbam.a", "cbam.b", "cbam.c", "cbam.d"}]
    graph["cbam.c"] = set()
    assert circles(without_the_face(graph)) == []


def test_the_graph_has_the_imports_that_are_there():
    graph = file_graph()
    assert {"cbam.ops.cpp", "cbam.ops.triton", "cbam.ops.signature"} <= graph["cbam.ops.dispatch"]
    assert "cbam.ops.triton.run_forward" in graph["cbam.ops.triton"]  # inside a function
    assert {"cbam.nn", "cbam.pretrained"} <= graph["cbam"]
