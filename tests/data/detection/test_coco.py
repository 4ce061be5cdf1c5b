import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from cbam.data.detection import check_detection, load_detection
from cbam.errors import CBAMError
from tests.data.detection.layouts import (
    CATEGORIES,
    coco_2017,
    coco_file,
    coco_folder,
    coco_image,
    coco_object,
    save_image,
    write_json,
)


@pytest.mark.parametrize("year", ["2017", "2014"])
@pytest.mark.parametrize("below", ["", "images"])
def test_coco_as_downloaded(tmp_path, year, below):
    coco_2017(tmp_path, year)
    if below:
        (tmp_path / below).mkdir()
        for side in ("train", "val"):
            (tmp_path / f"{side}{year}").rename(tmp_path / below / f"{side}{year}")
    data = load_detection(f"coco:{tmp_path}")
    assert data.classes == ("person", "dog", "toothbrush")
    assert data.category_ids == (1, 18, 90)
    assert data.has_masks
    assert [record.image_id for record in data.train.records] == [9, 25]  # in the order of their numbers
    assert [record.image_id for record in data.validation.records] == [139, 155]
    first, empty = data.train.records
    assert first.labels.tolist() == [1, 3, 2]
    assert first.iscrowd.tolist() == [True, False, False]
    assert first.boxes[1].tolist() == pytest.approx([50.11, 30.02, 60.41, 40.0])  # as it stands in the file
    assert len(empty) == 0
    _, target = data.train[0]
    assert target["masks"].shape == (3, 40, 60)
    assert target["masks"][0].sum() == 400
    _, target = data.train[1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 40, 60)


def test_masks_and_boxes_are_those_of_pycocotools(tmp_path):
    coco_2017(tmp_path)
    data = load_detection(f"coco:{tmp_path}")
    oracle = COCO(tmp_path / "annotations" / "instances_train2017.json")
    _, target = data.train[0]
    for entry, mask, area in zip(oracle.imgToAnns[9], target["masks"], target["area"], strict=True):
        assert np.array_equal(oracle.annToMask(entry), mask)
        assert area == entry["area"]


def test_roboflow(tmp_path):
    for side, number in (("train", 1), ("valid", 2), ("test", 3)):
        save_image(tmp_path / side / f"{number}_jpg.rf.abc.jpg")
        coco_file(
            tmp_path / side / "_annotations.coco.json",
            [coco_image(0, f"{number}_jpg.rf.abc.jpg")],
            [coco_object(0, 0, 1, segmentation=[])],
            [{"id": 0, "name": "fruits", "supercategory": "none"}, {"id": 1, "name": "apple"}],
        )
    data = load_detection(f"coco:{tmp_path}")
    assert [record.path.parent.name for record in (*data.train.records, *data.validation.records)] == [
        "train",
        "valid",
    ]
    assert data.classes == ("fruits", "apple")
    assert not data.has_masks
    assert "masks" not in data.train[0][1]
    assert any("1 of 2 classes without a training object: fruits" in notice for notice in data.notices)


def test_a_folder_with_one_file_is_split(tmp_path):
    coco_folder(tmp_path, [coco_object(1, 1), coco_object(2, 2), coco_object(3, 3)])
    data = load_detection(f"coco:{tmp_path}", val_fraction=0.34)
    assert sorted([len(data.train), len(data.validation)]) == [1, 2]
    again = load_detection(f"coco:{tmp_path / 'labels.json'}", val_fraction=0.34)
    assert again.identity == data.identity
    others = {
        load_detection(f"coco:{tmp_path}", val_fraction=0.34, split_seed=s).validation.digest()
        for s in range(9)
    }
    assert len(others) == 3


def test_files_and_images_can_be_named(tmp_path):
    coco_folder(tmp_path / "set", [coco_object(1, 1)])
    (tmp_path / "set" / "labels.json").rename(tmp_path / "a.json")
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text())
    with pytest.raises(CBAMError, match=r"can be told apart: a.json, b.json found.*\?train=FILE"):
        check_detection(f"coco:{tmp_path}")
    data = load_detection(f"coco:{tmp_path}?train=a.json&val=b.json&images=set")
    assert (len(data.train), len(data.validation)) == (3, 3)
    assert any("images that train and validate" in notice for notice in data.notices)
    with pytest.raises(CBAMError, match=r"val=c\.json: there is nothing of that name"):
        check_detection(f"coco:{tmp_path}?train=a.json&val=c.json")
    with pytest.raises(CBAMError, match="needs the training annotations too"):
        check_detection(f"coco:{tmp_path}?val=b.json")
    with pytest.raises(CBAMError, match=r"train=\.\./x\.json: there is nothing"):
        check_detection(f"coco:{tmp_path / 'set'}?train=../x.json")


