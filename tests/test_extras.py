"""Each extra brings what its commands import: they run with every package of the other extras hidden."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

from cbam.cli.main import COMMANDS, EXTRAS
from cbam.data.detection import write_generated

tomllib = pytest.importorskip("tomllib")
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
GROUPS = PROJECT["optional-dependencies"]
IMPORTED = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
HIDE = """
import sys
sys.modules.update(dict.fromkeys({hidden!r}))  # None: importing it fails
from cbam.cli.main import main
sys.exit(main({command!r}))
"""


def base(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def wanted(extra):
    """The packages that an extra names, through the extras inside it."""
    names = set()
    for requirement in GROUPS[extra]:
        inner = re.match(r"torch-cbam\[(.*)\]", requirement)
        names |= {n for e in inner[1].split(",") for n in wanted(e)} if inner else {base(requirement)}
    return names


def with_what_they_need(names):
    found, left = set(), set(names)
    while left:
        name = left.pop()
        found.add(name)
        try:
            needs = {base(r) for r in requires(name) or [] if "extra ==" not in r}
        except PackageNotFoundError:
            continue
        left |= needs - found
    return found


def hidden(extra):
    """Modules of all packages in extras that this one does not bring, by itself or through what it brings."""
    every = set().union(*map(wanted, set(GROUPS) - {"dev", "docs"}))
    there = with_what_they_need(wanted(extra) | set(map(base, PROJECT["dependencies"])))
    return {IMPORTED.get(name, name.replace("-", "_")) for name in every - there}


def run(extra, command, folder):
    code = HIDE.format(hidden=hidden(extra), command=command)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    found = tmp_path_factory.mktemp("extras")
    for side in ("train", "val"):
        for name in ("a", "b"):
            (found / "set" / side / name).mkdir(parents=True)
            for number in range(2):
                Image.effect_noise((32, 32), 90).convert("RGB").save(
                    found / "set" / side / name / f"{number}.png"
                )
    write_generated(found / "detect", ("yolo",), images=2, validation=2, size=64)
    return found


TRAIN = "train --data set --model resnet20 --epochs 1 --batch-size 2 --device cpu --output run"


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("train", TRAIN),
        ("train", "evaluate run --data set"),  # the network of the line above
        ("explain", "explain set/val/a/0.png --run run --output seen"),
        ("compare", "bench --help"),
        ("detect", "detect train --help"),
        ("demo", "demo --help"),
    ],
)
def test_a_command_needs_its_extra_only(extra, command, folder):
    done = run(extra, command.split(), folder)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_missing_is_named(folder):
    done = run("train", ["explain", "set/val/a/0.png", "--model", "resnet20", "--output", "none"], folder)
    assert (done.returncode, "pip install 'torch-cbam[explain]'" in done.stderr) == (2, True), done.stderr[
        -2000:
    ]


def test_every_command_has_an_extra():
    assert set(EXTRAS) <= set(COMMANDS)
    assert {EXTRAS.get(command, "compare") for command in COMMANDS} <= set(GROUPS)
    assert hidden("train") >= {"torchcam", "gradio", "faster_coco_eval"}
