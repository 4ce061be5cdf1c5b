"""What fails in a worker process is told as if there were none."""

import os
import signal
import time

import pytest
from torch.utils.data import dataloader

from cbam.data import make_loader
from cbam.data.epoch_index import EpochDataset
from cbam.data.pictures import BadImage
from cbam.data.workers import WorkerLost
from cbam.errors import CBAMError
from tests.data.test_batches import digits as digits  # a fixture

ERRORS = {
    "ours": CBAMError("the shard cats.tar: no such\nimage"),
    "with arguments of its own": BadImage("cat.jpg", "truncated or damaged", "2 bytes"),
}


class Faulty(EpochDataset):
    """Fails at one image, in the way that is asked for."""

    def __init__(self, dataset, fault):
        self.dataset, self.fault = dataset, fault

    def with_seed(self, seed):
        return self

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, at):
        if at[1] == 30:
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "ends":
                os._exit(3)
            raise ERRORS.get(self.fault) or ZeroDivisionError("a mistake")
        return self.dataset[at]


def read(digits, fault, workers):
    loader = make_loader(Faulty(digits, fault), batch_size=8, seed=0, shuffle=False, workers=workers)
    return len(list(loader))


@pytest.mark.parametrize("fault", ERRORS)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_keeps_its_words(digits, fault, workers):
    with pytest.raises(CBAMError) as caught:
        read(digits, fault, workers)
    assert str(caught.value) == str(ERRORS[fault])


@pytest.mark.parametrize("fault", ["killed", "ends"])
def test_a_worker_that_is_gone(digits, fault):
    with pytest.raises(
        WorkerLost, match=r"loads images was killed or has crashed \(.*type the same again"
    ):
        read(digits, fault, 1)


def test_a_worker_that_is_cut_off_while_it_writes(digits, monkeypatch):
    """The main process may see the broken connection before it hears of the end; torch's error would come later."""

    def cut(self, timeout=0):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        os.kill(self._workers[0].pid, signal.SIGKILL)
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "_try_get_data", cut)
    try:
        with pytest.raises(WorkerLost, match="was killed or has crashed"):
            read(digits, "", 1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    time.sleep(0.1)


def test_a_mistake_in_the_code_keeps_its_traceback(digits):
    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        read(digits, "a mistake", 1)
