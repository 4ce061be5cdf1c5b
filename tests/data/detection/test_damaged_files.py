"""Whatever the bytes of an annotation file, a set is loaded or refused with a message, and no other error gets out."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbam.data.detection import PreparedDetection, check_detection, load_detection
from cbam.errors import CBAMError
from tests.data.detection.layouts import coco_2017, vocdevkit, yolo_folder

YAML = "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
FILES = {
    "coco": "annotations/instances_train2017.json",
    "voc": "VOC2007/Annotations/000001.xml",
    "voc list": "VOC2007/ImageSets/Main/trainval.txt",
    "yolo": "data.yaml",
    "yolo labels": "labels/train/a.txt",
}
MUTATIONS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=6)), min_size=1, max_size=4
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def sets(tmp_path):
    coco_2017(tmp_path / "coco")
    vocdevkit(tmp_path / "voc")
    yolo_folder(tmp_path / "yolo", {"train/a": "1 0.5 0.5 0.5 0.25\n0 0 0 1 0 1 1\n", "val/b": None}, YAML)
    return tmp_path


def mutated(content, mutations):
    for where, length, new in mutations:
        at = int(where * len(content))
        content = content[:at] + new + content[at + length :]
    return content


def use(spec):
    """Check, load and read everything."""
    with contextlib.suppress(CBAMError):
        str(check_detection(spec))
    with contextlib.suppress(CBAMError):
        data = load_detection(spec, bad_data="skip")
        for side in (data.train, data.validation):
            dataset = PreparedDetection(side, "ssd")
            for index in range(len(side)):
                _, target = dataset[0, index]
                assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()


@pytest.mark.parametrize("name", FILES)
@few
@given(mutations=MUTATIONS)
def test_damaged_bytes(sets, name, mutations):
    kind = name.split()[0]
    file: Path = sets / kind / FILES[name]
    content = file.read_bytes()
    try:
        file.write_bytes(mutated(content, mutations))
        use(f"{kind}:{sets / kind}")
    finally:
        file.write_bytes(content)


PLACES = [
    ("images",), ("annotations",), ("categories",), ("images", 0), ("annotations", 0), ("categories", 0),
    *(("images", 0, key) for key in ("id", "file_name", "width", "height")),
    *(("annotations", 1, key) for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")),
    ("annotations", 0, "segmentation", "counts"), ("annotations", 0, "segmentation", "size"),
    ("annotations", 1, "segmentation", 0), ("annotations", 1, "bbox", 2), ("categories", 1, "id"),
]  # fmt: skip


@few
@given(place=st.sampled_from(PLACES), value=JSON)
def test_values_of_other_types(sets, place, value):
    file = sets / "coco" / FILES["coco"]
    text = file.read_text()
    content = json.loads(text)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        file.write_text(json.dumps(content))
        use(f"coco:{sets / 'coco'}")
    finally:
        file.write_text(text)
