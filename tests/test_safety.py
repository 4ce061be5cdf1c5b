"""What the package never does: run a pickle, unpack an archive by its own paths, evaluate text, load YAML objects."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "cbam"
# Call -> the keyword that makes it safe; None: never.
REFUSED = {
    "pickle.load": None, "pickle.loads": None, "marshal.load": None, "marshal.loads": None, "eval": None,
    "exec": None, "os.system": None, "yaml.load": None, "yaml.unsafe_load": None, "yaml.full_load": None,
    "shutil.unpack_archive": None, "extractall": None, "extract": None, "joblib.load": None,
    "torch.load": "weights_only",
}  # fmt: skip
ALLOWED = {
    ("attach/fusion/epilogue.py", "exec"): "the code of a traced graph, as torch.fx does it",
    ("documents.py", "yaml.load"): "with a loader that knows no objects",
    ("testing/copies.py", "pickle.loads"): "bytes that it has written in the line before",
}


def name_of(call):
    """Return the dotted name of what is called; it starts with a dot if that is no name."""
    parts, node = [], call.func
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    parts.insert(0, node.id if isinstance(node, ast.Name) else "")
    return ".".join(parts)


def is_true(call, keyword):
    return any(k.arg == keyword and getattr(k.value, "value", None) is True for k in call.keywords)


def unsafe(source, file="new.py"):
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = name_of(node)
            short = name.rpartition(".")[2]
            rule = (
                name
                if name in REFUSED
                else short
                if short in ("extractall", "extract") and "." in name
                else None
            )
            if rule and (file, rule) not in ALLOWED and not (REFUSED[rule] and is_true(node, REFUSED[rule])):
                found.append(f"{file}:{node.lineno} {name}")
            found += [
                f"{file}:{node.lineno} {name}({k}=True)"
                for k in ("shell", "allow_pickle")
                if is_true(node, k)
            ]
    return found


def test_the_package_does_none_of_it():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 100
    assert [
        bad for file in files for bad in unsafe(file.read_text(), file.relative_to(SOURCE).as_posix())
    ] == []


@pytest.mark.parametrize(
    "line",
    ["pickle.loads(b)", "torch.load(f)", "torch.load(f, weights_only=False)", "tarfile.open(f).extractall(d)",
     "yaml.load(t)", "np.load(f, allow_pickle=True)", "eval(text)", "subprocess.run(x, shell=True)", "z.extract(n)"],
)  # fmt: skip
def test_each_is_found(line):
    assert unsafe(line)


@pytest.mark.parametrize("line", ["torch.load(f, weights_only=True)", "model.eval()", "yaml.safe_load(t)"])
def test_safe_ones_are_not(line):
    assert not unsafe(line)
