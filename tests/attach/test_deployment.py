"""Ways out of Python: torch.jit.trace with its own check, torch.jit.script, torch.export in plain operations."""

import pytest
import torch
from torch import nn

import cbam
from cbam.errors import CBAMError
from tests.attach.networks import Block, Net, move_gates

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
OTHER = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def attached(**options):
    torch.manual_seed(0)
    model = Net(Block(8), Block(8)).eval()
    cbam.attach(model, init="paper", input_size=16, **options)
    return move_gates(model)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
class TestTorchScript:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"preset": "official"},
            {"preset": "timm", "fuse_epilogue": False},
            {"arrangement": "parallel"},
            {"arrangement": "spatial-channel"},
            {"attention": "se"},
        ],
        ids=str,
    )
    def test_a_trace_passes_its_own_check(self, options):
        model = attached(**options)
        traced = torch.jit.trace(model, IMAGE)
        torch.testing.assert_close(traced(OTHER), model(OTHER))

    def test_in_training(self):
        model = attached().train()
        traced = torch.jit.trace(model, IMAGE)
        torch.testing.assert_close(traced(OTHER), model(OTHER))

    def test_with_and_without_gradients(self):
        block = cbam.CBAM(8)
        graphs = []
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                traced = torch.jit.trace(block, torch.rand(1, 8, 5, 5))
            graphs.append([node.kind() for node in traced.inlined_graph.nodes()])
        assert graphs[0] == graphs[1]

    @pytest.mark.parametrize("build", [lambda: cbam.CBAM(8), attached], ids=["module", "network"])
    def test_scripting_says_what_to_do_instead(self, build):
        with pytest.raises(CBAMError, match=r"torch.jit.script cannot compile.*torch\.jit\.trace\(model"):
            torch.jit.script(build())

    def test_a_trace_inside_a_script(self):
        model = attached()
        scripted = torch.jit.script(nn.Sequential(torch.jit.trace(model, IMAGE), nn.ReLU()))
        torch.testing.assert_close(scripted(OTHER), model(OTHER).relu())

    def test_a_script_module_is_refused_with_the_same_advice(self):
        with pytest.raises(CBAMError, match=r"then trace it: torch\.jit\.trace"):
            cbam.attach(torch.jit.script(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize(("options", "strict"), [({}, True), ({"preset": "official"}, False)], ids=str)
def test_export_of_plain_operations(options, strict):
    """Other runtimes refuse an operator that they do not know."""
    model = attached(**options)
    dynamic = ({0: torch.export.Dim("batch")},)
    with cbam.set_backend("eager"):
        program = torch.export.export(model, (IMAGE,), dynamic_shapes=dynamic, strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert not [target for target in targets if not target.startswith(("aten.", "<built-in function"))]
    torch.testing.assert_close(program.module()(OTHER), model(OTHER))
    core = program.run_decompositions()
    torch.testing.assert_close(core.module()(OTHER), model(OTHER))
    assert set(program.state_dict) <= set(model.state_dict())
