from __future__ import annotations

import json

import pytest

from cbam.data.tables import find_columns, is_validation, labels_of
from cbam.errors import CBAMError


@pytest.fixture
def table(tmp_path):
    def write(text, options="", name="labels.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return f"{tmp_path / name}{options}"

    return write


def found(text):
    read, columns = find_columns(text)
    return columns.file, columns.labels, columns.split, columns.task, labels_of(read, columns)


CASES = {
    "plain": (
        "file,label\na.jpg,cat\nb.jpg,dog\n",
        "",
        ("file", ("label",), None, "multiclass", [("cat",), ("dog",)]),
    ),
    "other names and order": (
        "Class Name;Split;Image Path\ncat;train;a.jpg\ndog;val;b.jpg\n",
        "",
        ("Image Path", ("Class Name",), "Split", "multiclass", [("cat",), ("dog",)]),
    ),
    "names that say nothing": (
        "x\ty\na.jpg\t1\nb.jpg\t2\n",
        "",
        ("x", ("y",), None, "multiclass", [("1",), ("2",)]),
    ),
    "an id beside the file": (
        "id,picture,breed\n1,a.jpg,pug\n2,b.jpg,beagle\n",
        "",
        ("picture", ("breed",), None, "multiclass", [("pug",), ("beagle",)]),
    ),
    "several labels": (
        "file,labels\na.jpg,cat;dog\nb.jpg,\n",
        "",
        ("file", ("labels",), None, "multilabel", [("cat", "dog"), ()]),
    ),
    "columns of 0 and 1": (
        "file,age,cat,dog\na.jpg,3,1,1\nb.jpg,9,0,0\n",
        "",
        ("file", ("cat", "dog"), None, "multilabel", [("cat", "dog"), ()]),
    ),
    "one of the columns each": (
        "file,cat,dog\na.jpg,1.0,0.0\nb.jpg,0.0,1.0\n",
        "",
        ("file", ("cat", "dog"), None, "multiclass", [("cat",), ("dog",)]),
    ),
    "one each, but asked for": (
        "file,cat,dog\na.jpg,1,0\nb.jpg,0,1\n",
        "?task=multilabel",
        ("file", ("cat", "dog"), None, "multilabel", [("cat",), ("dog",)]),
    ),
    "by option": (
        "a,b,c\nx.jpg,1,red/blue\ny.jpg,2,red\n",
        "?file=a&label=c&separator=/&task=multilabel",
        ("a", ("c",), None, "multilabel", [("red", "blue"), ("red",)]),
    ),
    "a class with a semicolon": (
        "file,label\na.jpg,x;y\nb.jpg,z\n",
        "?task=multiclass&separator=|",
        ("file", ("label",), None, "multiclass", [("x;y",), ("z",)]),
    ),
}


@pytest.mark.parametrize(("text", "options", "expected"), CASES.values(), ids=CASES)
def test_columns_are_found(table, text, options, expected):
    assert found(table(text, options)) == expected


@pytest.mark.parametrize(
    ("content", "task", "labels"),
    [
        ([{"file": "a.jpg", "label": 3}, {"file": "b.jpg", "label": 4}], "multiclass", [("3",), ("4",)]),
        ({"a.jpg": "cat", "b.jpg": "dog"}, "multiclass", [("cat",), ("dog",)]),
        ({"a.jpg": ["cat", "dog"], "b.jpg": []}, "multilabel", [("cat", "dog"), ()]),
    ],
)
def test_json_is_read(table, content, task, labels):
    assert found(table(json.dumps(content), name="labels.json"))[1:] == (("label",), None, task, labels)


def test_lines_of_json_are_read(table):
    text = '{"image": "a.jpg", "label": "cat"}\n{"image": "b.jpg", "label": "dog"}\n'
    assert found(table(text, name="labels.jsonl"))[0] == "image"


@pytest.mark.parametrize(
    ("text", "options", "name", "message"),
    [
        ("file,label\na.jpg\n", "", "l.csv", r"1 rows do not have the 2 values of file, label: line 2"),
        ("file,label\n", "", "l.csv", "holds no rows"),
        ("file,file\na,b\n", "", "l.csv", "empty or not unique: file, file"),
        ("file,label\na.jpg,b\n", "?label=lable", "l.csv", "column.*'lable'.*Did you mean 'label'"),
        ("file,label\na.jpg,b\n", "?task=regression", "l.csv", "task.*'regression'"),
        (
            "a,b,c\n1,x,p\n2,y,q\n",
            "",
            "l.csv",
            r"which column holds the names of the files\? There are a, b, c",
        ),
        ("file,b,c\n1.jpg,x,p\n", "", "l.csv", r"which column holds the labels\?.*\?label=c"),
        (
            "file,a,b\n1.jpg,1,2\n2.jpg,0,1\n",
            "?label=a,b",
            "l.csv",
            r"1 rows hold something else than 0 or 1.*line 2",
        ),
        ("{", "", "l.json", "is no JSON"),
        ("[1]", "", "l.json", "expected a list such as"),
        ("", "", "l.xlsx", "ends in .csv, .tsv, .json or .jsonl"),
    ],
)
def test_what_cannot_be_read_is_said(table, text, options, name, message):
    with pytest.raises(CBAMError, match=message):
        found(table(text, options, name))


def test_a_missing_file_and_one_of_another_encoding(tmp_path):
    with pytest.raises(CBAMError, match="there is no such file"):
        find_columns(str(tmp_path / "no.csv"))
    (tmp_path / "latin.csv").write_bytes("file,label\na.jpg,Käse\n".encode("latin-1"))
    with pytest.raises(CBAMError, match="is not text in UTF-8"):
        find_columns(str(tmp_path / "latin.csv"))


@pytest.mark.parametrize(
    ("column", "value", "side"),
    [("split", "Train", "train"), ("set", "validation", "val"), ("split", "TEST", "test"), ("split", "3", None),
     ("is_valid", "True", "val"), ("is_valid", "0", "train"), ("is valid", "x", None)],
)  # fmt: skip
def test_sides_have_many_names(column, value, side):
    assert is_validation(column, value) == side
