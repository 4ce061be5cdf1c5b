"""Which backend computes what: by choice, by force, and where the operator cannot run."""

import contextlib

import pytest
import torch
from torch import nn

import cbam
from cbam import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation, set_backend
from cbam.errors import CBAMError
from cbam.nn.route import route
from cbam.ops import dispatch, fused
from tests.ops import cases
from tests.ops.library import needs_operator


@pytest.fixture
def calls(monkeypatch):
    """How often the operator was called."""
    made = []
    original = fused.attend

    def counted(*arguments, **named):
        made.append(1)
        return original(*arguments, **named)

    monkeypatch.setattr(fused, "attend", counted)
    return made


X = torch.randn(2, 16, 6, 5)


class TestChoice:
    def test_a_call_stays_until_the_next(self):
        before = dispatch.backend()
        try:
            set_backend("eager")
            assert dispatch.backend() == "eager"
            set_backend("auto")
            assert dispatch.backend() == "auto"
        finally:
            set_backend(before)

    def test_a_block_ends(self):
        with set_backend("eager"):
            with set_backend("auto") as choice:
                assert repr(choice) == "<backend 'auto'>"
            assert dispatch.backend() == "eager"
            with pytest.raises(RuntimeError, match="on purpose"), set_backend("auto"):
                raise RuntimeError("on purpose")
            assert dispatch.backend() == "eager"

    def test_blocks_of_two_threads_may_overlap(self):
        before = dispatch.backend()
        first, second = set_backend("eager"), set_backend("auto")
        with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
            one.enter_context(first)
            other.enter_context(second)
            one.close()
            assert dispatch.backend() == "auto"
        assert dispatch.backend() == before
        assert not {first, second} & {*dispatch._settings}

    def test_a_statement_in_a_block_ends_with_it(self):
        before = len(dispatch._settings)
        with set_backend("eager"):
            for _ in range(5):
                set_backend("auto")
            assert dispatch.backend() == "auto"
            assert len(dispatch._settings) < before + 4
        assert len(dispatch._settings) == before

    def test_unknown_names(self, monkeypatch):
        with pytest.raises(
            CBAMError, match=r"unknown backend 'ccp'. Did you mean 'cpp'\? Valid: 'auto', 'eager', 'cpp'"
        ):
            set_backend("ccp")
        monkeypatch.setattr(dispatch, "_chosen", None)
        monkeypatch.setenv("CBAM_BACKEND", "eagre")
        dispatch._read_environment.cache_clear()  # as in a new process; a wrong name is not kept
        with pytest.raises(CBAMError, match=r"unknown backend in CBAM_BACKEND 'eagre'. Did you mean 'eager'"):
            CBAM(16)(X)

    def test_environment(self, monkeypatch, calls):
        monkeypatch.setattr(dispatch, "_chosen", None)
        monkeypatch.setenv("CBAM_BACKEND", "eager")
        dispatch._read_environment.cache_clear()
        try:
            CBAM(16)(X)
            assert not calls
        finally:
            dispatch._read_environment.cache_clear()

    @needs_operator
    @pytest.mark.parametrize(
        ("build", "expected"),
        [
            (lambda: CBAM(16), 1),
            (lambda: CBAM(16, preset="official"), 1),
            (lambda: CBAM(16, arrangement="channel"), 1),
            (lambda: CBAM(16, arrangement="spatial"), 1),
            (lambda: CBAM(16, arrangement="spatial-channel"), 2),
            (lambda: CBAM(16, arrangement="parallel"), 0),
            (lambda: CBAM(16, spatial_descriptor="conv"), 1),  # the channel gate
            (lambda: ChannelAttention(16), 1),
            (lambda: SpatialAttention(), 1),
            (lambda: SqueezeExcitation(16), 1),
        ],
    )
    def test_auto_takes_the_operator_where_it_can(self, build, expected, calls):
        block = build()
        with set_backend("auto"):
            block(X)
            assert len(calls) == expected
            way = route(block)[0]
        assert way == (
            "operator" if expected == 2 or (expected and not hasattr(block, "arrangement")) else way
        )
        with set_backend("eager"):
            block(X)
        assert len(calls) == expected


class TestBackends:
    @pytest.mark.parametrize("operator", dispatch.OPERATORS, ids=lambda o: o.name)
    def test_each_offers_what_dispatch_asks_for(self, operator):
        for name in ("name", "title", "device"):
            assert isinstance(getattr(operator, name), str)
        assert operator.name in dispatch.BACKENDS
        assert operator.device_types
        reason = operator.unavailable_reason()
        assert reason is None or len(reason) > 20
        assert operator.unsupported_reason(X) is None
        for name in ("forward", "backward"):
            assert callable(getattr(operator, name))

    def test_the_first_for_a_device_is_the_default(self, monkeypatch):
        for kind in {kind for operator in dispatch.OPERATORS for kind in operator.device_types}:
            expected = next(o for o in dispatch.OPERATORS if kind in o.device_types)
            with set_backend("auto"):
                assert dispatch.operator_on(kind) is expected
            for operator in dispatch.OPERATORS:
                monkeypatch.setattr(dispatch, "_chosen", operator.name)
                assert dispatch.operator_on(kind) is (operator if kind in operator.device_types else None)
        with set_backend("eager"):
            assert dispatch.operator_on("cpu") is None

    @pytest.mark.parametrize(
        ("backend", "reason"),
        [
            ("auto", "there is no operator for meta devices"),
            ("cpp", "the map is on meta; the C++ operator runs on the CPU"),
            ("triton", "the map is on meta; the Triton operator runs on a GPU"),
        ],
    )
    def test_a_device_without_an_operator(self, backend, reason, monkeypatch):
        monkeypatch.setattr(dispatch, "_chosen", backend)
        block = CBAM(16, device="meta")
        assert dispatch.unfused_reason(X.to("meta"), block.operator_weights()) == reason
        assert dispatch._unfused_reason_in_compiler(X.to("meta"), block.operator_weights()) == reason


