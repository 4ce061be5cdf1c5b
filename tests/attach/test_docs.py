"""docs/sites.md: its table and its examples hold. `python -m tests.attach.test_docs` prints the table."""

import doctest
import re
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

import cbam
from cbam.attach.sites.table import KINDS
from cbam.errors import CBAMError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "sites.md"
NAMES = {
    "ResNet-50": "resnet50",
    "VGG16": "vgg16",
    "MobileNetV2": "mobilenet_v2",
    "DenseNet121": "densenet121",
    "SSD300": "ssd300_vgg16",
    "Faster R-CNN": "fasterrcnn_resnet50_fpn",
}
DETECTORS = ("SSD300", "Faster R-CNN")


def cells(name, kinds=KINDS):
    """Return "sites, +parameters" for each kind."""
    torch.manual_seed(0)
    detector = name in DETECTORS
    options = {"weights_backbone": None} if detector else {}
    if name == "Faster R-CNN":
        options.update(min_size=224, max_size=224)
    with torch.device("cpu" if detector else "meta"):
        model = get_model(NAMES[name], weights=None, **options)
    example = [torch.rand(3, 224, 224)] if detector else None
    found = []
    for kind in kinds:
        try:
            plan = cbam.plan(model, sites=kind, example_input=example)
            found.append(f"{len(plan.sites)}, +{plan.added_parameters / 1e6:.2f}")
        except CBAMError:
            found.append("none")
    return found


def table():
    lines = [["network", *(f"`{kind}`" for kind in KINDS)], ["---"] * (len(KINDS) + 1)]
    lines += [[name, *cells(name)] for name in NAMES]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_table(name):
    written = next(line for line in DOCS.read_text().splitlines() if line.startswith(f"| {name} |"))
    kinds = ("head",) if name in DETECTORS else KINDS  # a detector takes seconds for each kind
    found = [text.strip() for text in written.split("|")[2:-1]]
    assert [found[KINDS.index(kind)] for kind in kinds] == cells(name, kinds)


def test_the_examples():
    failed, tried = doctest.testfile(str(DOCS), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 5
    assert not failed


def test_every_test_that_it_links_to_is_there():
    links = re.findall(r"\]\(\.\./(tests/[^)#]+)\)", DOCS.read_text())
    assert len(links) > 8
    for link in links:
        assert (ROOT / link).is_file(), link


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
