from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from cbam.data import load_data
from cbam.data.shards import load as loading
from cbam.data.shards.load import _split
from cbam.data.split import stratified_split
from cbam.errors import CBAMError
from tests.data.shards.tars import jpeg, member, samples, shard_folder, tar_bytes


@pytest.fixture
def folder(tmp_path):
    return shard_folder(tmp_path / "set")


def test_both_sides(folder):
    data = load_data(f"shards:{folder}", image_size=20)
    assert (data.name, data.classes, data.input_size) == ("set", ("0", "1"), (3, 20, 20))
    assert (len(data.train), len(data.val), data.train.window) == (12, 4, 64)
    assert "3 shards train, 1 validate: 12 training and 4 validation" in data.source
    assert "no classes.txt" in data.notices[0]
    assert data.identity == load_data(f"shards:{folder}", image_size=20).identity


def test_the_identity_follows_the_labels(folder):
    before = load_data(f"shards:{folder}").identity
    (folder / "train-000.tar").write_bytes(tar_bytes(*samples([1, 0, 3, 2])))
    assert load_data(f"shards:{folder}").identity != before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "cat\ndog\n\n"),
        ("classes.json", '["cat", "dog"]'),
        ("classes.json", '{"dog": 1, "cat": 0}'),
        ("classes.json", '{"1": "dog", "0": "cat"}'),
    ],
)
def test_class_names(folder, file, content):
    (folder / file).write_text(content)
    data = load_data(f"shards:{folder}")
    assert (data.classes, data.notices) == (("cat", "dog"), ())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", "cat\n", r"holds the label 1, but there are names for 1 classes, 0 to 0"),
        ("classes.txt", "cat\ncat\n", "holds names twice: cat"),
        ("classes.json", '{"cat": 0, "dog": 2}', "without a gap"),
        ("classes.json", "5", "neither a list of names"),
        ("classes.json", "{", "neither a list of names"),
    ],
)
def test_class_names_that_do_not_fit(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(CBAMError, match=message):
        load_data(f"shards:{folder}")


def test_labels_that_do_not_fit(folder):
    (folder / "val-000.tar").write_bytes(tar_bytes(*samples(range(4), classes=4)))
    with pytest.raises(CBAMError, match=r"val-000\.tar holds the label 3; the highest one in training is 1"):
        load_data(f"shards:{folder}")
    for path in folder.glob("*.tar"):
        path.write_bytes(tar_bytes(*samples(range(4), classes=1)))
    with pytest.raises(CBAMError, match=r"all labels in the training shards .* are 0"):
        load_data(f"shards:{folder}")


@pytest.mark.parametrize("label", [2_000_000_000, 10_000_000, 1_000_000, 100_000])
def test_a_label_without_sense_is_refused_before_names_are_made_for_all_below_it(folder, label):
    for path in folder.glob("*.tar"):
        path.write_bytes(tar_bytes(member("a.jpg", jpeg(0)), member("a.cls", b"%d" % label)))
    tracemalloc.start()
    with pytest.raises(CBAMError, match=f"holds the label {label:,}, and the training shards hold 3 images"):
        load_data(f"shards:{folder}")
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_a_few_shards_of_a_large_set_may_lack_most_of_its_classes(folder):
    for path in folder.glob("*.tar"):
        path.write_bytes(
            tar_bytes(*samples(range(4), classes=2), member("z.jpg", jpeg(9)), member("z.cls", b"999"))
        )
    data = load_data(f"shards:{folder}")
    assert len(data.classes) == 1000
    assert data.notices[1] == "15 training images cannot show all 1,000 classes."


def test_a_list_of_names_that_cannot_be_read_is_not_ignored(folder):
    (folder / "classes.txt").mkdir()
    with pytest.raises(CBAMError, match=r"classes\.txt cannot be read: Is a directory"):
        load_data(f"shards:{folder}")


def test_without_validation_shards_the_samples_are_split(folder):
    (folder / "val-000.tar").unlink()
    data = load_data(f"shards:{folder}", val_fraction=0.25)
    assert (len(data.train), len(data.val)) == (8, 4)
    assert data.val.labels.tolist().count(0) == 2
    names = [side.identifier(index) for side in (data.train, data.val) for index in range(len(side))]
    assert len(set(names)) == 12
    assert "are split by class with split seed 0" in data.source


@pytest.mark.parametrize("seed", range(5))
def test_the_split_has_the_shares_of_the_folders_split(seed):
    labels = np.random.default_rng(seed).integers(0, 6, 200)
    train, val = _split(labels, 0.3, seed)
    _, theirs = stratified_split([str(k) for k in range(200)], labels.tolist(), 0.3, seed)
    assert np.bincount(labels[val]).tolist() == np.bincount(labels[theirs]).tolist()
    assert sorted([*train, *val]) == list(range(200))
    assert len(_split(np.array([0, 1, 1]), 0.5, 0)[1]) == 1  # a lonely image trains


def test_limits(folder):
    data = load_data(f"shards:{folder}", limit_train=4, limit_val=2)
    assert [data.train.identifier(index) for index in range(4)] == [f"train-000.tar:{k}" for k in range(4)]
    assert len(data.val) == 2


@pytest.fixture
def spoilt(folder):
    path = folder / "train-001.tar"
    path.write_bytes(path.read_bytes().replace(jpeg(5), jpeg(5)[:300].ljust(len(jpeg(5)), b"\0")))
    return folder


def test_bad_images_are_left_out_and_checked_once(spoilt, monkeypatch):
    data = load_data(f"shards:{spoilt}", bad_images="skip")
    assert (len(data.train), data.train.labels.tolist()) == (11, [0, 1] * 2 + [0] + [0, 1] * 3)
    assert any(notice.startswith("1 bad images in") for notice in data.notices)
    data.train.__getitems__([(0, index) for index in range(11)])

    def never(*args, **kwargs):
        raise AssertionError("checked twice")

    monkeypatch.setattr(loading, "_is_fine", never)
    assert len(load_data(f"shards:{spoilt}", bad_images="skip").train) == 11
    with pytest.raises(CBAMError, match=r"1 images in .* cannot be used\. To leave them out, type"):
        load_data(f"shards:{spoilt}")


def test_a_set_of_nothing_but_bad_images_is_refused_at_once(spoilt):
    # Pillow 12 does not take what is left for a JPEG file at all.
    with pytest.raises(
        CBAMError, match=r"0005\.jpg: (truncated or damaged|not a readable image \(none of JPEG)"
    ):
        load_data(f"shards:{spoilt}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?windo=3", "unknown option 'windo'. Did you mean 'window'"),
        ("?window=0", "window is a number of shards from 1 up"),
        ("?window=x", "window is a number"),
        ("?window=1&window=2", "'window' in .* is given twice"),
        ("?train=", "has no value"),
        ("?val=none-*.tar", "no file at"),
    ],
)
def test_options_that_make_no_sense(folder, options, message):
    with pytest.raises(CBAMError, match=message):
        load_data(f"shards:{folder}{options}")


def test_a_missing_shard(folder):
    with pytest.raises(CBAMError, match=r"train-003\.tar cannot be read: No such file"):
        load_data(f"shards:{folder}/train-{{000..003}}.tar")
