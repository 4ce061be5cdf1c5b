"""Attached blocks under torch.compile: norm, gates, addition and ReLU are one node, forward and backward."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import aot_module_simplified
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import cbam
from cbam.bench.code import copied_maps, training_code
from tests.ops.library import needs_operator

pytestmark = [needs_operator, pytest.mark.slow]

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
FORWARD, BACKWARD = "cbam.forward.default", "cbam.backward.default"


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network(block=BasicBlock, layout=torch.contiguous_format, attach=True):
    """A small ResNet whose gates do something."""
    torch.manual_seed(0)
    model = ResNet(block, [2, 1, 1, 1], num_classes=5).to(memory_format=layout)
    if attach:
        cbam.attach(model, input_size=(3, 32, 32))
        for name, parameter in model.named_parameters():
            if ".cbam." in name:
                nn.init.normal_(parameter, std=0.3)
    return model


def images(count=4, size=32, layout=torch.contiguous_format):
    """Images of which no maximum and no ReLU is decided by rounding: where one is, eager mode is off by 1 to 10 %."""
    torch.manual_seed(3)
    return torch.randn(count, 3, size, size).contiguous(memory_format=layout)


def step(run, model, image):
    """One training step's output and gradients."""
    model.zero_grad()
    y = run(image)
    y.square().sum().backward()
    return {"y": y, **{name: p.grad for name, p in model.named_parameters()}}


def graphs_of(model, image):
    """The forward and the backward graph that the compiler's back end gets, as counts; of additions those of maps."""
    graphs = []

    def counts(node):
        return node.op == "call_function" and ("add" not in str(node.target) or node.meta["val"].dim() == 4)

    def keep(graph, _):
        graphs.append(Counter(str(node.target) for node in graph.graph.nodes if counts(node)))
        return graph

    def backend(module, inputs):
        return aot_module_simplified(module, inputs, fw_compiler=keep, bw_compiler=keep)

    torch.compile(model, fullgraph=True, backend=backend)(image).square().sum().backward()
    return graphs


def error(found, exact):
    """The largest relative error of the tensors, each by its norm."""
    return max(
        ((found[k].double() - exact[k]).norm() / exact[k].norm().clamp_min(1e-6)).item() for k in exact
    )


@every_layout
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_as_near_to_float64_as_eager_mode(layout, training):
    model = network(layout=layout).train(training)
    twin, exact, image = copy.deepcopy(model), copy.deepcopy(model).double(), images(size=64, layout=layout)
    expected = step(exact, exact, image.double())
    compiled = step(torch.compile(model, fullgraph=True), model, image)
    assert error(compiled, expected) < 4 * error(step(twin, twin, image), expected) < 1e-3
    for (name, found), buffer in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, buffer, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_is_one_node_in_each_graph(block):
    attended, plain = network(block), network(block, attach=False)
    forward, backward = graphs_of(attended, images())
    forward_without, backward_without = graphs_of(plain, images())
    assert forward[FORWARD] == backward[BACKWARD] == 5
    # The norm, the addition and the ReLU at the end of each of the five blocks are in the node.
    for name in ("aten._native_batch_norm_legit_functional.default", "aten.add.Tensor", "aten.relu.default"):
        assert forward[name] == forward_without[name] - 5, name
    assert backward["aten.native_batch_norm_backward.default"] == (
        backward_without["aten.native_batch_norm_backward.default"] - 5
    )


@every_layout
def test_no_map_is_copied_for_the_node(layout):
    """In the code that is run, the node reads the convolution's own output, and the next convolution the node's."""
    forward, backward = training_code(network(layout=layout), images(layout=layout))
    assert forward.count("torch.ops.cbam.forward.default(") == 5
    assert backward.count("torch.ops.cbam.backward.default(") == 5
    assert copied_maps(forward, backward) == 0


def test_batches_of_several_sizes_take_two_graphs():
    """One for the first size, one for all others, as for any network."""
    model, counter = network(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for count in (4, 6, 3, 7):
        compiled(images(count)).sum().backward()
    assert counter.frame_count == 2


def test_blocks_that_are_compiled_one_by_one():
    model, counter = network(), CompileCounterWithBackend("aot_eager")
    expected = copy.deepcopy(model)(image := images())
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.compile(fullgraph=True, backend=counter)
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 5


def test_in_low_precision():
    model = network().eval()
    image = images()
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = model(image), torch.compile(model, fullgraph=True)(image)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_at_insertion_the_network_is_the_plain_one_up_to_the_compilers_rounding():
    """Eager mode keeps each bit. A compiler that rounds its batch norms its own way cannot: here is how far it goes."""
    plain = network(attach=False).eval()
    attended = copy.deepcopy(plain)
    cbam.attach(attended, input_size=(3, 32, 32))
    image = images()
    expected = plain(image)
    assert torch.equal(attended(image), expected)
    own = (torch.compile(plain, fullgraph=True)(image) - expected).abs().max()
    ours = (torch.compile(attended, fullgraph=True)(image) - expected).abs().max()
    assert ours <= 4 * own + 1e-6 * expected.abs().max()


def watched(model):
    model.layer1[0].relu.register_forward_hook(lambda *_: None)


def switched_off(model):
    model.layer1[0].bn2.cbam.enabled = False


def another_activation(model):
    model.layer1[0].relu = nn.LeakyReLU(0.5)


CHANGES = {"a hook": watched, "switched off": switched_off, "another activation": another_activation}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_block_that_was_changed_runs_as_it_is(change):
    model = network().eval()
    change(model)
    image = images()
    torch.testing.assert_close(
        torch.compile(model, backend="aot_eager")(image), model(image), rtol=1e-4, atol=1e-4
    )


def test_plain_torch_when_asked_for():
    model = network()
    with cbam.set_backend("eager"):
        forward, _ = graphs_of(model, images())
    assert FORWARD not in forward
    torch.testing.assert_close(
        torch.compile(model, backend="aot_eager")(image := images()), model(image), rtol=1e-4, atol=1e-4
    )


def test_without_the_addition_the_norm_is_in_the_node():
    """A site whose block ends in another way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU())
    cbam.attach(model, sites="1", input_size=(3, 8, 8))
    forward, backward = graphs_of(model, images(size=8))
    assert forward[FORWARD] == backward[BACKWARD] == 1
    assert not any("batch_norm" in name for name in (*forward, *backward))


def test_an_exported_program_has_plain_operations_in_front():
    """Exporters that do not know the operator can decompose it; the norm stays a norm."""
    model = network().eval()
    program = torch.export.export(model, (images(),))
    names = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    assert names[FORWARD] == 5
    assert names["aten.batch_norm.default"] == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(program.module()(image := images()), model(image), rtol=1e-4, atol=1e-4)
