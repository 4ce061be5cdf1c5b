"""torch.ops.cbam.forward for torch's own tools: opcheck, compile, export, ONNX, the FLOP counter, fx."""

import copy
import io

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cbam import CBAM, set_backend
from cbam.ops import registration
from cbam.ops.signature import BackwardArguments, ForwardArguments, NormBefore, Weights, flat
from tests.ops import cases
from tests.ops.library import needs_operator

pytestmark = needs_operator


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    with set_backend("cpp"):
        yield
    torch._dynamo.reset()


def arguments(
    name,
    training=False,
    dtype=torch.float32,
    layout=torch.contiguous_format,
    keep=True,
    grad=True,
    epilogue=None,
):
    """The operator's arguments for one module; `epilogue`: with a residual, and whether a ReLU follows."""
    block = cases.block_of(name, 12, dtype, training)
    x = torch.randn(2, 12, 5, 4).to(dtype).contiguous(memory_format=layout).requires_grad_(grad)
    own = torch.float64 if dtype == torch.float64 else torch.float32
    weights = Weights(
        *(
            w if w is None else w.detach().to(own).requires_grad_(grad and w.requires_grad)
            for w in block.operator_weights(x)
        )
    )
    residual = None if epilogue is None else torch.randn_like(x).requires_grad_(grad)
    config = block.operator_config()._replace(relu=bool(epilogue))
    return flat(ForwardArguments(x, weights, NormBefore(), residual, config, keep))


class TestOpcheck:
    @pytest.mark.parametrize(("name", "training"), cases.MODES, ids=str)
    def test_forward_and_its_derivative(self, name, training):
        if name == "spatial first":
            pytest.skip("two calls, each like those of the arrangements channel and spatial")
        torch.library.opcheck(torch.ops.cbam.forward.default, arguments(name, training))

    @pytest.mark.parametrize("relu", [False, True])
    @pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))
    def test_with_the_end_of_a_block(self, layout, relu):
        torch.library.opcheck(
            torch.ops.cbam.forward.default, arguments("official", True, layout=layout, epilogue=relu)
        )

    @pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
    @pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))
    def test_dtypes_and_layouts(self, dtype, layout):
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(
            torch.ops.cbam.forward.default, arguments("official", True, dtype, layout), test_utils=checks
        )

    @pytest.mark.parametrize(
        ("name", "training"), [("official", True), ("paper", False), ("channel only", False)]
    )
    @pytest.mark.parametrize("epilogue", [None, False, True])
    def test_backward(self, name, training, epilogue):
        call = ForwardArguments.parse(arguments(name, training, grad=False, epilogue=epilogue))
        y, saved, argmax, _ = torch.ops.cbam.forward.default(*flat(call))
        out, grad = y if epilogue else None, torch.randn_like(y)
        backward = BackwardArguments(
            grad, call.x, call.weights, call.before, out, saved, argmax, call.config, pre_training=False
        )
        torch.library.opcheck(torch.ops.cbam.backward.default, flat(backward))


def nodes(graph):
    return [
        str(node.target)
        for node in graph.nodes
        if node.op == "call_function" and "getitem" not in str(node.target)
    ]


