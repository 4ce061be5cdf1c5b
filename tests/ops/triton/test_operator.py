"""The Triton operator as a backend: its choice, what it says where it cannot run, torch.ops without the C++ library."""

import os
import subprocess
import sys

import pytest
import torch

from cbam import CBAM, set_backend
from cbam.errors import CBAMError
from cbam.ops import cpp, dispatch, library, triton
from tests.ops.library import GPU, needs_operator, needs_triton

WITHOUT_CPP = """
import torch
from torch.library import opcheck
from cbam import CBAM, set_backend
from cbam.ops import cpp, triton
from cbam.ops.signature import OperatorConfig
assert "not built" in cpp.unavailable_reason() and triton.unavailable_reason() is None
block, x = CBAM(5, 2, preset="official").train(), torch.randn(2, 5, 4, 3, requires_grad=True)
torch.nn.init.ones_(block.spatial_attention.norm.weight)
with set_backend("triton"):
    weights, settings = block.operator_weights(x), block.operator_config()._replace(relu=True)
    tensors = [w if w is None else w.detach() for w in weights]
    tensors[0], tensors[2] = tensors[0].flatten(1), tensors[2].flatten(1)
    for keep in (False, True):
        opcheck(torch.ops.cbam.forward.default, (x, *tensors, *[None] * 4, torch.randn_like(x), *settings, keep),
                test_utils=("test_schema", "test_faketensor"))
    runs = []
    for run in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        x.grad = None
        block.zero_grad()
        y = run(x)
        y.square().sum().backward()
        runs.append([y.detach(), x.grad, *(p.grad.clone() for p in block.parameters())])
    for got, expected in zip(*runs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    program = torch.export.export(block.eval(), (x.detach(),))
    assert "cbam.forward" in program.graph_module.code
    torch.testing.assert_close(program.module()(x.detach()), block(x).detach())
print("done")
"""


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )  # fmt: skip


@needs_triton
@pytest.mark.skipif(GPU.type != "cpu", reason="the interpreter stands in on the CPU only")
class TestWithoutTheLibrary:
    def test_the_registered_operator_runs_under_compile_and_export(self, tmp_path):
        done = python(WITHOUT_CPP, CBAM_CPP_LIBRARY=str(tmp_path / "none.so"))
        assert done.stdout.strip().endswith("done"), done.stderr[-3000:]

    def test_a_library_that_appears_later_is_not_loaded(self, tmp_path, monkeypatch):
        monkeypatch.delenv("CBAM_CPP_LIBRARY", raising=False)
        code = (
            "import os; from cbam.ops import cpp, library, triton;"
            " triton.unavailable_reason(); library.load.cache_clear(); os.environ.pop('CBAM_CPP_LIBRARY');"
            " print(cpp.unavailable_reason())"
        )
        done = python(code, CBAM_CPP_LIBRARY=str(tmp_path / "none.so"))
        expected = "start Python again" if library.library_file().exists() else "not built"
        assert expected in done.stdout, done.stderr[-3000:]


class TestChoice:
    @needs_triton
    def test_set_backend(self):
        block, x = CBAM(8).to(GPU), torch.randn(1, 8, 3, 3, device=GPU)
        with set_backend("triton"):
            assert dispatch.backend() == "triton"
            assert dispatch.operator_for(x) is triton
            y = block(x)
        with set_backend("eager"):
            torch.testing.assert_close(y, block(x))

    @needs_operator
    def test_the_cpu_keeps_its_own_operator(self):
        assert dispatch.operator_for(torch.ones(1)) is cpp

    def test_without_a_gpu_it_says_so(self):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        done = python("import cbam; cbam.set_backend('triton')", TRITON_INTERPRET="0")
        assert "backend 'triton' cannot run: there is no GPU that PyTorch can use" in done.stderr

    def test_the_environment_may_ask_for_it(self):
        code = "import torch, cbam; cbam.CBAM(8)(torch.randn(1, 8, 3, 3))"
        done = python(code, CBAM_BACKEND="triton", TRITON_INTERPRET="0")
        assert (
            "backend 'triton' cannot run here: the map is on the CPU; the Triton operator runs on a GPU"
            in done.stderr
        )

    def test_other_devices_run_plain_torch(self):
        block, x = CBAM(8, device="meta"), torch.empty(1, 8, 3, 3, device="meta")
        assert dispatch.unfused_reason(x, block.operator_weights()) == "there is no operator for meta devices"
        assert block(x).shape == x.shape

    def test_weights_elsewhere_are_named(self):
        block, x = CBAM(8), torch.randn(1, 8, 3, 3)
        weights = block.operator_weights()
        elsewhere = weights._replace(w0=weights.w0.to("meta"))
        assert "a weight is a Tensor of torch.float32 on meta, the map is on cpu" in dispatch.unfused_reason(
            x, elsewhere
        )

    @needs_triton
    def test_compiled_code_on_the_cpu_does_not_pretend(self):
        if not cpp.available():
            pytest.skip("without the library the interpreter runs there")
        with (
            set_backend("triton"),
            pytest.raises((CBAMError, torch._dynamo.exc.Unsupported), match="runs the C\\+\\+ op"),
        ):
            torch.compile(CBAM(8), fullgraph=True, backend="eager")(torch.randn(1, 8, 3, 3))

    @needs_triton
    def test_a_sample_of_2_31_elements_is_refused(self):
        with torch.device("meta"):
            assert "2^31" in triton.unsupported_reason(torch.empty(1, 2**11, 2**10, 2**10))
            assert triton.unsupported_reason(torch.empty(8, 2**10, 2**10, 2**10)) is None


def test_importing_the_library_does_not_import_triton():
    done = python("import sys, cbam; from cbam.ops import dispatch, triton; print('triton' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr[-2000:]
