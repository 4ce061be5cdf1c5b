"""The compiled library: built where it must be, loaded at the first use, and one warning without it."""

import os
import subprocess
import sys

import pytest

from cbam.ops import cpp, library
from tests.ops.library import needs_operator


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(
    os.environ.get("CBAM_REQUIRE_CPP") != "1", reason="only where CBAM_REQUIRE_CPP=1 asks for it"
)
def test_the_operator_is_built():
    """Without this, a build that fails would turn half of the suite into silent skips."""
    assert cpp.unavailable_reason() is None


def test_importing_loads_no_library():
    done = python(
        "import cbam, torch; print(hasattr(torch.ops.cbam, 'forward'), 'triton' in __import__('sys').modules)"
    )
    assert done.stdout.split() == ["False", "False"]


@needs_operator
def test_the_first_use_loads_it():
    done = python(
        "import cbam, torch; cbam.CBAM(4)(torch.rand(1, 4, 3, 3)); print(hasattr(torch.ops.cbam, 'forward'))"
    )
    assert done.stdout.split() == ["True"]
    assert "fused operator" not in done.stderr


USE_TWICE = "import cbam, torch; b = cbam.CBAM(4); b(torch.rand(1, 4, 3, 3)); b(torch.rand(1, 4, 3, 3)); print('done')"


def test_without_a_library_it_works_and_says_so_once(tmp_path):
    done = python(USE_TWICE, CBAM_CPP_LIBRARY=str(tmp_path / "none.so"), CBAM_BACKEND="auto")
    assert done.stdout.split() == ["done"]
    assert done.stderr.count("CBAM runs without its fused operator") == 1
    assert "pip install --no-build-isolation --no-deps ." in done.stderr


def test_eager_by_choice_says_nothing(tmp_path):
    done = python(USE_TWICE, CBAM_CPP_LIBRARY=str(tmp_path / "none.so"), CBAM_BACKEND="eager")
    assert done.stderr == ""


def test_compiled_code_without_a_library(tmp_path):
    code = (
        "import cbam, torch; f = torch.compile(cbam.CBAM(4), fullgraph=True, backend='eager');"
        "print(f(torch.rand(1, 4, 3, 3)).shape)"
    )
    done = python(code, CBAM_CPP_LIBRARY=str(tmp_path / "none.so"), CBAM_BACKEND="auto")
    assert "torch.Size([1, 4, 3, 3])" in done.stdout
    assert "CBAM runs without its fused operator" in done.stderr


def test_a_library_that_does_not_load(tmp_path):
    broken = tmp_path / "_cpp.abi3.so"
    broken.write_bytes(b"not a library")
    done = python("from cbam.ops import cpp; print(cpp.unavailable_reason())", CBAM_CPP_LIBRARY=str(broken))
    assert "_cpp.abi3.so does not load with torch" in done.stdout
    assert "with a C++ compiler, in the checkout" in done.stdout


def test_forced_without_a_library(tmp_path):
    code = (
        "import cbam, torch\n"
        "try: cbam.CBAM(4)(torch.rand(1, 4, 3, 3))\n"
        "except cbam.CBAMError as error: print(error)\n"
        "try: cbam.set_backend('cpp')\n"
        "except cbam.CBAMError as error: print(error)\n"
    )
    done = python(code, CBAM_CPP_LIBRARY=str(tmp_path / "none.so"), CBAM_BACKEND="cpp")
    assert done.stdout.count("the C++ operator is not built (no none.so)") == 2


@needs_operator
def test_a_library_that_was_loaded_before():
    """torch crashes where an operator is defined twice."""
    code = "import torch; torch.ops.load_library({!r}); import cbam; cbam.set_backend('cpp'); print('done')"
    copy = "import shutil, tempfile; d = tempfile.mkdtemp(); f = shutil.copy({!r}, d + '/copy.abi3.so');"
    done = python(copy.format(str(library.library_file())) + code.replace("{!r}", "f"))
    assert done.stdout.split() == ["done"]


@needs_operator
def test_a_library_from_other_sources_is_refused(monkeypatch):
    """As after a `git pull` without a new build: its schema is not that of the Python code."""
    assert library.load() is None
    for name, schema in library.SCHEMAS.items():
        other = schema.replace("Tensor? residual", "Tensor? other").replace("Tensor grad", "Tensor gradient")
        monkeypatch.setitem(library.SCHEMAS, name, other)
        assert "built from other sources" in library.load.__wrapped__()
        monkeypatch.setitem(library.SCHEMAS, name, schema)


@needs_operator
def test_instruction_set():
    assert cpp.instruction_set() in ("plain", "avx2", "avx512")
