from __future__ import annotations

import pytest
import torch

from cbam.errors import CBAMError
from cbam.train.config import TrainConfig
from cbam.train.device import make_accelerator


def test_cpu():
    assert make_accelerator(TrainConfig(device="cpu")).device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there():
    with pytest.raises(CBAMError, match=r"--device cuda: torch finds none here. Type: --device cpu"):
        make_accelerator(TrainConfig(device="cuda"))


def test_fp16_without_a_gpu():
    with pytest.raises(CBAMError, match=r"fp16 needs a GPU. Type: --precision bf16"):
        make_accelerator(TrainConfig(device="cpu", precision="fp16"))
