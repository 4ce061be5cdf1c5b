from __future__ import annotations

import re

import pytest

from cbam.data.shards.locations import expand_braces, find_shards
from cbam.errors import CBAMError


@pytest.fixture
def folder(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (("train-1.tar", "train-0.tar", "val-0.tar", "notes.txt"), ("train-0.tar", "train-1.tar"), ("val-0.tar",)),
        (("train/0.tar", "train/1.tar", "test/0.tar"), ("train/0.tar", "train/1.tar"), ("test/0.tar",)),
        (
            ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
            ("imagenet1k-train-0000.tar",),
            ("imagenet1k-validation-00.tar",),
        ),
        (("TRAIN_7.tar", "strain-0.tar"), ("TRAIN_7.tar",), ()),
    ],
)  # fmt: skip
def test_sides_by_their_names(folder, names, train, val):
    found = find_shards(folder(*names))
    assert (found.train, found.val) == (train, val)


def test_patterns(folder):
    place = folder("a-00.tar", "a-01.tar", "a-02.tar", "b-0.tar")
    assert find_shards(f"{place}/a-{{00..01}}.tar").train == ("a-00.tar", "a-01.tar")
    assert find_shards(f"{place}/a-*.tar").train == ("a-00.tar", "a-01.tar", "a-02.tar")
    found = find_shards(place, train="a-*.tar", val="b-0.tar")
    assert (len(found.train), found.val, found.location("b-0.tar")) == (3, ("b-0.tar",), f"{place}/b-0.tar")


def test_a_url_with_a_range_is_not_listed():
    found = find_shards("https://nowhere.invalid/x/train-{000..002}.tar", val="val-{0,1}.tar")
    assert found.base == "https://nowhere.invalid/x"
    assert found.location(found.train[2]) == "https://nowhere.invalid/x/train-002.tar"
    assert found.val == ("val-0.tar", "val-1.tar")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no training shards at .*found other.tar. Or name them: --data"),
        ({"train": "a-*.tar"}, "no file at .* matches 'a-*.tar'; found other.tar"),
        ({"train": "../{0..1}.tar"}, "without '..'; given ../0.tar, ../1.tar"),
    ],
)
def test_what_is_not_there(folder, arguments, message):
    with pytest.raises(CBAMError, match=message.replace("*.tar", r"\*\.tar")):
        find_shards(folder("other.tar"), **arguments)


def test_no_folder():
    with pytest.raises(CBAMError, match="no folder '/no/such'"):
        find_shards("/no/such")


@pytest.mark.parametrize("pattern", ["x-{3..1}.tar", "x-{0..9999999}.tar", "{0..9999}{0..9999}.tar"])
def test_ranges_that_make_no_sense(pattern):
    with pytest.raises(CBAMError, match=re.compile("must run upward|more than 1,000,000 files")):
        expand_braces(pattern)


def test_no_shard_is_on_both_sides(folder):
    place = folder("train-0.tar", "val-0.tar")
    assert find_shards(f"{place}/*.tar") == find_shards(place, train="{train,val}-0.tar")
    assert find_shards(f"{place}/*.tar").val == ()
    with pytest.raises(CBAMError, match=r"1 shards would train and validate: val-0\.tar"):
        find_shards(f"{place}/*.tar", val="val-*.tar")
