import pytest

from cbam.data.detection import check_detection, load_detection
from cbam.errors import CBAMError
from tests.data.detection.layouts import voc_image, voc_list, voc_object, voc_xml, vocdevkit

ENTITY = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("below", ["", "VOCdevkit"])
def test_07_and_12_train_and_the_test_images_of_07_validate(tmp_path, below):
    vocdevkit(tmp_path / below)
    data = load_detection(f"voc:{tmp_path}")
    assert [r.path.stem for r in data.train.records] == ["000005", "000007", "2007_000027", "2008_000001"]
    assert [r.path.stem for r in data.validation.records] == ["000001"]
    assert len(data.classes) == 20
    assert data.classes[8] == "chair"
    chairs, empty, person, cat = data.train.records
    assert chairs.boxes.tolist() == [
        [5, 6, 25, 16],
        [0, 0, 60, 40],
    ]  # the first pixel is 1 in the file, 0 here
    assert chairs.difficult.tolist() == [False, True]
    assert chairs.areas.tolist() == [200, 2400]
    assert len(empty) == 0
    assert person.boxes.tolist() == [[4.5, 5.25, 20.0, 30.75]]
    assert not person.difficult.any()
    assert cat.path.name == "2008_000001.jpg"  # not what its <filename> says
    (tested,) = data.validation.records
    assert [data.classes[label - 1] for label in tested.labels] == [
        "dog",
        "person",
    ]  # without the person's head
    assert len({r.image_id for r in (*data.train.records, *data.validation.records)}) == 5


def test_lists_can_be_named(tmp_path):
    vocdevkit(tmp_path)
    for plus in ("+", "%2B"):
        data = load_detection(f"voc:{tmp_path}?train=2007:train{plus}2012:train&val=2012:val")
    assert [r.path.stem for r in data.train.records] == ["000005", "2007_000027"]
    assert [r.path.stem for r in data.validation.records] == ["2008_000001"]
    data = load_detection(f"voc:{tmp_path}?train=2007:train&val=2007:person_test")
    assert [r.path.stem for r in data.validation.records] == ["000001"]
    voc_list(tmp_path / "VOC2007", "dog_trainval", ["000005 -1", "000007  0"])  # not, hard to see, shown
    data = load_detection(f"voc:{tmp_path}?train=2007:train&val=2007:dog_trainval")
    assert [r.path.stem for r in data.validation.records] == ["000007"]
    with pytest.raises(CBAMError, match=r"no list trainvall.txt in .* Did you mean 2007:trainval\?"):
        check_detection(f"voc:{tmp_path}?train=2007:trainvall")
    with pytest.raises(CBAMError, match=r"names no year\. Found: 2007, 2012"):
        check_detection(f"voc:{tmp_path}?train=trainval")
    with pytest.raises(CBAMError, match="needs the training lists"):
        check_detection(f"voc:{tmp_path}?val=2007:test")


def test_one_year_without_test_images(tmp_path):
    vocdevkit(tmp_path)
    data = load_detection(f"voc:{tmp_path / 'VOC2012'}")
    assert [r.path.stem for r in data.train.records] == ["2007_000027"]
    assert [r.path.stem for r in data.validation.records] == ["2008_000001"]


def test_annotations_of_one_s_own_without_lists(tmp_path):
    for number in range(5):
        voc_image(tmp_path, f"photo {number}", voc_xml(voc_object("screw"), size=(0, 0) if number else None))
    data = load_detection(f"voc:{tmp_path}")
    assert (len(data.train), len(data.validation)) == (4, 1)
    assert data.classes == ("screw",)
    assert any("5 annotation files without the image's size" in notice for notice in data.notices)


FAULTS = {
    "class": (voc_xml(voc_object("")), "1 objects without a name"),
    "box": (voc_xml(voc_object(box=(1, 2, 3))), "1 objects whose 'bndbox' lacks a number"),
    "text": (voc_xml(voc_object(box=(1, 2, "x", 4))), "1 objects whose 'bndbox' lacks a number"),
    "nan": (voc_xml(voc_object(box=("nan", 2, 3, 4))), "1 boxes with numbers that are not finite"),
    "outside": (voc_xml(voc_object(box=(70, 2, 80, 4))), "1 boxes outside the image"),
    "size": (voc_xml(voc_object(), size=(-3, "x")), "1 images whose 'width' and 'height' are no sizes"),
    "other size": (voc_xml(voc_object(), size=(61, 40)), "1 images: another size than annotated"),
    "out": (voc_xml(voc_object(), filename="../../secret.jpg"), "1 file names that lead out of the folder"),
    "xml": ("<annotation><object>", "1 annotation files that cannot be read"),
    "not voc": ("<html/>", "1 annotation files that are none of VOC's"),
    "entity": (f"{ENTITY}{voc_xml(voc_object('&e;'))}", "1 annotation files that are refused"),
}


@pytest.mark.parametrize(("xml", "words"), FAULTS.values(), ids=FAULTS)
def test_faults_are_named_and_stop_or_are_left_out(tmp_path, xml, words):
    vocdevkit(tmp_path)
    voc_image(tmp_path / "VOC2007", "000005", xml)
    report = check_detection(f"voc:{tmp_path}")
    assert any(words in str(fault) for fault in report.problems.errors), str(report)
    assert "000005" in str(report)
    with pytest.raises(CBAMError, match="--bad-data skip"):
        load_detection(f"voc:{tmp_path}")
    data = load_detection(f"voc:{tmp_path}", bad_data="skip")
    numbers = [record.image_id for record in data.train.records if record.path.stem != "000005"]
    assert numbers == [2, 3, 4]  # the others keep theirs


def test_missing_files_and_doubtful_lists(tmp_path):
    vocdevkit(tmp_path)
    year = tmp_path / "VOC2012"
    voc_list(
        year, "trainval", ["2007_000027", "2007_000027", "2009_000001", "../../etc/passwd", "2008_000001", ""]
    )
    (year / "JPEGImages" / "2008_000001.jpg").unlink()
    lines = str(check_detection(f"voc:{tmp_path}"))
    assert "error: 1 missing annotation files (left out): VOC2012/Annotations/2009_000001.xml" in lines
    assert "error: 1 missing files (left out): JPEGImages/2008_000001.jpg" in lines
    assert "error: 1 file names that lead out of the folder (left out): line 4 of" in lines
    assert "warning: 1 images listed twice (used once): 2007_000027" in lines


def test_a_class_beside_voc_s_is_used(tmp_path):
    vocdevkit(tmp_path)
    voc_image(tmp_path / "VOC2007", "000005", voc_xml(voc_object("unicorn")))
    assert load_detection(f"voc:{tmp_path}").classes == ("cat", "dog", "person", "unicorn")


def test_a_folder_without_voc_says_what_is_expected(tmp_path):
    with pytest.raises(CBAMError, match="Give the folder that holds VOC2007/ and VOC2012/"):
        load_detection(f"voc:{tmp_path}")
