import hashlib

import numpy as np
import pytest

from cbam.data import fashion_mnist
from cbam.data.detection import check_detection, load_detection, write_generated
from cbam.errors import CBAMError

pytestmark = pytest.mark.skipif(
    fashion_mnist.find_fashion_mnist(download=False).folder is None, reason="needs Fashion-MNIST"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    write_generated(folder, images=60, validation=15, size=96, seed=3)
    return folder


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_all_formats_hold_the_same_objects_without_a_fault(root):
    reports = [check_detection(f"{name}:{root / name}") for name in ("coco", "voc", "yolo")]
    for report in reports:
        assert not report.problems.errors
        assert not report.problems.warnings
        assert [len(side) for side in report.sides.values()] == [60, 15]
    for records in zip(*(report.raw.train for report in reports), strict=True):
        names = [
            [r.raw.classes[label - 1] for label in s.labels] for r, s in zip(reports, records, strict=True)
        ]
        assert names[0] == names[1] == names[2]
        for other in records[1:]:
            assert other.boxes == pytest.approx(records[0].boxes, abs=1e-4)
            assert other.path.read_bytes() == records[0].path.read_bytes()


def test_boxes_are_those_of_the_masks_and_most_of_each_object_shows(root):
    data = load_detection(f"coco:{root / 'coco'}")
    assert data.has_masks
    assert data.classes == fashion_mnist.CLASSES
    assert data.category_ids[-1] - data.category_ids[0] > 9  # with gaps
    seen = empty = overlapping = 0
    for image, target in data.train:
        assert image.shape[1:] == target["masks"].shape[1:]
        empty += not len(target["boxes"])
        assert target["masks"].sum(dim=0).le(1).all()  # one object shows in a pixel
        boxes = target["boxes"]
        overlapping += any(
            (boxes[a, :2] < boxes[b, 2:]).all() and (boxes[b, :2] < boxes[a, 2:]).all()
            for a in range(len(boxes))
            for b in range(a)
        )
        for mask, box, area in zip(target["masks"], boxes, target["area"], strict=True):
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert area == mask.sum()
            seen += 1
    assert seen > 60
    assert empty
    assert overlapping
    assert len({(r.width, r.height) for r in data.train.records}) == 3


def test_the_garments_are_in_the_pictures(root):
    """Where an object is said to be the picture differs from the same picture without objects: no box is shifted."""
    data = load_detection(f"coco:{root / 'coco'}")
    differences = []
    for image, target in data.train:
        if len(target["boxes"]) != 1:
            continue
        grey = np.asarray(image, dtype=float).mean(axis=0)
        step = np.abs(np.diff(grey, axis=1))
        mask = target["masks"][0].numpy().astype(bool)
        edge = mask[:, 1:] ^ mask[:, :-1]
        differences.append(step[edge].mean() / step[~edge].mean())
    assert np.mean(differences) > 1.5


def test_the_same_seed_gives_the_same_bytes(root, tmp_path):
    write_generated(tmp_path / "again", images=60, validation=15, size=96, seed=3)
    assert digests(tmp_path / "again") == digests(root)
    write_generated(tmp_path / "fewer", ("yolo",), images=5, validation=15, size=96, seed=3)
    few, all_ = digests(tmp_path / "fewer"), digests(root)
    assert all(all_[name] == few[name] for name in few)
    write_generated(tmp_path / "other", ("yolo",), images=5, validation=15, size=96, seed=4)
    assert set(digests(tmp_path / "other").values()).isdisjoint(set(few.values()) - {few["yolo/data.yaml"]})


def test_some_classes_only(tmp_path):
    chosen = ("Bag", "Trouser")
    specs = write_generated(tmp_path, ("coco",), images=20, size=64, classes=chosen, most_objects=1)
    data = load_detection(specs["coco"])
    assert data.classes == chosen
    assert max(len(record) for record in data.train.records) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"formats": ("cocoo",)}, "unknown format 'cocoo'. Did you mean 'coco'"),
        ({"classes": ("Bags",)}, "unknown class 'Bags'. Did you mean 'Bag'"),
        ({"images": 0}, "at least one image of each side"),
        ({"size": 8}, "32 pixels are needed"),
        ({"classes": ()}, "one class"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, words):
    with pytest.raises(CBAMError, match=words):
        write_generated(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "mine.txt").write_text("")
    with pytest.raises(CBAMError, match="voc holds files already"):
        write_generated(tmp_path, images=2)
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(CBAMError, match="pip install scikit-image"):
        write_generated(tmp_path, images=2)
