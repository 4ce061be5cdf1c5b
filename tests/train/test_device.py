from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

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


def test_sync_bn_of_one_process_is_told_to_change_nothing(caplog):
    with caplog.at_level("INFO", logger="cbam"):
        make_accelerator(TrainConfig(device="cpu", sync_bn=True))
    assert "--sync-bn changes nothing with one process" in caplog.text


def test_sync_bn_of_several_processes_needs_gpus(monkeypatch):
    class Several(Accelerator):
        num_processes = 2

    monkeypatch.setattr("cbam.train.device.Accelerator", Several)
    with pytest.raises(CBAMError, match=r"--sync-bn needs GPUs, .* Leave it out"):
        make_accelerator(TrainConfig(device="cpu", sync_bn=True))
    make_accelerator(TrainConfig(device="cpu"))


def test_processes_that_would_each_train_alone_are_refused(monkeypatch):
    class Alone:
        num_processes = 1
        device = torch.device("mps")

    monkeypatch.setattr("cbam.train.device.Accelerator", lambda **options: Alone())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CBAMError, match="2 processes were started and cannot work together on mps"):
        make_accelerator(TrainConfig())


@pytest.mark.parametrize(("there", "cpu"), [(False, True), (True, False)])
def test_without_a_gpu_accelerate_is_told_so(monkeypatch, there, cpu):
    """Otherwise it does not join the processes of torchrun, and each believes that it is the first one."""
    given = {}

    def accelerator(**options):
        given.update(options)
        return Accelerator(cpu=True)

    monkeypatch.setattr("cbam.train.device.Accelerator", accelerator)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: there)
    make_accelerator(TrainConfig())
    assert given["cpu"] == cpu
