"""What the package never does: run a pickle, unpack an archive by its own paths, evaluate text, load YAML objects."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "benchmarks", "docs", "tools")
# Naming one is enough, so that it is found too where it is called under another name.
NEVER = {
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "pickle._Unpickler",
        "marshal.load",
        "marshal.loads",
    ),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "shelve.open"),
    *("eval", "exec", "os.system", "os.popen", "shutil.unpack_archive"),
    *(
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
        "yaml.unsafe_load_all",
        "yaml.full_load",
        "yaml.Loader",
    ),
    *("yaml.FullLoader", "yaml.UnsafeLoader", "torch.jit.load", "torch.hub.load", "torch.export.load"),
    "torch._inductor.aoti_load_package",
}
METHODS = ("extractall", "extract")  # of archives, whose names say where to write
ALLOWED = {
    ("src/cbam/attach/fusion/epilogue.py", "exec"): "the code of a traced graph, as torch.fx does it",
    ("src/cbam/documents.py", "yaml.load"): "with a loader that knows no objects",
    ("src/cbam/checkpoints/census.py", "pickle._Unpickler"): "it counts, and builds nothing",
    ("src/cbam/export/loading.py", "torch.export.load"): "a .pt2 file is a program: docs/export.md says so",
    ("benchmarks/export_executorch.py", "torch.export.load"): "the file that the command before has written",
    ("src/cbam/export/loading.py", "torch._inductor.aoti_load_package"): "a library: the same",
    ("src/cbam/testing/copies.py", "pickle.loads"): "bytes that it has written in the line before",
}


def imported_names(tree):
    """Return {name in the file: what it is}, for `import a.b as c` and `from a import b as c`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node, names):
    """Return the name that an expression stands for; it starts with a dot if it is one of a value."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return ".".join([names.get(node.id, node.id) if isinstance(node, ast.Name) else "", *parts])


def keyword(call, name):
    """Return the value of a keyword that is written out, ... for one that is computed, None without."""
    return next((getattr(k.value, "value", ...) for k in call.keywords if k.arg == name), None)


def unsafe(source, file="new.py"):
    tree = ast.parse(source)
    names = imported_names(tree)
    found, loads = [], 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func, names)
            loads += name == "torch.load" and keyword(node, "weights_only") is True
            found += [
                (node.lineno, f"{name}({k})")
                for k in ("shell", "allow_pickle")
                if keyword(node, k) not in (None, False)
            ]
        elif isinstance(node, ast.Attribute | ast.Name):
            name = dotted(node, names)
            loads -= name == "torch.load"
            if name in NEVER or (isinstance(node, ast.Attribute) and node.attr in METHODS):
                found.append((node.lineno, name))
    found += [(0, "torch.load without weights_only=True")] if loads < 0 else []
    return [f"{file}:{line} {name}" for line, name in found if (file, name) not in ALLOWED]


def test_the_package_does_none_of_it():
    files = [
        ROOT / "setup.py",
        *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))),
    ]
    assert len(files) > 100
    assert [
        bad for file in files for bad in unsafe(file.read_text(), file.relative_to(ROOT).as_posix())
    ] == []


def test_every_exception_is_used():
    for file, name in ALLOWED:
        assert any(f" {name}" in bad for bad in unsafe((ROOT / file).read_text())), (file, name)


@pytest.mark.parametrize(
    "lines",
    ["import pickle; pickle.loads(b)", "from pickle import loads as read; read(b)",
     "import pickle; map(pickle.load, f)",
     "import pickle\nclass Mine(pickle.Unpickler): pass",
     "import torch; torch.load(f)", "import torch; torch.load(f, weights_only=False)",
     "import torch; torch.load(f, weights_only=flag)", "import torch; torch.load(f, **options)",
     "import torch; torch.load(f, weights_only=True); read = torch.load", "from torch import load; load(f)",
     "import tarfile; tarfile.open(f).extractall(d)", "z.extract(n)", "import shutil; shutil.unpack_archive(f)",
     "import yaml; yaml.load(t)", "from yaml import unsafe_load; unsafe_load(t)",
     "import yaml; yaml.safe_load; yaml.Loader",
     "import numpy as np; np.load(f, allow_pickle=True)", "import numpy as np; np.load(f, allow_pickle=flag)",
     "eval(text)", "import subprocess; subprocess.run(x, shell=True)", "import os; os.system(x)",
     "import torch; torch.hub.load('a/b', 'c')"],
)  # fmt: skip
def test_each_is_found(lines):
    assert unsafe(lines)


@pytest.mark.parametrize(
    "lines",
    ["import torch; torch.load(f, weights_only=True)", "model.eval()", "import yaml; yaml.safe_load(t)",
     "import numpy; numpy.load(f, allow_pickle=False)", "import subprocess; subprocess.run([x])"],
)  # fmt: skip
def test_safe_ones_are_not(lines):
    assert not unsafe(lines)
