"""The operator's gradients against float64, beside plain torch; against differences; ties; what is kept for them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cbam.functional as F
from cbam import CBAM, set_backend
from tests.nn import conformance
from tests.ops import cases
from tests.ops.library import needs_operator

pytestmark = needs_operator
every_layout = pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))


@pytest.fixture(autouse=True)
def operator():
    with set_backend("cpp"):
        yield


class TestAgainstFloat64:
    @pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
    @pytest.mark.parametrize(("name", "training"), cases.MODES, ids=lambda v: str(v))
    @every_layout
    def test_every_shape(self, name, training, dtype, layout):
        """Output, gradients of the map and of every parameter, and running statistics."""
        for shape in cases.SHAPES:
            if cases.single_value(name, shape, training):
                continue
            block = cases.block_of(name, shape[1], dtype, training)
            x, grad = cases.clear_maps(block, shape, dtype, layout)
            got, eager = cases.assert_as_good_as_eager(block, x, grad)
            assert got["y"].dtype == dtype
            assert got["x"].dtype == dtype
            for key in got:
                assert got[key].shape == eager[key].shape
                assert got[key].dtype == eager[key].dtype

    @pytest.mark.parametrize("dtype", cases.DTYPES[:3], ids=str)
    @pytest.mark.parametrize(
        ("name", "training"), [("paper", False), ("official", True), ("official", False)]
    )
    def test_the_error_over_many_maps_is_no_larger_than_plain_torch_s(self, name, training, dtype):
        shape, squares = (2, 40, 7, 9), {}
        for seed in range(16):
            block = cases.block_of(name, shape[1], dtype, training)
            x, grad = cases.maps(shape, dtype, torch.contiguous_format, seed)
            exact = cases.truth(block, x, grad)
            for backend in ("cpp", "eager"):
                for key, value in cases.outcome(block, x, grad, backend).items():
                    square = (value.double() - exact[key]).square().mean().item()
                    squares[key, backend] = squares.get((key, backend), 0.0) + square
        for key in exact:
            assert squares[key, "cpp"] <= 2**2 * squares[key, "eager"] + 1e-20, key

    @given(
        n=st.integers(1, 3), c=st.integers(1, 40), h=st.integers(1, 12), w=st.integers(1, 12),
        k=st.sampled_from([1, 3, 7]), name=st.sampled_from(cases.DIALECTS), channels_last=st.booleans(),
        seed=st.integers(0, 2**16),
    )  # fmt: skip
    @settings(max_examples=60, deadline=None)
    def test_any_shape(self, n, c, h, w, k, name, channels_last, seed):
        block = cases.block_of(name, c, torch.float64)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, grad = cases.maps((n, c, h, w), torch.float64, layout, seed)
        cases.assert_as_good_as_eager(block, x, grad)

    @pytest.mark.parametrize(
        "stretch",
        [
            lambda g: g.to(memory_format=torch.channels_last),
            lambda g: g[:, :, :1, :1].expand_as(g),
            lambda g: g.transpose(2, 3).contiguous().transpose(2, 3),
        ],
        ids=["channels_last", "expanded", "transposed"],
    )
    def test_a_gradient_in_any_layout(self, stretch):
        block, (x, grad) = (
            cases.block_of("paper", 20),
            cases.maps((2, 20, 6, 5), torch.float32, torch.channels_last),
        )
        for layout in cases.LAYOUTS.values():
            cases.assert_as_good_as_eager(block, x.contiguous(memory_format=layout), stretch(grad))

    def test_what_is_not_finite(self):
        for value in (float("nan"), float("inf")):
            block, (x, grad) = (
                cases.block_of("paper", 19),
                cases.maps((2, 19, 6, 5), torch.float32, torch.channels_last),
            )
            x[0, 3, 2, 1] = value
            for layout in cases.LAYOUTS.values():
                x = x.contiguous(memory_format=layout)
                got, eager = cases.outcome(block, x, grad, "cpp"), cases.outcome(block, x, grad, "eager")
                # The other sample is as it would be alone.
                torch.testing.assert_close(got["x"][1], eager["x"][1], atol=1e-5, rtol=1e-4)
                assert not got["x"][0].isfinite().all()


class TestAgainstDifferences:
    @pytest.mark.parametrize(("name", "training"), cases.MODES, ids=str)
    @every_layout
    def test_gradcheck(self, name, training, layout):
        block = conformance.build(name, 5, dtype=torch.float64).train(training)
        x = torch.randn(2, 5, 3, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        weights, names = list(block.parameters()), [n for n, _ in block.named_parameters()]

        def run(x, *values):
            return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

        assert "_Attend" in run(x, *weights).grad_fn.name()
        assert torch.autograd.gradcheck(run, (x, *weights))

    @pytest.mark.parametrize(("name", "training"), [("paper", False), ("official", True)])
    def test_gradgradcheck(self, name, training):
        """The second derivative, by way of plain torch."""
        block = conformance.build(name, 3, dtype=torch.float64).train(training)
        x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
        weights, names = list(block.parameters()), [n for n, _ in block.named_parameters()]

        def run(x, *values):
            return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradgradcheck(run, (x, *weights), rtol=1e-3, atol=1e-4)

    def test_a_gradient_penalty_trains(self):
        block, x = CBAM(8, 2), torch.randn(2, 8, 5, 5, requires_grad=True)
        results = []
        for backend in ("cpp", "eager"):
            twin = copy.deepcopy(block)
            with set_backend(backend):
                (gradient,) = torch.autograd.grad(twin(x).square().sum(), x, create_graph=True)
                gradient.square().sum().backward()
            results.append([p.grad for p in twin.parameters()])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)

    def test_weights_that_depend_on_the_map(self):
        """Asked for a second derivative, the first must not count the way through the weights twice."""
        base = torch.randn(3, 6, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)

        def run(x):
            w0, w1 = (w * x.mean() for w in base)
            return F.channel_attention(x, w0, w1)

        x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(run, x)
        once, again = (
            torch.autograd.grad(run(x).square().sum(), x, create_graph=g)[0] for g in (False, True)
        )
        torch.testing.assert_close(once, again)


class TestTies:
    @every_layout
    @pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
    def test_equal_maps(self, layout, dtype):
        """Everything ties: all gradients as from plain torch, which takes the first index."""
        for name in ("paper", "max pooling", "max descriptor", "official"):
            for value in (0.0, 1.0):
                block = cases.block_of(name, 21, dtype, training=True)
                x = torch.full((2, 21, 5, 7), value, dtype=dtype).contiguous(memory_format=layout)
                _, grad = cases.maps(x.shape, dtype, layout)
                cases.assert_as_good_as_eager(block, x, grad)

    @every_layout
    def test_few_different_values(self, layout):
        for name in (
            "channel only",
            "spatial only",
        ):  # with both gates, the first one breaks the second one's ties
            for seed in range(3):
                x, grad = cases.maps((3, 40, 11, 9), torch.float32, layout, seed)
                cases.assert_as_good_as_eager(cases.block_of(name, 40), x.round().relu(), grad)

    @every_layout
    @pytest.mark.parametrize("size", [3, 40, 700])
    def test_the_first_index_gets_it(self, layout, size):
        block = CBAM(1, 1, arrangement="channel", channel_pooling="max", dtype=torch.float64)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.fill_(1.0)
        for first in (0, 1, size // 2, size - 1):
            x = torch.zeros(1, 1, size, 3, dtype=torch.float64)
            x[:, :, first:] = 0.25
            x = x.contiguous(memory_format=layout).requires_grad_()
            block(x).sum().backward()
            through_max = x.grad - torch.sigmoid(torch.tensor(0.25, dtype=torch.float64))
            assert through_max.flatten().abs().gt(1e-9).nonzero().tolist() == [[first * 3]]


class TestWhatIsKept:
    @every_layout
    def test_nothing_of_the_map_s_size_but_the_map(self, layout):
        n, c, p = 2, 64, 28 * 28
        x = torch.randn(n, c, 28, 28).contiguous(memory_format=layout).requires_grad_()
        for preset, extra in (("paper", 0), ("official", n * p + 2)):
            block = CBAM(c, preset=preset)
            vectors = 3 * n * c + 2 * n * (c // 16) + 3 * n * p + extra
            indices = n * c + n * p
            assert cases.saved_bytes(block, x) == 4 * (n * c * p + vectors + indices)

    def test_nothing_at_all_without_a_gradient(self):
        block, x = CBAM(8), torch.randn(1, 8, 4, 4)
        with torch.no_grad():
            assert block(x).grad_fn is None
        assert block.requires_grad_(False)(x).grad_fn is None
        with torch.inference_mode():
            assert block(x).is_inference()

    @pytest.mark.parametrize("wanted", ["x", "channel_attention.mlp.0.weight", "spatial_attention.norm.bias"])
    def test_only_what_needs_a_gradient_gets_one(self, wanted):
        block = cases.block_of("official", 8, training=True).requires_grad_(False)
        x = torch.randn(2, 8, 5, 5)
        tensors = {**dict(block.named_parameters()), "x": x}
        tensors[wanted].requires_grad_()
        block(x).sum().backward()
        assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [wanted]
        expected = cases.outcome(block.requires_grad_(), x.detach(), torch.ones_like(x), "eager")[wanted]
        torch.testing.assert_close(tensors[wanted].grad, expected, rtol=1e-4, atol=1e-4)

    def test_a_weight_changed_in_between_is_noticed(self):
        block = CBAM(8)
        y = block(torch.randn(1, 8, 4, 4))
        with torch.no_grad():
            block.spatial_attention.conv.weight.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_checkpointing(self):
        block, x = cases.block_of("paper", 8), torch.randn(2, 8, 5, 5, requires_grad=True)
        torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False).square().sum().backward()
        again = x.detach().clone().requires_grad_()
        block(again).square().sum().backward()
        assert torch.equal(x.grad, again.grad)

    def test_the_output_may_be_changed_in_place(self):
        block, x = CBAM(8), torch.randn(2, 8, 5, 5, requires_grad=True)
        y = block(x)
        y += 1.0
        y.relu_().sum().backward()
        assert x.grad.isfinite().all()


@every_layout
def test_gradients_have_the_strides_of_their_parameters(layout):
    """Otherwise DistributedDataParallel warns, and copies them in every step."""
    block = CBAM(32, 4).to(memory_format=layout)
    x = torch.randn(2, 32, 9, 9).to(memory_format=layout)
    block(x).sum().backward()
    assert {n: p.grad.stride() for n, p in block.named_parameters()} == {
        n: p.stride() for n, p in block.named_parameters()
    }
