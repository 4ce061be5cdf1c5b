"""The Triton kernels, on a GPU or interpreted, against float64 and plain torch; ties, NaN, bits, what is kept."""

import copy
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbam import CBAM, set_backend
from tests.nn import conformance
from tests.nn.oracle import Oracle
from tests.ops import cases
from tests.ops.cases import WithResidual
from tests.ops.library import GPU, needs_operator, needs_triton

pytestmark = needs_triton
every_layout = pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
every_mode = pytest.mark.parametrize(("name", "training"), cases.MODES, ids=str)
# Interpreted tiles are 32 channels by 16 positions, and the MLP's 16 samples: less, exactly as much and more.
SHAPES = [(1, 33, 5, 7), (1, 5, 1, 1), (17, 3, 2, 1), (1, 32, 4, 4), (0, 8, 3, 3)]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def operator():
    with set_backend("triton"):
        yield


@pytest.fixture(autouse=True)
def dirty_memory(monkeypatch):
    """New memory is full of NaN and of large indices, so that what is read before it is written shows."""

    def dirty(new):
        def allocate(*arguments, **options):
            tensor = new(*arguments, **options)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 2**30)

        return allocate

    if GPU.type == "cpu":
        monkeypatch.setattr(torch.Tensor, "new_empty", dirty(torch.Tensor.new_empty))
        monkeypatch.setattr(torch, "empty_like", dirty(torch.empty_like))


def on_gpu(block, *tensors):
    return (block.to(GPU), *(t.to(GPU) for t in tensors))


def both(block, x):
    """Outputs of the operator and of plain torch."""
    with torch.no_grad():
        got = block(x)
        with set_backend("eager"):
            return got, block(x)


class TestAgainstFloat64:
    @every_mode
    @every_layout
    def test_every_dialect(self, name, training, layout):
        """Output, gradients of the map and of every parameter, and running statistics."""
        others = SHAPES[1:]
        for shape in (SHAPES[0], others[cases.MODES.index((name, training)) % len(others)]):
            if cases.single_value(name, shape, training):
                continue
            block = cases.block_of(name, shape[1], torch.float64, training)
            block, x, grad = on_gpu(block, *cases.maps(shape, torch.float64, layout))
            got, eager = cases.assert_as_good_as_eager(block, x, grad, "triton")
            for key in got:
                assert (got[key].shape, got[key].dtype) == (eager[key].shape, eager[key].dtype)

    @pytest.mark.parametrize("dtype", cases.DTYPES[:3], ids=str)
    @pytest.mark.parametrize(("name", "training"), [("paper", False), ("official", True)])
    @every_layout
    def test_every_type(self, name, training, layout, dtype):
        shape = (2, 33, 3, 6)
        block = cases.block_of(name, shape[1], dtype, training)
        x, grad = cases.clear_maps(block, shape, dtype, layout)
        got, _ = cases.assert_as_good_as_eager(*on_gpu(block, x, grad), "triton")
        assert (got["y"].dtype, got["x"].dtype) == (dtype, dtype)

    @given(
        n=st.integers(1, 3), c=st.integers(1, 40), h=st.integers(1, 9), w=st.integers(1, 9),
        k=st.sampled_from([1, 3, 9]), name=st.sampled_from(cases.DIALECTS), channels_last=st.booleans(),
        seed=st.integers(0, 2**16),
    )  # fmt: skip
    @settings(max_examples=10, deadline=None)
    def test_any_shape(self, n, c, h, w, k, name, channels_last, seed):
        switches = {**conformance.TABLE_BY_NAME[name][0]}
        torch.manual_seed(seed)
        block = CBAM(c, **{"reduction_ratio": 4, "kernel_size": k, **switches}, dtype=torch.float64).eval()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, grad = cases.maps((n, c, h, w), torch.float64, layout, seed)
        cases.assert_as_good_as_eager(*on_gpu(block, x, grad), "triton")

    @pytest.mark.parametrize("name", ["paper", "official", "timm"])
    def test_the_equations(self, name):
        """Against the NumPy oracle, which shares no code with the library."""
        block = cases.block_of(name, 20, torch.float64)
        x = torch.randn(2, 20, 5, 7, dtype=torch.float64)
        expected = torch.from_numpy(
            Oracle(block.state_dict(), **conformance.TABLE_BY_NAME[name][1])(x.numpy())
        )
        block, x = on_gpu(block, x)
        torch.testing.assert_close(block(x).detach().cpu(), expected, atol=1e-11, rtol=1e-11)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_the_error_over_many_maps_is_no_larger_than_plain_torch_s(self, dtype):
        shape, squares = (1, 40, 5, 6), {}
        for seed in range(12):
            block, x, grad = on_gpu(
                cases.block_of("official", shape[1], dtype, True),
                *cases.maps(shape, dtype, torch.contiguous_format, seed),
            )
            exact = cases.truth(block, x, grad)
            for backend in ("triton", "eager"):
                for key, value in cases.outcome(block, x, grad, backend).items():
                    square = (value.double() - exact[key]).square().mean().item()
                    squares[key, backend] = squares.get((key, backend), 0.0) + square
        for key in exact:
            assert squares[key, "triton"] <= 2**2 * squares[key, "eager"] + 1e-20, key


