import pytest

from cbam.data import doctor
from cbam.data.detection import check_detection, load_detection
from cbam.errors import CBAMError
from tests.data.detection.layouts import coco_file, coco_folder, coco_image, coco_object, save_image


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "photos",
            "named by its format and folder, given 'photos'. Type coco:FOLDER or voc:FOLDER or yolo:FOLDER",
        ),
        ("cocoo:photos", "Did you mean coco:photos"),
        ("coco:", "there is no folder ''"),
        ("coco:none", "there is no folder 'none'"),
        ("coco:" + "a" * 5000, "names no folder|there is no folder"),
        ("coco:none?vall=a", "unknown option 'vall'. Did you mean 'val'"),
    ],
)
def test_a_set_that_is_not_there(spec, words):
    with pytest.raises(CBAMError, match=words):
        load_detection(spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bad_data": "skipp"}, "unknown bad_data 'skipp'. Did you mean 'skip'"),
        ({"val_fraction": 1.0}, "between 0 and 1"),
        ({"limit_train": 0}, "limit_train must be at least 1"),
        ({"max_pixels": 0}, "max_pixels must lie between"),
    ],
)
def test_wrong_options(tmp_path, options, words):
    with pytest.raises(CBAMError, match=words):
        load_detection(f"coco:{coco_folder(tmp_path, [])}", **options)


def test_a_limit_keeps_a_fixed_choice_in_file_order(tmp_path):
    images = [coco_image(number, f"{number}.jpg") for number in range(1, 21)]
    for number in range(4, 21):
        save_image(tmp_path / f"{number}.jpg")
    root = coco_folder(tmp_path, [coco_object(number, number) for number in range(1, 21)], images)
    whole = load_detection(f"coco:{root}")
    few = load_detection(f"coco:{root}", limit_train=5, limit_val=2)
    chosen = [record.image_id for record in few.train.records]
    assert len(chosen) == 5
    assert chosen == sorted(chosen)
    assert set(chosen) <= {record.image_id for record in whole.train.records}
    assert len(few.validation) == 2
    assert len(load_detection(f"coco:{root}", limit_train=5000).train) == 16


def test_large_pictures_are_refused_by_their_header(tmp_path):
    root = coco_folder(tmp_path, [coco_object(1, 1)])
    assert "3 images: too many pixels" in str(check_detection(f"coco:{root}", max_pixels=2000))


def test_one_image_cannot_be_split(tmp_path):
    root = coco_folder(tmp_path, [coco_object(1, 1)], [coco_image(1, "1.jpg")])
    with pytest.raises(CBAMError, match="has one image"):
        load_detection(f"coco:{root}")


def test_good_images_are_remembered_until_their_annotations_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    monkeypatch.setattr(doctor, "WORTH_IT", 1)
    root = coco_folder(tmp_path / "set", [coco_object(1, 1), coco_object(2, 2)])
    decoded = []
    real = doctor._problems
    monkeypatch.setattr(
        doctor, "_problems", lambda paths, check: decoded.append(len(paths)) or real(paths, check)
    )
    check_detection(f"coco:{root}")
    check_detection(f"coco:{root}")
    assert decoded == [3]
    coco_file(root / "labels.json", [coco_image(1, "1.jpg", (61, 40))], [coco_object(1, 1)])
    assert "1 images: another size than annotated" in str(check_detection(f"coco:{root}"))
    assert decoded == [3, 1]


def test_the_report_says_what_is_there(tmp_path):
    root = coco_folder(tmp_path, [coco_object(1, 1), coco_object(2, 1, 90)])
    lines = str(check_detection(f"coco:{root}")).splitlines()
    assert lines[0] == f"coco:{root}: 3 images, 2 objects, 3 classes"
    assert lines[1] == "  images: 3 images, 2 objects; person 0, dog 1, toothbrush 1"
    assert lines[2] == "  note: 1 of 3 classes without a training object: person."
    assert lines[3] == "  note: 2 training images without an object; they are trained on as background."
    assert lines[4] == "  every annotation and every image can be used"
