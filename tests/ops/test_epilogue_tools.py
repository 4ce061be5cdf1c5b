"""The end of a residual block inside the operator: what it keeps for backward, compiled and exported."""

import copy
import math

import pytest
import torch

from cbam import set_backend
from cbam.ops import fused, registration
from cbam.ops.signature import NormBefore
from tests.ops import cases
from tests.ops.blocks import PLAIN, block_of, gradients, with_and_without_relu
from tests.ops.library import needs_operator

pytestmark = needs_operator
every_layout = pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))


@pytest.fixture(autouse=True)
def operator():
    with set_backend("cpp"):
        yield


class TestWhatIsKept:
    @every_layout
    @with_and_without_relu
    def test_of_the_map_s_size_the_map_and_the_output_of_a_relu(self, layout, relu):
        n, c, p = 2, 64, 28 * 28
        block = block_of("paper", (n, c, 28, 28), relu=relu)
        x = torch.randn(n, c, 28, 28).contiguous(memory_format=layout).requires_grad_()
        vectors = 3 * n * c + 2 * n * (c // 4) + 3 * n * p
        indices = n * c + n * p
        assert cases.saved_bytes(block, x) == 4 * ((1 + relu) * n * c * p + vectors + indices)

    def test_the_residual_is_not(self):
        x, rest = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randn(1, 8, 4, 4)
        block = cases.block_of("paper", 8)
        y, _ = fused.attend(
            x, block.operator_weights(x), block.operator_config()._replace(relu=True), residual=rest
        )
        rest.zero_()  # as the next block may do with its input
        y.sum().backward()
        assert x.grad.isfinite().all()

    def test_an_output_that_changed_is_noticed_where_it_is_kept(self):
        x = torch.randn(2, 8, 5, 4, requires_grad=True)
        y = block_of("paper", x.shape)(x)
        y += 1.0
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        y = block_of("paper", x.shape, relu=False)(x)
        y += 1.0
        y.relu_().sum().backward()
        assert x.grad.isfinite().all()

    def test_nothing_at_all_without_a_gradient(self):
        block, x = block_of("paper", (1, 8, 4, 4)), torch.randn(1, 8, 4, 4)
        with torch.no_grad():
            assert block(x).grad_fn is None
        assert block.requires_grad_(False)(x).grad_fn is None
        with torch.inference_mode():
            assert block(x).is_inference()

    def test_checkpointing(self):
        block, x = block_of("paper", (2, 8, 5, 5)), torch.randn(2, 8, 5, 5, requires_grad=True)
        torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False).square().sum().backward()
        again = x.detach().clone().requires_grad_()
        block(again).square().sum().backward()
        assert torch.equal(x.grad, again.grad)


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    @pytest.mark.parametrize("front", [None, False], ids=["no norm", "norm"])
    @with_and_without_relu
    def test_forward_and_backward_as_one_node(self, backend, front, relu):
        block = block_of("official", (3, 8, 5, 7), relu=relu, front=front)
        compiled = torch.compile(block.in_one_call, fullgraph=True, backend=backend)
        for layout in cases.LAYOUTS.values():  # the residual stays contiguous
            x, grad = cases.maps((3, 8, 5, 7), torch.float32, layout)
            got, expected = (gradients(run, block, x, grad) for run in (compiled, block.in_one_call))
            assert got["y"].stride() == x.stride()
            for key, value in expected.items():
                torch.testing.assert_close(got[key], value, msg=key)

    @pytest.mark.slow
    def test_dynamic_shapes(self):
        graphs, block = [], cases.block_of("paper", 8)

        def look(module, inputs):
            graphs.append(module.graph)
            return module

        def run(x, residual):
            settings = block.operator_config()._replace(relu=True)
            return fused.attend(x, block.operator_weights(x), settings, residual=residual)[0]

        compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=look)
        for shape in ((2, 8, 5, 7), (3, 8, 4, 6)):
            x, residual = torch.randn(shape), torch.randn(shape)
            torch.testing.assert_close(compiled(x, residual), run(x, residual))
        assert len(graphs) == 1, "the second shape must not compile again"

    @with_and_without_relu
    def test_exporters_get_plain_operations(self, relu):
        block = block_of("paper", (2, 8, 5, 7), relu=relu).requires_grad_(False)
        x = torch.randn(2, 8, 5, 7)
        weights = block.attention.operator_weights(x)
        settings = block.attention.operator_config()._replace(relu=relu)
        arguments = (x, *weights, *NormBefore(), block.residual, *settings)
        y, saved, argmax, _ = registration.decomposed(*arguments, False)
        torch.testing.assert_close(y, block(x))
        assert (saved.numel(), argmax.numel()) == (0, 0)
        assert registration.decomposed(*arguments, True) is NotImplemented

    @pytest.mark.slow
    @with_and_without_relu
    def test_an_exported_program_still_trains(self, relu):
        """It kept no numbers, so its backward goes through plain operations."""
        block = block_of("paper", (2, 8, 5, 7), relu=relu)
        x, grad = cases.maps((2, 8, 5, 7), *PLAIN)
        twin = torch.export.export(copy.deepcopy(block), (x,)).module()
        twin(x).backward(grad)
        expected = gradients(block, block, x, grad)
        for name, parameter in twin.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_empty_batch():
    block = block_of("paper", (0, 8, 5, 4))
    x = torch.empty(0, 8, 5, 4, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert y.shape == x.shape == block.residual.grad.shape
    assert math.isfinite(sum(p.grad.sum() for p in block.parameters()))
