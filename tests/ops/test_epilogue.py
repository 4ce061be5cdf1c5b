"""The end of a residual block inside the operator: relu(attention(norm(u)) + residual) and its gradients."""

import copy

import pytest
import torch

from cbam import CBAM, set_backend
from cbam.ops import fused
from cbam.ops.signature import NormBefore, OperatorConfig, Weights
from tests.ops import cases
from tests.ops.blocks import PLAIN, block_of, gradients, with_and_without_relu
from tests.ops.cases import WithResidual
from tests.ops.library import needs_operator

pytestmark = needs_operator
every_layout = pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
one_call = pytest.mark.parametrize(
    ("name", "training"), [mode for mode in cases.MODES if mode[0] != "spatial first"], ids=str
)
NAN, INF = float("nan"), float("inf")
# Of the norm in front: none, running statistics, the batch's.
FRONTS = {"no norm": None, "norm": False, "norm in training": True}
every_front = pytest.mark.parametrize("front", FRONTS.values(), ids=list(FRONTS))


@pytest.fixture(autouse=True)
def operator():
    with set_backend("cpp"):
        yield


def away_from_zero(block, x, distance):
    """Move the residual until no sum is so close to zero that rounding decides what passes the ReLU."""
    exact = copy.deepcopy(block).double()
    exact.relu = False
    with torch.no_grad(), set_backend("eager"):
        y = exact(x.double())
        step = torch.where(y < 0, -2 * distance, 2 * distance).where(y.abs() < distance, 0)
        block.residual.add_(step.to(block.residual.dtype))


def same_bits(got, expected):
    """Whether two tensors are the same to the last bit, the sign of zero and NaN's place included."""
    got, expected = (t.detach().contiguous() for t in (got, expected))
    equal = (got == expected) & (got.signbit() == expected.signbit())
    return got.shape == expected.shape and bool((equal | (got.isnan() & expected.isnan())).all())


