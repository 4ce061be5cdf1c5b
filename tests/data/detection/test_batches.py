from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cbam.data.detection import DetectionImages, PreparedDetection, load_detection, make_detection_loader
from cbam.data.detection.records import Annotation, make_record
from cbam.errors import CBAMError
from tests.data.detection.layouts import coco_folder, coco_image, coco_object, save_image, vocdevkit

SHAPES = ((60, 40), (40, 60), (50, 50))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    images = [coco_image(number, f"{number}.jpg", SHAPES[number % 3]) for number in range(1, 23)]
    coco_folder(root, [coco_object(n, n, 1 + 17 * (n % 2)) for n in range(1, 23)], images)
    for image in images:
        save_image(root / image["file_name"], (image["width"], image["height"]))
    return load_detection(f"coco:{root}", val_fraction=0.1)


def sizes_only(sizes):
    return DetectionImages([make_record(n, Path(f"{n}"), size, ()) for n, size in enumerate(sizes)])


def same(first, second):
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def epoch_of(data, *, workers=0, epoch=1, step=0, augmentation="ssd", **options):
    loader = make_detection_loader(
        PreparedDetection(data.train, augmentation),
        batch_size=4,
        seed=7,
        shuffle=True,
        workers=workers,
        **options,
    )
    loader.batch_sampler.set_position(epoch, step)
    return list(loader)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_every_image_comes_once_in_batches_of_one_ratio(sizes, batch_size, epoch, octave):
    dataset = PreparedDetection(sizes_only(sizes), "flip").grouped(batch_size, octave)
    order = dataset.order(3, epoch, True)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    assert np.array_equal(order, dataset.order(3, epoch, True))
    edges = 2 ** np.linspace(-1, 1, 2 * octave + 1) if octave else np.ones(1)
    groups = np.searchsorted(edges, [width / height for width, height in sizes], side="right")
    whole = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    mixed = sum(len(set(groups[batch])) > 1 for batch in whole)
    assert mixed <= len(set(groups))


def test_batches_are_shuffled_among_each_other_and_anew_each_epoch():
    dataset = PreparedDetection(sizes_only([(60, 40)] * 40 + [(40, 60)] * 40), "flip").grouped(4)
    wide = [
        [int(order[at] < 40) for at in range(0, 80, 4)]
        for order in (dataset.order(0, e, True) for e in range(3))
    ]
    assert all(0 < sum(row[:10]) < 10 for row in wide)
    assert len({tuple(row) for row in wide}) == 3
    assert np.array_equal(dataset.order(0, 5, False), np.arange(80))


def test_the_same_epoch_whatever_the_workers(data):
    assert same(epoch_of(data), epoch_of(data, workers=2))
    assert not same(epoch_of(data), epoch_of(data, epoch=2))


def test_resumed_at_any_batch(data):
    whole = epoch_of(data)
    for step in range(len(whole)):
        assert same(epoch_of(data, step=step), whole[step:])


def test_two_processes_share_each_batch(data):
    whole, shares = epoch_of(data), [epoch_of(data, rank=rank, world=2) for rank in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for position in range(len(batch[0])):
            part = parts[position % 2]
            assert same(part[0][position // 2], batch[0][position])
            assert same(part[1][position // 2], batch[1][position])


def test_most_batches_have_one_ratio(data):
    batches = epoch_of(data, augmentation="flip", drop_last=True)
    shapes = [{tuple(image.shape) for image in images} for images, _ in batches]
    assert sum(len(one) == 1 for one in shapes) >= 3
    ungrouped = epoch_of(data, augmentation="flip", ratios_per_octave=None)
    assert all(len({tuple(image.shape) for image in images}) > 1 for images, _ in ungrouped[:-1])


def test_the_global_random_numbers_are_left_alone(data):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    dataset = PreparedDetection(data.train, "ssd")
    first = dataset[4, 2]
    assert torch.equal(torch.rand(3), expected)
    assert same(first, dataset[4, 2])
    assert not same(first, dataset[5, 2])
    assert not same(first, dataset.with_seed(1)[4, 2])


def test_crowds_and_difficult_objects_are_not_trained_on(tmp_path):
    voc = load_detection(f"voc:{vocdevkit(tmp_path)}")
    trained = PreparedDetection(voc.train, "flip")[0, 0][1]
    assert trained["boxes"].shape == (1, 4)
    assert trained["labels"].tolist() == [9]
    assert trained["area"].tolist() == [200]
    assert len(PreparedDetection(voc.train, None)[0, 0][1]["boxes"]) == 2
    record = make_record(1, voc.train.records[0].path, (60, 40), [Annotation((0, 0, 9, 9), 1, iscrowd=True)])
    assert len(PreparedDetection(DetectionImages([record]), "flip")[0, 0][1]["boxes"]) == 0


def test_evaluation_comes_in_file_order_and_nothing_twice(data):
    shares = [
        [
            target["image_id"]
            for _, targets in make_detection_loader(
                PreparedDetection(data.train, None), batch_size=3, seed=0, shuffle=False, rank=rank, world=3
            )
            for target in targets
        ]
        for rank in range(3)
    ]
    assert sorted(number for share in shares for number in share) == [
        record.image_id for record in data.train.records
    ]


def test_wrong_use_says_what_to_type(data):
    dataset = PreparedDetection(data.train, None)
    with pytest.raises(CBAMError, match=r"indexed by \(epoch, index\), given 3"):
        dataset[3]
    with pytest.raises(IndexError):
        dataset[0, 99]
    with pytest.raises(CBAMError, match="batch_size must be at least 1"):
        make_detection_loader(dataset, batch_size=0, seed=0, shuffle=True)
    with pytest.raises(CBAMError, match="ratios_per_octave at least 0"):
        dataset.grouped(4, -1)
