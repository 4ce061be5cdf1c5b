import pytest

from cbam.data.detection import check_detection, load_detection
from cbam.errors import CBAMError
from tests.data.detection.layouts import save_image, yolo_folder

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
BOX = "1 0.5 0.5 0.5 0.25\n"


def test_boxes_and_missing_label_files(tmp_path):
    yolo_folder(tmp_path, {"train/a": BOX, "train/b": None, "train/c": "", "val/d": "0 0.5 0.5 1 1"}, YAML)
    data = load_detection(f"yolo:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert [len(record) for record in data.train.records] == [1, 0, 0]
    (record, *_) = data.train.records
    assert record.boxes.tolist() == [[15, 15, 45, 25]]
    assert record.labels.tolist() == [2]
    assert data.validation.records[0].boxes.tolist() == [[0, 0, 60, 40]]
    assert not data.has_masks


def test_polygons_are_masks(tmp_path):
    yolo_folder(
        tmp_path, {"train/a": "0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6\n", "val/b": "1 0 0 1 0 1 1\n"}, YAML
    )
    data = load_detection(f"yolo:{tmp_path}")
    assert data.has_masks
    _, target = data.train[0]
    assert target["boxes"].tolist() == [pytest.approx([6, 4, 30, 24])]
    assert target["masks"].shape == (1, 40, 60)
    assert target["masks"].sum() == 24 * 20


def test_a_turned_photograph_is_measured_as_it_is_shown(tmp_path):
    yolo_folder(tmp_path, {"train/a": BOX, "val/b": BOX}, YAML)
    save_image(tmp_path / "images/train/a.jpg", (60, 40), orientation=6)
    save_image(tmp_path / "images/val/b.jpg", (60, 40), orientation=3)  # upside down, of the same size
    data = load_detection(f"yolo:{tmp_path}")
    (record,) = data.train.records
    assert (record.width, record.height) == (40, 60)
    assert record.boxes.tolist() == [[10, 22.5, 30, 37.5]]
    assert data.train[0][0].shape == (3, 60, 40)
    image = data.validation[0][0].float()
    assert image[:, :10].mean() > image[:, -10:].mean()  # stored it is darkest above


@pytest.mark.parametrize(
    "yaml",
    [
        "path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n",
        "path: /somewhere/else\ntrain: [images/train]\nval: images/val\nnc: 2\nnames: ['cat', 'dog']\n",
        "train: ../images/train\nvalid: ../images/val\nnames: [cat, dog]\n",
        "train: train.txt\nval: val.txt\nnames: [cat, dog]\n",
        "path: .\ntrain: images/train\ntest: images/val\nnames: [cat, dog]\ndownload: |\n  import os\n",
    ],
)
def test_the_ways_to_write_data_yaml(tmp_path, yaml):
    yolo_folder(tmp_path, {"train/a": BOX, "train/b": BOX, "val/c": BOX}, yaml)
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n")
    (tmp_path / "val.txt").write_text("images/val/c.jpg\n")
    data = load_detection(f"yolo:{tmp_path}")
    assert (len(data.train), len(data.validation)) == (2, 1)
    assert data.train.objects == 2


def test_roboflow_s_folders(tmp_path):
    for side in ("train", "valid"):
        save_image(tmp_path / side / "images" / "a.jpg")
        (tmp_path / side / "labels").mkdir()
        (tmp_path / side / "labels" / "a.txt").write_text(BOX)
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['a', 'b']\n"
    )
    assert load_detection(f"yolo:{tmp_path}").validation.objects == 1


def test_without_data_yaml_classes_txt_names_the_classes(tmp_path):
    yolo_folder(tmp_path, {f"{n}": BOX for n in range(5)})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = load_detection(f"yolo:{tmp_path}")
    assert (len(data.train), len(data.validation), data.classes) == (4, 1, ("cat", "dog"))
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(CBAMError, match=r"holds no data\.yaml.*Write one with the lines"):
        load_detection(f"yolo:{tmp_path}")


LINES = {
    "class": (
        "2 0.5 0.5 0.5 0.5",
        "1 label lines of an unknown class (left out): line 2 of labels/train/a.txt: 2",
    ),
    "half a class": ("0.5 0.5 0.5 0.5 0.5", "1 label lines of an unknown class"),
    "nan class": ("nan 0.5 0.5 0.5 0.5", "1 label lines of an unknown class"),
    "pixels": ("1 30 20 30 10", "1 label lines that are not shares of the image (0 to 1)"),
    "text": ("dog 0.5 0.5 0.5 0.5", "1 label lines that are no numbers"),
    "confidence": ("1 0.5 0.5 0.5 0.5 0.9", "1 label lines of neither a box (5 numbers) nor a polygon"),
    "short": ("1 0.5", "1 label lines of neither a box"),
    "nan": ("1 nan 0.5 0.5 0.5", "1 boxes with numbers that are not finite"),
    "outside": ("1 1.5 0.5 0.5 0.5", "1 boxes outside the image"),
}


