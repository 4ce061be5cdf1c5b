"""The operator's output against float64 and plain torch; values that are not numbers; bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cbam.functional as F
from cbam import CBAM, set_backend
from tests.nn.oracle import Oracle
from tests.ops import cases
from tests.ops.library import needs_operator

pytestmark = needs_operator
every_layout = pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
NAN, INF = float("nan"), float("inf")


def both(block, x):
    """Outputs of the operator and of plain torch."""
    with torch.no_grad(), set_backend("cpp"):
        got = block(x)
    with torch.no_grad(), set_backend("eager"):
        return got, block(x)


class TestValues:
    @pytest.mark.parametrize("name", cases.DIALECTS)
    def test_float64_equals_the_equations(self, name):
        """Against the NumPy oracle, which shares no code with the library."""
        from tests.nn.conformance import TABLE_BY_NAME

        for shape in cases.SHAPES[:8]:
            block = cases.block_of(name, shape[1], torch.float64)
            x = torch.randn(shape, dtype=torch.float64)
            with set_backend("cpp"):
                got = block(x).detach()
            expected = torch.from_numpy(Oracle(block.state_dict(), **TABLE_BY_NAME[name][1])(x.numpy()))
            torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)

    @given(
        n=st.integers(0, 3), c=st.integers(1, 70), h=st.integers(1, 20), w=st.integers(1, 20), r=st.integers(1, 50),
        k=st.sampled_from([1, 3, 5, 7, 9]), name=st.sampled_from(["paper", "official", "channel only", "spatial only"]),
        channels_last=st.booleans(), seed=st.integers(0, 2**16),
    )  # fmt: skip
    @settings(max_examples=80, deadline=None)
    def test_any_shape(self, n, c, h, w, r, k, name, channels_last, seed):
        from tests.nn.conformance import TABLE_BY_NAME

        torch.manual_seed(seed)
        block = CBAM(c, r, k, dtype=torch.float64, **TABLE_BY_NAME[name][0]).eval()
        x = torch.randn(n, c, h, w, dtype=torch.float64)
        got, expected = both(block, x.to(memory_format=torch.channels_last) if channels_last else x)
        torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)

    @every_dtype
    def test_unbatched_map(self, dtype):
        block, x = cases.block_of("official", 20, dtype), torch.randn(20, 7, 5).to(dtype)
        with set_backend("cpp"):
            assert torch.equal(block(x), block(x[None])[0])

    @pytest.mark.parametrize(
        "cut",
        [
            lambda x: x[::2, 1::2, 1:8:2, :7],
            lambda x: x.transpose(2, 3),
            lambda x: x.to(memory_format=torch.channels_last)[:, 3:19, 2:, 2:],
            lambda x: x.to(memory_format=torch.channels_last)[:, ::3],
            lambda x: x[:1].expand(4, -1, -1, -1),
            lambda x: x.permute(3, 1, 0, 2),
        ],
        ids=["sliced", "transposed", "window", "every third channel", "expanded", "permuted"],
    )
    def test_maps_with_gaps_are_taken(self, cut):
        x = cut(torch.randn(4, 20, 10, 10))
        block = cases.block_of("paper", x.shape[1])
        got, expected = both(block, x)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    @every_layout
    def test_memory_format_is_kept(self, layout):
        x = torch.randn(2, 20, 6, 5).contiguous(memory_format=layout)
        with set_backend("cpp"):
            y = CBAM(20)(x)
        assert y.stride() == x.stride()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_weights_in_another_dtype_than_the_map(self, dtype):
        block, x = cases.block_of("official", 12).to(dtype), torch.randn(2, 12, 6, 5)
        got, expected = both(block, x)
        assert got.dtype == torch.float32
        # Plain torch runs the norm of a half-precision module in that precision.
        torch.testing.assert_close(got, expected, atol=0.02 if dtype.itemsize == 2 else 1e-5, rtol=0.01)

    def test_functions_take_the_same_way(self):
        x, block = torch.randn(2, 12, 5, 6), cases.block_of("mlp bias", 12)
        mlp, kernel = block.channel_attention.mlp, block.spatial_attention.conv.weight
        w = mlp[0].weight[:, :, 0, 0], mlp[2].weight[:, :, 0, 0]
        biases = mlp[0].bias, mlp[2].bias
        with set_backend("cpp"):
            assert torch.equal(F.cbam(x, *w, kernel, *biases), block(x))
            assert F.cbam(x, *w, kernel, *biases).grad_fn.name() == "_AttendBackward"
            assert torch.equal(
                F.channel_attention(x, *w, *biases, scale=2.0) / 2, F.channel_attention(x, *w, *biases)
            )


class TestSpecialValues:
    @every_dtype
    @every_layout
    @pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
    def test_what_is_not_finite_ends_where_plain_torch_puts_it(self, value, dtype, layout):
        for name in ("paper", "channel only", "spatial only", "max pooling", "max descriptor", "hardsigmoid"):
            block = cases.block_of(name, 19, dtype)
            x = torch.randn(3, 19, 9, 8).to(dtype).contiguous(memory_format=layout)
            x[1, 7, 4, 3] = value
            got, expected = both(block, x)
            assert torch.equal(got.isnan(), expected.isnan()), name
            assert torch.equal(got.isinf(), expected.isinf()), name
            torch.testing.assert_close(got[::2], expected[::2], atol=0.02, rtol=0.02)

    @every_layout
    def test_nan_wins_wherever_it_stands(self, layout):
        """In every lane of a vector and in the rest behind the last full one."""
        block = CBAM(1, 1, arrangement="channel", channel_pooling="max")
        spatial = CBAM(37, 1, 1, arrangement="spatial", spatial_descriptor="max")
        for index in range(37):
            x = torch.full((1, 1, 1, 37), 5.0).contiguous(memory_format=layout)
            x[..., index] = NAN
            with set_backend("cpp"):
                assert block(x).isnan().all(), index
                assert spatial(x.transpose(1, 3).contiguous(memory_format=layout)).isnan().all(), index

    @every_layout
    def test_denormal_numbers_are_kept(self, layout):
        x = torch.full((1, 8, 4, 5), 1e-41).contiguous(memory_format=layout)
        block = CBAM(8)
        block.set_identity()
        got, expected = both(block, x)
        assert torch.equal(got, x)
        assert torch.equal(expected, x)

    def test_an_average_of_large_half_numbers_does_not_overflow(self):
        x = torch.full((1, 4, 112, 112), 600.0, dtype=torch.float16)
        got, expected = both(CBAM(4), x)
        assert got.isfinite().all()
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=0.5)

    def test_large_logits_do_not_overflow(self):
        block = CBAM(8, 1)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_(torch.randn_like(parameter) * 1e4)
        got, expected = both(block, torch.randn(2, 8, 5, 5))
        torch.testing.assert_close(got, expected)
        assert got.isfinite().all()


class TestBits:
    @every_dtype
    @every_layout
    def test_identity(self, dtype, layout):
        for name in cases.DIALECTS:
            block = cases.block_of(name, 24, dtype, training=True)
            block.set_identity()
            x = (torch.randn(2, 24, 5, 7) * 100).to(dtype).contiguous(memory_format=layout)
            with set_backend("cpp"):
                assert torch.equal(block(x), x), name

    @every_layout
    @pytest.mark.parametrize(
        "shape", [(1, 64, 56, 56), (3, 200, 14, 14), (1, 2048, 7, 7), (16, 8, 5, 5)], ids=str
    )
    def test_two_runs_and_any_number_of_threads_give_the_same(self, shape, layout):
        block = cases.block_of("official", shape[1], training=True)
        x, grad = cases.maps(shape, torch.float32, layout)
        runs = []
        try:
            for threads in (1, 2, 1, 2, 3):
                torch.set_num_threads(threads)
                runs.append(cases.outcome(block, x, grad, "cpp"))
        finally:
            torch.set_num_threads(1)
        for name, expected in runs[0].items():
            for run in runs[1:]:
                assert torch.equal(run[name].view(torch.int32), expected.view(torch.int32)), name

    def test_a_batch_is_its_samples(self):
        block, x = cases.block_of("official", 24), torch.randn(5, 24, 9, 9)
        with set_backend("cpp"):
            whole = block(x)
            for i in range(5):
                torch.testing.assert_close(block(x[i : i + 1]), whole[i : i + 1], atol=1e-6, rtol=1e-6)

    def test_the_other_layout_gives_nearly_the_same(self):
        block, x = cases.block_of("paper", 24), torch.randn(2, 24, 9, 9)
        with set_backend("cpp"):
            torch.testing.assert_close(
                block(x), block(x.to(memory_format=torch.channels_last)), atol=1e-6, rtol=1e-5
            )
