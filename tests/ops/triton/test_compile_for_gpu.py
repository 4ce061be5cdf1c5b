"""Every kernel compiles for GPUs, and what comes out is what was meant; no GPU is needed for that."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.library import needs_triton

pytestmark = [needs_triton, pytest.mark.slow]
PASSES = {"pool", "squeeze", "apply", "gate_grads", "weighted", "input_grad"}
SMALL = {
    "hidden", "channel_gate", "logits", "statistics", "logit_grads", "through_statistics", "convolution_grads",
    "hidden_grads", "pooled_grads", "parameter_grads",
}  # fmt: skip
# One target for each instruction set that is new for us: Ampere, Hopper, and AMD's MI300, with waves of 64.
TARGETS = ["cuda 80 32", "cuda 90 32", "hip gfx942 64"]
every_target = pytest.mark.parametrize("target", TARGETS)


def compiled(target, folder, *shapes):
    script = Path(__file__).with_name("compile_for_gpu.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), *target.split(), *shapes], capture_output=True, text=True, timeout=600,
        env={**environment, "TRITON_CACHE_DIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@every_target
def test_all_kernels_compile(target, tmp_path):
    found = compiled(target, tmp_path)
    assert {kernel["kernel"] for kernel in found} == PASSES | SMALL
    for kernel in found:
        assert kernel["bytes"] > 0
        assert kernel["atomic_sums"] == 0, kernel  # the order of sums is fixed
        assert kernel["shared"] <= 80 << 10, kernel  # two programs on every multiprocessor, in float64 too
    if target.startswith("cuda"):
        for name in PASSES:  # even shapes are read in vectors, in both layouts
            assert sum(k["vector_loads"] > 0 for k in found if k["kernel"] == name) >= 3, name
        assert not any(kernel["local"] for kernel in found if kernel["kernel"] in PASSES)
    # Where kernels may begin before the end of the one before, all have to wait.
    assert {kernel["waits_first"] for kernel in found} == {target == "cuda 90 32"}


class TestOnes:
    """Triton makes constants of integers that are 1, and constants have no `.to` and no dtype."""

    @every_target
    def test_a_single_element(self, target, tmp_path):
        assert len(compiled(target, tmp_path, "1x1x1x1")) >= len(PASSES | SMALL)

    def test_each_of_them(self, tmp_path):
        """The fault is of the language, so one target will do."""
        compiled("cuda 90 32", tmp_path, "1x24x5x40", "3x1x5x40", "3x24x1x40", "3x24x5x1")

    @every_target
    @pytest.mark.parametrize("multiprocessors", [0, 132], ids=["one share", "many shares"])
    def test_the_cross_product(self, target, multiprocessors, tmp_path):
        """Also the numbers of shares that sums are divided into: with no multiprocessors there is one of each."""
        sizes = itertools.product((1, 3), (1, 24), (1, 5), (1, 40))
        compiled(target, tmp_path, *[f"{n}x{c}x{h}x{w}@{multiprocessors}" for n, c, h, w in sizes])