class TestConvolutionGrads:
    @pytest.mark.parametrize(("height", "width", "k", "planes"), [(3, 9, 3, 2), (7, 1, 7, 1), (1, 4, 5, 2)])
    def test_runs_of_four_positions(self, height, width, k, planes):
        """As on a GPU; interpreted calls have one position at a time."""
        from cbam.ops.triton.convolution_kernels import convolution_grads

        p, new = height * width, {"dtype": torch.float64, "device": GPU}
        maps = torch.randn(2, planes, height, width, **new, requires_grad=True)
        kernel = torch.randn(1, planes, k, k, **new, requires_grad=True)
        dz = torch.randn(2, 1, height, width, **new)
        z = torch.nn.functional.conv2d(maps, kernel, padding=k // 2)
        expected, of_kernel = torch.autograd.grad(z, [maps, kernel], dz)
        dmaps, partial = torch.empty_like(maps), dz.new_empty(2 * 2, planes * k * k)
        arrived = torch.full((2, 3), 7, dtype=torch.int32, device=GPU)
        per_part = 4 * -(-height * -(-width // 4) // 8)
        convolution_grads[(2 * 2, k + 1)](
            dz, maps.detach(), kernel.detach(), dmaps, partial, arrived, 10, p, height, width, 2, per_part, 3,
            AVERAGE=0, K=k, PLANES=planes, INNER=False, RUN=4, BQ=4, num_warps=1,
        )  # fmt: skip
        expected[:, 0] /= 10
        torch.testing.assert_close(dmaps, expected)
        torch.testing.assert_close(partial.sum(0).view_as(of_kernel[0]), of_kernel[0])
        assert not arrived.any()


class InTwoSteps(WithResidual):
    def in_one_call(self, x):
        return self.in_two_steps(x)


class TestEpilogue:
    """The norm in front, the addition and the ReLU."""

    @pytest.mark.parametrize("front", [None, False, True], ids=["no norm", "norm", "norm in training"])
    @pytest.mark.parametrize(
        ("name", "relu"),
        [
            ("official", True),
            ("official", False),
            ("spatial only", True),
            ("channel only", False),
            ("max pooling", None),
        ],
        ids=str,
    )
    @every_layout
    def test_gradients(self, name, relu, front, layout):
        shape = (2, 18, 5, 4)
        norm = None if front is None else cases.norm_of(shape[1], torch.float64, front)
        x, grad = cases.maps(shape, torch.float64, layout)
        residual = torch.randn(shape, dtype=torch.float64)
        block = WithResidual(cases.block_of(name, shape[1], torch.float64, True), residual, bool(relu), norm)
        if relu is None:  # the operator without a sum
            block.__class__ = InTwoSteps
        cases.assert_as_good_as_eager(*on_gpu(block, x, grad), "triton")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @every_layout
    @pytest.mark.parametrize("relu", [True, False], ids=["relu", "sum"])
    def test_the_bits_are_those_of_the_steps(self, dtype, layout, relu):
        shape = (2, 33, 5, 7)
        x, grad = cases.maps(shape, dtype, layout)
        residual = torch.randn(shape).to(dtype)
        residual[0, 3, 2], residual[1, :, 1, 1] = NAN, -0.0
        block, x, grad = on_gpu(
            WithResidual(cases.block_of("official", 33, dtype, True), residual, relu, cases.norm_of(33)),
            x,
            grad,
        )
        runs = []
        for run in (block.in_one_call, block.in_two_steps):
            leaf = x.detach().clone().requires_grad_()
            y = run(leaf)
            runs.append([y.detach(), *torch.autograd.grad(y, [leaf, *block.parameters()], grad)])
        for got, expected in zip(*runs, strict=True):
            assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))


class TestSpecialValues:
    @pytest.mark.parametrize("dtype", cases.DTYPES[:2], ids=str)
    @every_layout
    @pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
    def test_what_is_not_finite_ends_where_plain_torch_puts_it(self, value, dtype, layout):
        for name in ("paper", "hardsigmoid"):
            x = torch.randn(3, 19, 5, 4).to(dtype).contiguous(memory_format=layout)
            x[1, 17, 4, 3] = value
            got, expected = both(*on_gpu(cases.block_of(name, 19, dtype), x))
            assert torch.equal(got.isnan(), expected.isnan()), name
            assert torch.equal(got.isinf(), expected.isinf()), name
            torch.testing.assert_close(got[::2], expected[::2], atol=0.02, rtol=0.02)

    @every_layout
    def test_a_maximum_s_gradient_goes_to_its_first_index(self, layout):
        for indices in ([3, 9, 20], [17, 18], [0, 36]):
            x = torch.zeros(1, 1, 1, 37).contiguous(memory_format=layout)
            x[..., indices] = 5.0
            for value in (5.0, NAN, -INF):
                values = torch.where(x == 5, value, -INF)
                channel, leaf = on_gpu(CBAM(1, 1, arrangement="channel", channel_pooling="max"), values)
                leaf.requires_grad_()
                out = channel(leaf)
                saved = out.grad_fn.saved_tensors[-1]
                assert saved.tolist() == [0 if value == -INF else indices[0]]
                spatial, leaf = on_gpu(
                    CBAM(37, 1, 1, arrangement="spatial", spatial_descriptor="max"),
                    values.transpose(1, 3).contiguous(memory_format=layout),
                )
                out = spatial(leaf.requires_grad_())
                saved = out.grad_fn.saved_tensors[-1]
                assert saved.tolist() == [0 if value == -INF else indices[0]]

    def test_large_logits_do_not_overflow(self):
        block = CBAM(8, 1)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_(torch.randn_like(parameter) * 1e4)
        got, expected = both(*on_gpu(block, torch.randn(2, 8, 5, 5)))
        torch.testing.assert_close(got, expected)
        assert got.isfinite().all()


class TestBits:
    @needs_operator
    @every_layout
    @pytest.mark.parametrize("dtype", cases.DTYPES[:3], ids=str)
    def test_argmax_indices_are_those_of_the_cpu_operator(self, dtype, layout):
        """Among products as the map's type rounds them: some are equal that were not before."""
        torch.manual_seed(0)
        x = torch.rand(1, 33, 20, 20).to(dtype).contiguous(memory_format=layout)
        indices = []
        for backend, device in (("cpp", "cpu"), ("triton", GPU)):
            block = cases.block_of("paper", 33, dtype).to(device)
            with torch.no_grad():  # gates that are not all 0 or 1
                block.channel_attention.mlp[2].weight.mul_(0.05)
            with set_backend(backend):
                y = block(x.to(device).requires_grad_())
            indices.append(y.grad_fn.saved_tensors[-1].cpu())
        kept, expected = indices  # the C++ operator keeps one vector: numbers, and behind them the indices
        assert torch.equal(kept.view(torch.int32)[-expected.numel() :], expected)

    @every_dtype
    @every_layout
    def test_identity(self, dtype, layout):
        for name in ("paper", "official", "timm", "hardsigmoid", "spatial first"):
            block = cases.block_of(name, 24, dtype, training=True)
            block.set_identity()
            x = (torch.randn(1, 24, 5, 7) * 100).to(dtype).contiguous(memory_format=layout)
            block, x = on_gpu(block, x)
            y = block(x)
            assert torch.equal(y, x), name
            assert y.stride() == x.stride()

    def test_two_runs_give_the_same(self):
        x, grad = cases.maps((3, 40, 9, 7), torch.float32, torch.channels_last)
        block, x, grad = on_gpu(cases.block_of("official", 40, training=True), x, grad)
        first, second = (cases.outcome(block, x, grad, "triton") for _ in range(2))
        for key, value in first.items():
            assert torch.equal(second[key], value), key

    def test_a_sample_does_not_depend_on_the_others(self):
        block, x = on_gpu(cases.block_of("paper", 24), torch.randn(5, 24, 5, 5))
        whole = block(x)
        for i in range(5):
            torch.testing.assert_close(block(x[i : i + 1]), whole[i : i + 1], atol=1e-6, rtol=1e-6)


class TestCalls:
    def test_unbatched_and_maps_with_gaps(self):
        block, x = on_gpu(cases.block_of("official", 20), torch.randn(4, 20, 10, 10))
        assert torch.equal(block(x[1]), block(x[1:2])[0])
        for cut in (x[::2, :, 1:8:2, :7], x.transpose(2, 3), x[:1].expand(4, -1, -1, -1)):
            got, expected = both(block, cut)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    def test_second_derivative(self):
        x = torch.randn(2, 4, 3, 3, dtype=torch.float64, device=GPU, requires_grad=True)
        seconds = []
        for backend in ("triton", "eager"):
            block = conformance.build("paper", 4, dtype=torch.float64).to(GPU)
            with set_backend(backend):
                first = torch.autograd.grad(
                    block(x).square().sum(), [x, *block.parameters()], create_graph=True
                )
                seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), x)[0])
        torch.testing.assert_close(*seconds)

    def test_nothing_of_the_map_s_size_is_kept_but_the_map(self):
        block, x = on_gpu(cases.block_of("official", 64, training=True), torch.randn(2, 64, 16, 16))
        x.requires_grad_()
        gc.collect()
        assert cases.saved_bytes(block, x) < 1.3 * x.numel() * x.itemsize

    def test_autocast(self):
        block, x = on_gpu(cases.block_of("official", 20, training=True), torch.randn(2, 20, 6, 5))
        with torch.autocast(GPU.type, dtype=torch.bfloat16):
            got = block(x)
        assert torch.equal(got, block(x))

    def test_a_training_step_moves_what_plain_torch_moves(self):
        x = torch.randn(4, 20, 6, 5).to(GPU)
        after = []
        for backend in ("triton", "eager"):
            with set_backend(backend):
                block = copy.deepcopy(conformance.build("official", 20)).train().to(GPU)
                optimizer = torch.optim.SGD(block.parameters(), 0.1)
                for _ in range(2):
                    optimizer.zero_grad()
                    block(x).square().mean().backward()
                    optimizer.step()
                after.append(block.state_dict())
        for key, value in after[0].items():
            torch.testing.assert_close(value, after[1][key], atol=1e-5, rtol=1e-4)