class TestCompile:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["paper", "official", "channel only", "spatial only"])
    def test_one_node_with_dynamic_shapes(self, name):
        graphs = []

        def look(module, inputs):
            graphs.append(module.graph)
            return module

        block = cases.block_of(name, 8)
        compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=look)
        for shape in ((2, 8, 5, 7), (3, 8, 4, 6)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), block(x))
        assert len(graphs) == 1, "the second shape must not compile again"
        assert nodes(graphs[0]) == ["cbam.forward.default"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "training"), [("paper", False), ("official", True), ("spatial first", False)]
    )
    @pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))
    def test_forward_backward_and_running_statistics(self, name, training, layout):
        block = cases.block_of(name, 8, training=training)
        twin = copy.deepcopy(block)
        compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in ((2, 8, 5, 7), (3, 8, 4, 6)):
            x = torch.randn(shape).contiguous(memory_format=layout)
            results = []
            for run in (block, compiled):
                leaf = x.clone().requires_grad_()
                y = run(leaf)
                y.square().sum().backward()
                results.append((y.detach(), leaf.grad))
            torch.testing.assert_close(results[0], results[1])
            assert results[1][0].stride() == x.stride()
        for got, expected in zip(
            [*twin.buffers(), *(p.grad for p in twin.parameters())],
            [*block.buffers(), *(p.grad for p in block.parameters())],
            strict=True,
        ):
            torch.testing.assert_close(got, expected)

    @pytest.mark.slow
    def test_the_code_generator_itself(self):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), CBAM(8, preset="official"), torch.nn.ReLU())
        twin = copy.deepcopy(net)
        x = torch.randn(2, 3, 9, 8)
        compiled = torch.compile(twin, fullgraph=True)
        for run in (net, compiled):
            run(x).square().sum().backward()
        for got, expected in zip(twin.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    def test_the_backend_is_watched(self):
        graphs = []

        def look(module, inputs):
            graphs.append(module.graph)
            return module

        compiled = torch.compile(CBAM(8), fullgraph=True, backend=look)
        compiled(torch.randn(1, 8, 4, 4))
        with set_backend("eager"):
            compiled(torch.randn(1, 8, 4, 4))
        assert nodes(graphs[0]) == ["cbam.forward.default"]
        assert "cbam.forward.default" not in nodes(graphs[1])


class TestExport:
    @pytest.mark.slow
    @pytest.mark.parametrize("strict", [False, True])
    def test_one_node_that_saves_and_loads(self, strict):
        block = cases.block_of("official", 8)
        auto = torch.export.Dim.AUTO
        program = torch.export.export(
            block, (torch.randn(2, 8, 5, 7),), dynamic_shapes=({0: auto, 2: auto, 3: auto},), strict=strict
        )
        assert nodes(program.graph).count("cbam.forward.default") == 1
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        x = torch.randn(3, 8, 6, 4)
        torch.testing.assert_close(torch.export.load(file).module()(x), block(x))
        assert nodes(program.run_decompositions().graph).count("cbam.forward.default") == 1, (
            "left whole by default"
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("name", cases.DIALECTS)
    def test_it_opens_into_plain_operations(self, name):
        block = cases.block_of(name, 8)
        program = torch.export.export(block, (torch.randn(2, 8, 5, 7),))
        table = {
            **torch.export.default_decompositions(),
            **torch._decomp.get_decompositions([torch.ops.cbam.forward.default]),
        }
        opened = program.run_decompositions(table)
        assert all(name.startswith("aten.") for name in nodes(opened.graph))
        x = torch.randn(2, 8, 5, 7)
        torch.testing.assert_close(opened.module()(x), block(x))

    def test_what_is_kept_for_backward_is_never_decomposed(self):
        """Only the operator's own backward can read it: a decomposition would hand it zeros."""
        assert registration.decomposed(*arguments("paper")) is NotImplemented
        x, *_ = plain = arguments("paper", keep=False, grad=False)
        y, saved, argmax, _ = registration.decomposed(*plain)
        assert (y.shape, saved.numel(), argmax.numel()) == (x.shape, 0, 0)

    @pytest.mark.slow
    def test_an_exported_program_still_trains(self):
        block = cases.block_of("official", 8, training=True)
        twin = torch.export.export(copy.deepcopy(block), (torch.randn(2, 8, 5, 7),)).module()
        x = torch.randn(2, 8, 5, 7)
        for run in (block, twin):
            run(x).square().sum().backward()
        got = dict(twin.named_parameters())
        for name, expected in block.named_parameters():
            torch.testing.assert_close(got[name].grad, expected.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dict(twin.named_buffers()), dict(block.named_buffers()))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["paper", "official", "hardsigmoid", "spatial first", "parallel"])
    def test_onnx_file_gives_the_same(self, name, tmp_path):
        """The file knows no operator of ours: onnxruntime runs it, at another batch and size."""
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        block = cases.block_of(name, 8) if name != "parallel" else CBAM(8, arrangement="parallel").eval()
        dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
        with set_backend("auto"):
            torch.onnx.export(
                block,
                (torch.randn(2, 8, 5, 7),),
                tmp_path / "block.onnx",
                dynamo=True,
                dynamic_shapes=(dims,),
                verbose=False,
            )
        session = runtime.InferenceSession(tmp_path / "block.onnx")
        x = torch.randn(3, 8, 6, 4)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with set_backend("auto"):
            torch.testing.assert_close(torch.from_numpy(got), block(x).detach(), rtol=1e-4, atol=1e-5)


class TestCounters:
    def test_flops(self):
        block, x = CBAM(16, 4), torch.randn(2, 16, 6, 5, requires_grad=True)
        totals = []
        for backend in ("cpp", "eager"):
            with set_backend(backend), FlopCounterMode(display=False) as counter:
                block(x)
            totals.append(counter.get_total_flops())
        assert totals[0] == totals[1] == 2 * 2 * (2 * 2 * 16 * 4 + 2 * 49 * 30)

    def test_flops_of_backward(self):
        block, x = CBAM(16, 4), torch.randn(2, 16, 6, 5, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            block(x).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * 2 * (2 * 2 * 16 * 4 + 2 * 49 * 30)


class TestFx:
    def test_a_traced_model_runs_the_operator(self):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), CBAM(8, preset="official"))
        traced = torch.fx.symbolic_trace(net)
        assert [(node.op, node.target) for node in traced.graph.nodes][2] == ("call_module", "1")
        x = torch.randn(2, 3, 8, 8)
        traced.train()  # what is traced goes on following the flag
        net.load_state_dict(traced.state_dict())
        assert torch.equal(traced(x), net.train()(x))
        assert torch.equal(traced.eval()(x), net.eval()(x))
        assert "_AttendBackward" in traced(x).grad_fn.name()

    def test_a_module_with_hooks_is_traced_through(self):
        net = torch.nn.Sequential(CBAM(8))
        net[0].register_forward_hook(lambda module, inputs, output: output * 2)
        traced = torch.fx.symbolic_trace(net)
        x = torch.randn(1, 8, 4, 4)
        with set_backend("auto"):
            torch.testing.assert_close(traced(x), net(x))