@pytest.mark.parametrize(("line", "words"), LINES.values(), ids=LINES)
def test_faults_are_named_and_stop_or_are_left_out(tmp_path, line, words):
    yolo_folder(tmp_path, {"train/a": f"{BOX}{line}\n", "val/b": BOX}, YAML)
    report = check_detection(f"yolo:{tmp_path}")
    assert any(words in str(fault) for fault in report.problems.errors), str(report)
    with pytest.raises(CBAMError, match="--bad-data skip"):
        load_detection(f"yolo:{tmp_path}")
    assert load_detection(f"yolo:{tmp_path}", bad_data="skip").train.objects == 1


def test_repairs(tmp_path):
    yolo_folder(tmp_path, {"train/a": f"{BOX}{BOX}0 0.5 0.5 1.5 0.5\n0 0.5 0.5 0 0.1\n", "val/b": BOX}, YAML)
    lines = str(check_detection(f"yolo:{tmp_path}"))
    assert "1 lines given twice (used once): line 2 of labels/train/a.txt" in lines
    assert "1 boxes partly outside the image (clipped): line 3" in lines
    assert "1 boxes without area (left out): line 4" in lines


def test_labels_in_the_wrong_place_are_noticed(tmp_path):
    yolo_folder(tmp_path, {"train/a": None, "train/b": None, "val/c": BOX}, YAML)
    assert "sides without any label file" in str(check_detection(f"yolo:{tmp_path}"))
    yolo_folder(tmp_path, {"train/a": BOX})
    (tmp_path / "labels/train/b.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "images/val/c.jpg").write_bytes(b"no image")
    lines = str(check_detection(f"yolo:{tmp_path}"))
    assert "1 label files that cannot be read" in lines
    assert "1 images: not a readable image" in lines


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("names: [a]\n", "names no training images"),
        ("train: images/none\nnames: [a]\n", "there is no folder and no list"),
        ("train: ../../../etc\nnames: [a]\n", "there is no folder and no list"),
        ("train: /etc\nnames: [a]\n", "leads out of .*, which is refused"),
        ("train: images/train/../../..\nnames: [a]\n", "leads out of"),
        ("train: 5\nnames: [a]\n", "train must name a folder or a list of images, given 5"),
        ("train: images/train\n", "names must be a list of the classes, given None"),
        ("train: images/train\nnames: []\n", "names must be a list"),
        ("train: images/train\nnames: [[a]]\n", "names must be texts"),
        ("train: images/train\nnames: {1: a, 2: b}\n", "the keys of names must be 0 to 1, given 1, 2"),
        ("train: images/train\nnames: [a, b]\nnc: 3\n", "nc is 3, but 2 names are given"),
        ("[a, b]\n", "needs the keys names, train and val"),
        ("a: &a [x]\nb: [*a, *a]\n", "repeats parts by"),
    ],
)
def test_a_data_yaml_that_cannot_be_used(tmp_path, yaml, words):
    yolo_folder(tmp_path, {"train/a": BOX}, yaml)
    with pytest.raises(CBAMError, match=words):
        load_detection(f"yolo:{tmp_path}")


def test_a_list_cannot_leave_the_folder(tmp_path):
    yolo_folder(tmp_path / "set", {"train/a": BOX, "train/b": BOX}, "train: a.txt\nnames: [a, b]\n")
    save_image(tmp_path / "secret.jpg")
    (tmp_path / "set/a.txt").write_text("images/train/a.jpg\n../secret.jpg\nimages/train/b.jpg\n")
    lines = str(check_detection(f"yolo:{tmp_path / 'set'}"))
    assert "1 file names that lead out of the folder (left out): line 2 of a.txt: ../secret.jpg" in lines


def test_several_yaml_files_must_be_told_apart(tmp_path):
    yolo_folder(tmp_path, {"train/a": BOX, "val/b": BOX})
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(YAML)
    with pytest.raises(CBAMError, match=r"holds a\.yaml, b\.yaml: name the one to use"):
        load_detection(f"yolo:{tmp_path}")
    assert len(load_detection(f"yolo:{tmp_path / 'b.yaml'}").train) == 1