class TestBitsOfTheSteps:
    """The operator, torch's sum and torch's ReLU, one after the other, are what a call in one must return."""

    @one_call
    @every_dtype
    @every_layout
    @with_and_without_relu
    def test_every_shape(self, name, training, dtype, layout, relu):
        for shape in cases.SHAPES:
            if cases.single_value(name, shape, training):
                continue
            block = block_of(name, shape, dtype, training, relu)
            x, grad = cases.maps(shape, dtype, layout)
            got = gradients(block.in_one_call, block, x, grad)
            expected = gradients(block.in_two_steps, block, x, grad)
            assert (got["y"].dtype, got["y"].stride()) == (dtype, x.stride())
            for key, value in expected.items():
                assert same_bits(got[key], value), (key, shape)

    @every_front
    @every_dtype
    @every_layout
    @with_and_without_relu
    def test_a_norm_in_front(self, front, dtype, layout, relu):
        for name, training in (("official", True), ("paper", False), ("channel only", False)):
            for shape in ((2, 33, 17, 9), (3, 20, 5, 7), (5, 128, 28, 28)):
                block = block_of(name, shape, dtype, training, relu, front)
                x, grad = cases.maps(shape, dtype, layout)
                got = gradients(block.in_one_call, block, x, grad)
                for key, value in gradients(block.in_two_steps, block, x, grad).items():
                    assert same_bits(got[key], value), (name, key, shape)

    @every_layout
    def test_a_map_that_is_written_past_the_caches(self, layout):
        shape = (2, 256, 64, 67)
        block = block_of("paper", shape)
        x, grad = cases.maps(shape, torch.float32, layout)
        got = gradients(block.in_one_call, block, x, grad)
        for key, value in gradients(block.in_two_steps, block, x, grad).items():
            assert same_bits(got[key], value), key

    @every_dtype
    @every_layout
    @with_and_without_relu
    def test_what_is_not_finite_and_signed_zeros(self, dtype, layout, relu):
        shape = (2, 37, 5, 6)
        values = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0])
        generator = torch.Generator().manual_seed(0)
        pick = torch.randint(len(values), (2, *shape), generator=generator)
        x, residual = values[pick[0]].clone(), values[pick[1]]
        x[:, :3] = values[3:5][pick[0][:, :3] % 2]  # finite, next to a residual that may not be
        identity = CBAM(37, 4, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        identity.set_identity()
        for gates in (identity, cases.block_of("paper", 37, dtype)):
            block = WithResidual(gates, residual.to(dtype), relu)
            for leaf in (x, x.nan_to_num(0.5, 2.0, -2.0)):
                leaf = leaf.to(dtype).contiguous(memory_format=layout)
                with torch.no_grad():
                    assert same_bits(block.in_one_call(leaf), block.in_two_steps(leaf))

    def test_every_lane_passes_nan(self):
        """Out of the sum forward, and the gradient where the output is NaN; nothing at a sum of zero."""
        for index in range(37):
            x = torch.ones(1, 37, 1, 1)
            residual = torch.full_like(x, -2.0)
            residual[0, index], residual[0, (index + 1) % 37] = NAN, -1.0
            block = CBAM(37, 4)
            block.set_identity()
            with_residual = WithResidual(block, residual)
            y = with_residual(x)
            assert y.isnan().nonzero()[:, 1].tolist() == [index]
            assert y.nan_to_num(0).eq(0).all()
            y.backward(torch.ones_like(x))
            assert with_residual.residual.grad.flatten().nonzero().flatten().tolist() == [index]


class TestAgainstFloat64:
    @pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
    @one_call
    @every_layout
    def test_every_shape(self, name, training, dtype, layout):
        for shape in cases.SHAPES:
            if cases.single_value(name, shape, training):
                continue
            block = block_of(name, shape, dtype, training)
            x, grad = cases.clear_maps(block.attention, shape, dtype, layout)
            away_from_zero(block, x, 0.1 if dtype.itemsize == 2 else 1e-3)
            cases.assert_as_good_as_eager(block, x, grad)

    @every_front
    @every_layout
    @with_and_without_relu
    def test_against_differences(self, front, layout, relu):
        for name, training in (("official", True), ("paper", False)):
            block = block_of(name, (2, 5, 3, 4), torch.float64, training, relu, front)
            x = cases.maps((2, 5, 3, 4), torch.float64, layout)[0].requires_grad_()
            away_from_zero(block, x, 0.05)
            names = list(dict(block.named_parameters()))

            def run(x, *values, block=block, names=names):
                return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

            assert "_Attend" in run(x, *block.parameters()).grad_fn.name()
            assert torch.autograd.gradcheck(run, (x, *block.parameters()))

    @with_and_without_relu
    def test_the_second_derivative(self, relu):
        block = block_of("official", (2, 3, 3, 2), torch.float64, True, relu, True)
        x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
        away_from_zero(block, x, 0.05)
        names = list(dict(block.named_parameters()))

        def run(x, *values):
            return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradgradcheck(run, (x, *block.parameters()), rtol=1e-3, atol=1e-4)

    @with_and_without_relu
    def test_the_first_derivative_again_is_the_first(self, relu):
        block = block_of("paper", (2, 8, 5, 4), torch.float64, relu=relu)
        x = torch.randn(2, 8, 5, 4, dtype=torch.float64, requires_grad=True)
        tensors = [x, *block.parameters()]
        once, again = (
            torch.autograd.grad(block(x).square().sum(), tensors, create_graph=g) for g in (False, True)
        )
        for got, expected in zip(again, once, strict=True):
            torch.testing.assert_close(got, expected)


RESIDUALS = {
    "other layout": lambda r: (
        r.contiguous() if r.stride(1) == 1 else r.contiguous(memory_format=torch.channels_last)
    ),
    "expanded": lambda r: r[:1, :, :1].expand_as(r),
    "transposed": lambda r: r.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda r: torch.cat([r, r], 3)[..., ::2],
    "every other channel": lambda r: torch.cat([r, r], 1)[:, ::2],
}


class TestResidual:
    @pytest.mark.parametrize("stretch", RESIDUALS.values(), ids=list(RESIDUALS))
    @every_layout
    @with_and_without_relu
    def test_in_any_layout(self, stretch, layout, relu):
        block = block_of("paper", (2, 20, 6, 5), relu=relu)
        x, grad = cases.maps((2, 20, 6, 5), torch.float32, layout)
        base = torch.randn_like(x)
        results = []
        for run in (block.in_one_call, block.in_two_steps):
            leaf, rest = x.clone().requires_grad_(), base.clone().requires_grad_()
            block.__dict__["residual"] = stretch(rest)  # in the parameter's place
            y = run(leaf)
            results.append((y, *torch.autograd.grad(y, [leaf, rest], stretch(grad))))
        assert results[0][0].stride() == x.stride()
        assert all(map(same_bits, *results))

    def test_unbatched(self):
        block, x, rest = (
            cases.block_of("paper", 20),
            torch.randn(20, 7, 5),
            torch.randn(20, 7, 5, requires_grad=True),
        )
        settings = block.operator_config()._replace(relu=True)
        y, _ = fused.attend(x, block.operator_weights(x), settings, residual=rest)
        whole, _ = fused.attend(x[None], block.operator_weights(x), settings, residual=rest[None])
        assert torch.equal(y, whole[0])
        y.sum().backward()
        assert torch.equal(rest.grad, y.gt(0).float())

    @with_and_without_relu
    def test_it_may_be_the_map_itself(self, relu):
        block, (x, grad) = cases.block_of("paper", 20), cases.maps((2, 20, 6, 5), *PLAIN)
        settings = block.operator_config()._replace(relu=relu)
        results = []
        for together in (True, False):
            leaf = x.clone().requires_grad_()
            weights = block.operator_weights(leaf)
            if together:
                y, _ = fused.attend(leaf, weights, settings, residual=leaf)
            else:
                y = block(leaf) + leaf
                y = y.relu() if relu else y
            y.backward(grad)
            results.append((y, leaf.grad))
        assert all(map(same_bits, *results))

    def test_without_a_relu_the_gradient_is_handed_on_uncopied(self):
        block = block_of("paper", (2, 20, 6, 5), relu=False)
        x, grad = cases.maps((2, 20, 6, 5), torch.float32, torch.channels_last)
        (found,) = torch.autograd.grad(block(x), block.residual, grad)
        assert found.data_ptr() == grad.data_ptr()

    @with_and_without_relu
    @pytest.mark.parametrize("wanted", ["x", "residual", "attention.channel_attention.mlp.0.weight"])
    @pytest.mark.parametrize("again", [False, True])
    def test_one_gradient_alone(self, wanted, relu, again):
        block = block_of("paper", (2, 8, 5, 4), relu=relu).requires_grad_(False)
        x = torch.randn(2, 8, 5, 4)
        tensors = {**dict(block.named_parameters()), "x": x}
        tensors[wanted].requires_grad_()
        (found,) = torch.autograd.grad(block(x).square().sum(), tensors[wanted], create_graph=again)
        expected = gradients(block.requires_grad_().in_two_steps, block, x, 2 * block(x).detach())[wanted]
        torch.testing.assert_close(found, expected)

    def test_what_does_not_fit_is_refused(self):
        x, weights = torch.randn(2, 8, 5, 4), Weights(kernel=torch.randn(1, 2, 3, 3))
        settings = OperatorConfig(descriptor=3, relu=True)
        with pytest.raises(RuntimeError, match="a ReLU comes after a residual only"):
            fused.attend(x, weights, settings)
        for wrong in (x.double(), x[:1], x[:, :4], x[..., :2], torch.randn(2, 8, 4, 5)):
            with pytest.raises(RuntimeError, match="the residual is not of the map's"):
                fused.attend(x, weights, settings, residual=wrong)
        other = x.contiguous(memory_format=torch.channels_last)
        with pytest.raises(RuntimeError, match="or not in its memory format"):
            torch.ops.cbam.forward(x, *weights, *NormBefore(), other, *settings, False)


class TestBits:
    @every_layout
    @pytest.mark.parametrize("front", [None, True], ids=["no norm", "norm in training"])
    @pytest.mark.parametrize(
        "shape", [(1, 64, 56, 56), (3, 200, 14, 14), (1, 2048, 7, 7), (16, 8, 5, 5)], ids=str
    )
    def test_two_runs_and_any_number_of_threads_give_the_same(self, shape, layout, front):
        block = block_of("official", shape, training=True, front=front)
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
                assert same_bits(run[name], expected), name
