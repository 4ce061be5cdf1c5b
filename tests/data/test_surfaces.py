"""The pictures of the tutorial: always the same, of four classes, no pixel in both parts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cbam.data import load_data
from cbam.data.surfaces import PHOTOGRAPHS, SIDE, write_surfaces
from cbam.errors import CBAMError

pytest.importorskip("skimage")


def pictures(folder, part, name):
    return [np.asarray(Image.open(path)) for path in sorted((folder / part / name).glob("*.png"))]


def test_a_folder_that_the_commands_read(tmp_path):
    write_surfaces(tmp_path / "a", 4, 2)
    write_surfaces(tmp_path / "b", 4, 2)
    data = load_data(str(tmp_path / "a"), image_size=32)
    assert data.classes == tuple(PHOTOGRAPHS)
    assert (len(data.train), len(data.val)) == (16, 8)
    for path in sorted((tmp_path / "a").rglob("*.png")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    with pytest.raises(CBAMError, match="not empty"):
        write_surfaces(tmp_path / "a")


def test_no_pixel_is_in_both_parts(tmp_path, monkeypatch):
    """In a picture that grows brighter from left to right, all that validates is brighter than all the rest."""
    ramp = np.tile((np.arange(512) // 2).astype(np.uint8), (200, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    monkeypatch.setitem(PHOTOGRAPHS, "brick", str(tmp_path / "ramp.png"))
    write_surfaces(tmp_path / "a", 30, 30)
    train, val = (pictures(tmp_path / "a", part, "brick") for part in ("train", "val"))
    assert max(picture.max() for picture in train) < min(picture.min() for picture in val)
    assert {picture.shape for picture in train + val} == {(SIDE, SIDE, 3)}
