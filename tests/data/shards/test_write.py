from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from cbam.cli.main import main
from cbam.data import load_data
from cbam.data.shards.index import FILE_NAME
from cbam.data.shards.write import write_shards
from cbam.errors import CBAMError
from tests.data.pictures_on_disk import photo_folder, truncate, two_sided_folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != FILE_NAME}


def test_the_shards_hold_what_the_folder_holds(tmp_path, capsys):
    folder, out = two_sided_folder(tmp_path / "photos"), tmp_path / "shards"
    assert main(["shards", str(folder), str(out), "--per-shard", "4"]) == 0
    assert "train: 18 images in 5 shards" in capsys.readouterr().out
    theirs, ours = load_data(folder, image_size=16), load_data(f"shards:{out}", image_size=16)
    assert (ours.classes, ours.notices, len(ours.train)) == (theirs.classes, (), 18)
    bytes_of = sorted((folder / "train" / name).read_bytes() for name in theirs.train.names)
    assert sorted(content for _, content in ours.train.contents(range(18))) == bytes_of

    def items(side):
        return sorted(
            (label, image.flatten().tolist()) for image, label in (side[0, i] for i in range(len(side)))
        )

    assert items(ours.val) == items(theirs.val)
    assert np.abs(np.diff(ours.train.labels)).sum() > 4  # neighbours are of different classes


def test_the_same_folder_gives_the_same_bytes_also_after_a_stop(tmp_path):
    folder = two_sided_folder(tmp_path / "photos")
    first = write_shards(folder, tmp_path / "a", per_shard=4)
    assert (first.reused, first.shards, first.samples) == (0, {"train": 5, "val": 3}, {"train": 18, "val": 9})
    write_shards(folder, tmp_path / "b", per_shard=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for name in ("train-000003.tar", "val-000001.tar", "classes.txt", FILE_NAME):
        (tmp_path / "b" / name).unlink()
    (tmp_path / "b" / ".val-000001.tar.17.tmp").write_bytes(b"half")
    assert write_shards(folder, tmp_path / "b", per_shard=4).reused == 6
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.slow
def test_killed_while_writing_it_goes_on(tmp_path):
    folder, out = photo_folder(tmp_path / "photos", 400), tmp_path / "out"
    command = [sys.executable, "-m", "cbam", "shards", str(folder), str(out), "--per-shard", "2"]
    process = subprocess.Popen(command)
    while process.poll() is None and len(list(out.glob("*.tar"))) < 20:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 20 <= len(list(out.glob("*.tar"))) < 600
    assert subprocess.run(command, check=False).returncode == 0
    write_shards(folder, tmp_path / "straight", per_shard=2)
    assert contents(out) == contents(tmp_path / "straight")


def test_one_folder_is_split_as_a_folder_is(tmp_path):
    folder = photo_folder(tmp_path / "photos")
    write_shards(folder, tmp_path / "out", val_fraction=0.3, split_seed=2)
    theirs = load_data(folder, val_fraction=0.3, split_seed=2)
    ours = load_data(f"shards:{tmp_path / 'out'}")
    assert (len(ours.train), len(ours.val)) == (len(theirs.train), len(theirs.val))
    both = (torch.stack([side.val[0, i][0] for i in range(len(side.val))]).sum() for side in (ours, theirs))
    assert torch.allclose(*both)


def test_bad_images_stop_or_are_left_out(tmp_path):
    folder = photo_folder(tmp_path / "photos", 4)
    truncate(folder / "cat" / "001.jpg")
    with pytest.raises(CBAMError, match="1 of 12 images cannot be used"):
        write_shards(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    written = write_shards(folder, tmp_path / "out", bad_images="skip")
    assert sum(written.samples.values()) == 11
    assert "1 truncated or damaged" in written.notices[0]


def test_what_would_be_mixed_is_refused(tmp_path):
    folder = photo_folder(tmp_path / "photos", 4)
    write_shards(folder, tmp_path / "out")
    with pytest.raises(CBAMError, match="shards of other images or of another --per-shard"):
        write_shards(folder, tmp_path / "out", per_shard=3)
    shutil.copy(folder / "cat" / "000.jpg", folder / "cat" / "999.jpg")
    with pytest.raises(CBAMError, match="shards of other images"):
        write_shards(folder, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(CBAMError, match="not empty and was not begun"):
        write_shards(folder, tmp_path / "full")
    with pytest.raises(CBAMError, match="lies inside"):
        write_shards(folder, folder / "out")
    with pytest.raises(CBAMError, match="per_shard must be at least 1"):
        write_shards(folder, tmp_path / "new", per_shard=0)
