"""`instructions.py`: what the kernels' machine code may cost, and how it is counted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.library import needs_triton

pytestmark = needs_triton
ROOT = Path(__file__).parents[3]
# What each kernel's main loop or program may execute per element, in inference and in training.
LOOP = {"pool": (6.0, 8.0), "gate_grads": (14.0,)}
PROGRAM = {"squeeze": (10.0, 14.0), "apply": (9.0,), "convolution_grads": (900.0,)}
PASSES = {"pool", "squeeze", "apply", "gate_grads", "weighted", "input_grad"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.triton.instructions", "--quick"], capture_output=True, text=True, cwd=ROOT,
        timeout=300, env={**environment, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows(report):
    """Kernel, registers, spills, instructions of the main loop and of the program, in the order of the launches."""
    for line in re.findall(r"^\| (\w+ \|.*) \|$", report, re.MULTILINE):
        name, _, _, registers, spills, _, loop, program = (cell.strip() for cell in line.split("|"))
        if name != "kernel":
            yield name, int(registers), int(spills), float(loop or 0), float(program or 0)


@pytest.mark.slow
class TestKernels:
    def test_instructions(self, report):
        found = {}
        for name, _, _, loop, program in rows(report):
            found.setdefault(name, []).append((loop, program))
        for limits, column in ((LOOP, 0), (PROGRAM, 1)):
            for name, allowed in limits.items():
                counts = [row[column] for row in found[name]]
                assert len(counts) == len(allowed), name
                assert all(0 < count <= most for count, most in zip(counts, allowed, strict=True)), (
                    name,
                    counts,
                )

    def test_registers(self, report):
        found = list(rows(report))
        assert {row[0] for row in found} >= PASSES
        for name, registers, spills, _, _ in found:
            assert spills == 0, name
            assert registers <= 128 or name not in PASSES, name

    def test_launches(self, report):
        forward, backward = re.search(r"(\d+) forward, (\d+) backward", report).groups()
        assert (int(forward), int(backward)) == (4, 5)


class TestCounting:
    CODE = (
        (0x00, "S2R R0, SR_TID.X"), (0x10, "@P0 BRA 0x60"), (0x20, "LDG.E.128 R4, [R2.64]"),
        (0x30, "FADD R1, R1, R4"), (0x40, "@P1 BRA 0x20"), (0x50, "FMUL R1, R1, R1"), (0x60, "@!P2 BRA 0x90"),
        (0x70, "LDG.E R5, [R2.64]"), (0x80, "@P3 BRA 0x70"), (0x90, "STG.E [R2.64], R1"), (0xA0, "EXIT"),
        (0xB0, "BRA 0xb0"),
    )  # fmt: skip

    def test_the_usual_way(self):
        from tests.ops.triton.sass import Code

        code = Code(32, list(self.CODE))
        assert code.loops == [(2, 4), (7, 8)]
        assert code.main == (2, 4)
        assert code.turn(code.main) == 3
        assert code.around(code.main) == 2 + 4  # the loop for what is left is jumped over
        assert code.spills == 0

    def test_the_loop_that_folds_a_norm_is_not_the_main_one(self):
        from tests.ops.triton.sass import Code

        fold = ((0, "LDG.E R1, [R2.64]"), (0x10, "MUFU.RSQ R1, R1"), (0x20, "@P0 BRA 0x0"))
        code = Code(32, [*fold, (0x30, "LDG.E.128 R4, [R2.64]"), (0x40, "@P1 BRA 0x30"), (0x50, "EXIT")])
        assert code.main == (3, 4)
        assert code.around(code.main) == 3 + 1

    def test_spills(self):
        from tests.ops.triton.sass import Code

        assert Code(255, [(0, "STL [R1], R2"), (16, "LDL R2, [R1]"), (32, "EXIT")]).spills == 2

    def test_code_without_loops(self):
        from tests.ops.triton.sass import Code

        assert Code(1, [(0, "NOP"), (16, "EXIT")]).around(None) == 2