ERRORS = {
    "unknown category": ([coco_object(1, 1, 7)], "unknown category (left out): annotation 1 of image 1: 7"),
    "unknown image": ([coco_object(1, 77)], "image that is not there (left out): annotation 1 of image 77"),
    "NaN": ([coco_object(1, 1, bbox=[float("nan"), 1, 2, 3])], "1 boxes with numbers that are not finite"),
    "huge": ([coco_object(1, 1, bbox=[1, 1, 10**400, 3])], "1 boxes with numbers that are not finite"),
    "outside": ([coco_object(1, 1, bbox=[70, 1, 5, 5])], "1 boxes outside the image"),
    "three numbers": ([coco_object(1, 1, bbox=[1, 2, 3])], "1 annotations whose 'bbox' is no list of four numbers"),
    "text": ([coco_object(1, 1, bbox=["1", 2, 3, 4])], "'bbox' is no list of four numbers (left out): annotation 1"),
    "no object": (["dog"], "1 annotations that are no objects (left out): number 0: 'dog'"),
    "polygon": ([coco_object(1, 1, segmentation=[[1, 2, 3, 4, 5, float("inf")]])], "whose 'segmentation'"),
    "run lengths": ([coco_object(1, 1, segmentation={"size": [40, 60], "counts": [9]})], "do not fill 60 x 40"),
    "odd outline": ([coco_object(1, 1, segmentation="x")], "1 annotations whose 'segmentation' cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize(("annotations", "words"), ERRORS.values(), ids=ERRORS)
def test_annotations_that_mean_nothing_stop_or_are_left_out(tmp_path, annotations, words):
    root = coco_folder(tmp_path, [*annotations, coco_object(99, 2), coco_object(98, 3)])
    report = check_detection(f"coco:{root}")
    assert any(words in str(fault) for fault in report.problems.errors), str(report)
    assert words in str(report)
    with pytest.raises(CBAMError, match="--bad-data skip"):
        load_detection(f"coco:{root}")
    data = load_detection(f"coco:{root}", bad_data="skip")
    assert data.train.objects + data.validation.objects == 2
    assert any(words in notice for notice in data.notices)


WARNINGS = {
    "zero area": ([coco_object(1, 1, bbox=[5, 5, 0, 7])], "1 boxes without area (left out)", 0),
    "negative": ([coco_object(1, 1, bbox=[5, 5, -3, 7])], "1 boxes without area (left out)", 0),
    "clipped": ([coco_object(1, 1, bbox=[50, 5, 30, 7])], "1 boxes partly outside the image (clipped)", 1),
    "same number": (
        [coco_object(1, 1), coco_object(1, 1, 90)],
        "1 annotations with an id that another has",
        2,
    ),
    "twice": ([coco_object(1, 1), coco_object(1, 1)], "1 annotations given twice (used once)", 1),
    "two points": (
        [coco_object(1, 1, segmentation=[[1, 2, 3, 4]])],
        "1 polygons of fewer than three points",
        0,
    ),
}


@pytest.mark.parametrize(("annotations", "words", "kept"), WARNINGS.values(), ids=WARNINGS)
def test_what_has_an_obvious_repair_is_repaired(tmp_path, annotations, words, kept):
    root = coco_folder(tmp_path, [*annotations, coco_object(99, 2), coco_object(98, 3)])
    data = load_detection(f"coco:{root}")
    assert data.train.objects + data.validation.objects == 2 + kept
    assert any(words in notice for notice in data.notices)


IMAGES = {
    "same number": ([coco_image(1, "1.jpg"), coco_image(1, "2.jpg")], "1 images with an id that another has"),
    "missing": ([coco_image(1, "none.jpg")], "1 missing files (left out): image 1, none.jpg in"),
    "out": (
        [coco_image(1, "../1.jpg")],
        "1 file names that lead out of the folder (left out): image 1, ../1.jpg",
    ),
    "absolute": ([coco_image(1, "/etc/passwd")], "1 file names that lead out of the folder"),
    "no name": ([{"id": 1}], "1 images without a whole number 'id' and a text 'file_name'"),
    "text": (["a.jpg"], "1 images without a whole number 'id'"),
    "text number": ([{**coco_image(1, "1.jpg"), "id": "1"}], "1 images without a whole number 'id'"),
    "size": ([coco_image(1, "1.jpg", (0, 40))], "1 images whose 'width' and 'height' are no sizes"),
    "size text": (
        [{**coco_image(1, "1.jpg"), "width": "x"}],
        "1 images whose 'width' and 'height' are no sizes",
    ),
    "other size": ([coco_image(1, "1.jpg", (61, 40))], "1 images: another size than annotated (left out)"),
}


@pytest.mark.parametrize(("images", "words"), IMAGES.values(), ids=IMAGES)
def test_images_that_cannot_be_used(tmp_path, images, words):
    good = [coco_image(8, "2.jpg"), coco_image(9, "3.jpg")]
    root = coco_folder(tmp_path, [coco_object(8, 8), coco_object(9, 9)], [*images, *good])
    report = check_detection(f"coco:{root}")
    assert any(words in str(fault) for fault in report.problems.errors), str(report)
    with pytest.raises(CBAMError, match="cannot be trained on as it is"):
        load_detection(f"coco:{root}")
    data = load_detection(f"coco:{root}", bad_data="skip")
    assert {8, 9} <= {record.image_id for record in (*data.train.records, *data.validation.records)}


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0" + b"0" * 50])
def test_images_that_cannot_be_decoded(tmp_path, content):
    root = coco_folder(tmp_path, [coco_object(2, 2)])
    (root / "1.jpg").write_bytes(content)
    report = check_detection(f"coco:{root}")
    assert [fault.count for fault in report.problems.errors] == [1]
    assert "1.jpg" in str(report)
    assert check_detection(f"coco:{root}", check_images=False).problems.errors == ()


def test_a_truncated_image_is_found_before_training(tmp_path):
    root = coco_folder(tmp_path, [coco_object(2, 2)])
    content = (root / "3.jpg").read_bytes()
    (root / "3.jpg").write_bytes(content[: len(content) * 3 // 4])
    assert "1 images: truncated or damaged" in str(check_detection(f"coco:{root}"))


def test_a_size_that_is_not_given_is_taken_from_the_file(tmp_path):
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2, 3)]
    data = load_detection(f"coco:{coco_folder(tmp_path, [coco_object(1, 1), coco_object(2, 2)], images)}")
    assert {(record.width, record.height) for record in data.train.records} == {(60, 40)}
    assert any(
        "3 images without 'width' and 'height' (taken from the files)" in notice for notice in data.notices
    )


def test_some_outlines_are_not_enough(tmp_path):
    root = coco_folder(
        tmp_path, [coco_object(n, n, segmentation=[] if n == 1 else [[1, 1, 9, 1, 9, 9]]) for n in (1, 2, 3)]
    )
    report = check_detection(f"coco:{root}")
    assert "note: Only 2 of 3 training objects have an outline: no masks are used." in str(report)


FILES = {
    "list": ([], "holds list; a COCO file is an object"),
    "null": (None, "holds NoneType"),
    "no images": ({"annotations": [], "categories": CATEGORIES}, "'images' is missing"),
    "odd images": ({"images": {}, "annotations": [], "categories": CATEGORIES}, "'images' is dict"),
    "no categories": ({"images": [], "annotations": [], "categories": []}, "has no categories"),
    "odd category": (
        {"images": [], "annotations": [], "categories": ["dog"]},
        "category 0 needs a whole number 'id'",
    ),
    "unnamed": ({"images": [], "annotations": [], "categories": [{"id": 1}]}, "category 0 needs"),
    "same id": (
        {"images": [], "annotations": [], "categories": [{"id": 1, "name": n} for n in "ab"]},
        "'a' and 'b'",
    ),
    "empty": ({"images": [], "annotations": [], "categories": CATEGORIES}, "without an object to train on"),
}


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES)
def test_files_that_are_not_coco_s(tmp_path, content, words):
    write_json(tmp_path / "a.json", content)
    with pytest.raises(CBAMError, match=words):
        load_detection(f"coco:{tmp_path}")


def test_train_and_val_must_mean_the_same_categories(tmp_path):
    coco_2017(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][1]["name"] = "cat"
    file.write_text(json.dumps(content))
    with pytest.raises(CBAMError, match=r"the categories differ: 18 is 'cat' in .* and 'dog' in"):
        load_detection(f"coco:{tmp_path}")


def test_every_kind_is_counted_and_the_first_are_named(tmp_path):
    root = coco_folder(tmp_path, [coco_object(n, 1, 7) for n in range(1, 1235)])
    (fault, _) = check_detection(f"coco:{root}").problems.errors
    assert fault.count == 1234
    assert len(fault.first) == 5
    assert str(fault).startswith(
        "1,234 annotations of an unknown category (left out): annotation 1 of image 1: 7, "
    )
    assert str(fault).endswith("annotation 5 of image 1: 7 and 1,229 more")