@needs_operator
class TestForced:
    @pytest.mark.parametrize(
        ("block", "x", "why"),
        [
            (CBAM(16, arrangement="parallel"), X, "one call does not compute arrangement 'parallel'"),
            (CBAM(16, spatial_descriptor="conv"), X, "learned descriptor"),
            (
                CBAM(16, device="meta"),
                X.to("meta"),
                "the map is on meta; the C\\+\\+ operator runs on the CPU",
            ),
            (CBAM(16, device="meta"), X, "a weight is a Parameter of torch.float32 on meta"),
            (CBAM(16), X.to(torch.float8_e4m3fn), "float8"),
        ],
    )
    def test_what_cannot_run_raises_with_the_reason(self, block, x, why):
        with set_backend("cpp"), pytest.raises(CBAMError, match=f"backend 'cpp' cannot run here: .*{why}"):
            block(x)
        with set_backend("cpp"):
            assert route(block, x)[0] == "error"

    def test_functions(self):
        w = torch.rand(2, 16), torch.rand(16, 2), torch.rand(1, 2, 7, 7)
        with set_backend("cpp"), pytest.raises(CBAMError, match="parallel"):
            cbam.functional.cbam(X, *w, arrangement="parallel")


def eagerly(block, run):
    """What `run` gives with the operator at hand and without: equal bits, since it must not be used."""
    with set_backend("auto"):
        got = run(block)
    with set_backend("eager"):
        return got, run(block)


@needs_operator
class TestWhereItCannotSeePlainMemory:
    """`auto` gives what plain torch gives, bit for bit."""

    BLOCK = cases.block_of("paper", 16)

    @pytest.mark.parametrize(
        "run",
        [
            lambda b: torch.vmap(b)(X),
            lambda b: torch.func.grad(lambda x: b(x).square().sum())(X),
            lambda b: torch.func.vmap(torch.func.grad(lambda x: b(x).square().sum()))(X),
            lambda b: torch.func.jvp(b, (X,), (X,))[1],
            lambda b: torch.func.jacrev(lambda x: b(x).mean((1, 2, 3)))(X),
        ],
        ids=["vmap", "grad", "vmap of grad", "jvp", "jacrev"],
    )
    def test_transforms(self, run, calls):
        got, expected = eagerly(self.BLOCK, run)
        assert torch.equal(got, expected)
        assert not calls

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_jit_trace(self):
        traced = torch.jit.trace(self.BLOCK, X)  # its own check calls the module as usual
        assert "cbam::" not in str(traced.inlined_graph)
        got, expected = eagerly(self.BLOCK, lambda _: traced(X))
        assert torch.equal(got, expected)

    def test_forward_mode_derivatives(self, calls):
        from torch.autograd import forward_ad

        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(self.BLOCK(forward_ad.make_dual(X, torch.ones_like(X)))).tangent
        assert tangent is not None
        assert not calls

    def test_subclasses(self, calls):
        class Tagged(torch.Tensor):
            pass

        assert isinstance(self.BLOCK(X.as_subclass(Tagged)), Tagged)
        assert not calls

    def test_fake_tensors(self, calls):
        from torch._subclasses import FakeTensorMode

        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert self.BLOCK(mode.from_tensor(X)).shape == X.shape
        assert not calls

    def test_a_gate_scale_that_learns(self, calls):
        block = CBAM(16, gate_scale=2.0)
        gate = block.channel_attention
        scale = nn.Parameter(gate.gate_scale.clone())
        gate._buffers["gate_scale"] = scale
        block(X).sum().backward()
        assert scale.grad is not None

    def test_autocast(self):
        with torch.autocast("cpu", torch.bfloat16), set_backend("cpp"):
            inside = self.BLOCK(X)
        assert inside.dtype == torch.float32
        with set_backend("cpp"):
            assert torch.equal(inside, self.BLOCK(X))


@needs_operator
class TestMeasuredByModes:
    def test_a_dispatch_mode_sees_the_call(self):
        from torch.utils._python_dispatch import TorchDispatchMode

        class Listing(TorchDispatchMode):
            seen = ()

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                self.seen += (str(func),)
                return func(*args, **(kwargs or {}))

        x = X.clone().requires_grad_()
        block = CBAM(16)
        with Listing() as listing, set_backend("cpp"):
            block(x).sum().backward()
        assert "cbam.forward.default" in listing.seen
        assert "cbam.backward.default" in listing.seen
