"""A large block that was freed is there for the next call, without page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from cbam.evaluate.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
x = torch.zeros(50_000_000 // 4)
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x.clone()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def faults_of_a_large_copy(how):
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    *told, count = run.stdout.split("\n")[:-1]
    return told, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_large_block_comes_back_without_page_faults():
    told, kept = faults_of_a_large_copy("keep")
    if told != ["malloc keeps freed memory"]:
        pytest.skip("another C library than glibc")
    _, default = faults_of_a_large_copy("default")
    assert kept < 50
    assert kept < default, "glibc gives large blocks back unless told otherwise"
