"""One thread per test process: the suite runs in parallel, and small tensors gain nothing from more.

Without a GPU the Triton kernels are interpreted, which Triton decides when it is imported.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "False")  # ultralytics would install packages during the tests

import pytest
import torch

from tests.levels import LEVELS, Level, mark

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

UNMATCHED = pytest.StashKey[list[Level]]()


@pytest.hookimpl(tryfirst=True)  # before -m and -k choose
def pytest_collection_modifyitems(config, items):
    partial = any("::" in argument for argument in config.args)
    unmatched = mark(items, LEVELS)
    config.stash[UNMATCHED] = [] if partial else unmatched


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where tests with a device run")


@pytest.fixture(scope="session")
def device(request):
    """The device of --device: small maps on the CPU, real ones on a GPU."""
    found = torch.device(request.config.getoption("--device"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda needs a GPU that torch can use")
    return found


@pytest.fixture(autouse=True)
def _leaves_no_switch_turned():
    """Fail the test that leaves a switch of the whole process turned: later tests would test something else."""
    before = _switches()
    yield
    assert _switches() == before, "torch.compile's stance, the backend"


def _switches():
    dynamo, dispatch = (sys.modules.get(name) for name in ("torch._dynamo.eval_frame", "cbam.ops.dispatch"))
    return dynamo._stance.stance if dynamo else "default", (dispatch and dispatch._chosen) or "auto"
