"""What an attached model must survive, each tried for real: the gates stay alive and the output stays right."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import lowering

import cbam
from cbam.nn import AttentionModule
from cbam.ops import cpp
from tests.attach.networks import Block, Net, resnet

IMAGE = torch.rand(2, 3, 64, 64)


@pytest.fixture
def model():
    model = resnet()
    cbam.attach(model, init="paper", preset="official", input_size=(3, 64, 64))
    return model.eval()


def calls(model, image=IMAGE):
    """How many attention modules run in one forward, and its output."""
    count = []
    handles = [
        m.register_forward_hook(lambda *_: count.append(1))
        for m in model.modules()
        if isinstance(m, cbam.CBAM)
    ]
    with torch.no_grad():
        output = model(image)
    for handle in handles:
        handle.remove()
    return len(count), output


def test_deepcopy(model):
    count, output = calls(copy.deepcopy(model))
    assert count == 8
    assert torch.equal(output, model(IMAGE))


def test_a_copy_shares_nothing(model):
    clone = copy.deepcopy(model)
    cbam.detach(clone)
    assert calls(model)[0] == 8
    assert clone.load_state_dict({k: v for k, v in model.state_dict().items() if ".cbam." not in k})


def test_pickle(model):
    count, output = calls(pickle.loads(pickle.dumps(model)))
    assert count == 8
    assert torch.equal(output, model(IMAGE))


def test_torch_save_of_the_whole_model(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(IMAGE), model(IMAGE))


def test_sync_batch_norm_conversion(model):
    expected = model(IMAGE)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert (
        sum(isinstance(m, nn.SyncBatchNorm) for m in converted.modules()) == 20 + 8
    )  # also inside the gates
    count, output = calls(converted)
    assert count == 8
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("library", ["torch", "timm"])
def test_ema_copy(model, library):
    if library == "torch":
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        average.update_parameters(model)
        shadow = average.module
    else:
        from timm.utils import ModelEmaV3

        average = ModelEmaV3(model, decay=0.5)
        average.update(model)
        shadow = average.module
    count, output = calls(shadow.eval())
    assert count == 8
    torch.testing.assert_close(output, model(IMAGE))
    with torch.no_grad():
        model.layer1[0].bn2.cbam.channel_attention.mlp[0].weight.add_(1.0)
    old = shadow.layer1[0].bn2.cbam.channel_attention.mlp[0].weight.clone()
    average.update_parameters(model) if library == "torch" else average.update(model)
    assert not torch.equal(shadow.layer1[0].bn2.cbam.channel_attention.mlp[0].weight, old)


def test_fx_trace(model):
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(IMAGE), model(IMAGE))
    blocks = [node.target for node in traced.graph.nodes if str(node.target).endswith(".cbam")]
    assert len(blocks) == 8  # each as a whole, so that it runs the fused operator


def test_feature_extractor(model):
    from torchvision.models.feature_extraction import create_feature_extractor

    features = create_feature_extractor(model, {"layer4": "c5"})(IMAGE)
    assert features["c5"].shape == (2, 512, 2, 2)


def test_functional_call(model):
    assert torch.equal(
        torch.func.functional_call(model, dict(model.named_parameters()), (IMAGE,)), model(IMAGE)
    )


def test_half_and_back(model):
    expected = model(IMAGE)
    low = copy.deepcopy(model).to(torch.bfloat16)
    assert low(IMAGE.to(torch.bfloat16)).isfinite().all()
    torch.testing.assert_close(model.double().float()(IMAGE), expected)


def test_channels_last(model):
    expected = model(IMAGE)
    got = model.to(memory_format=torch.channels_last)(IMAGE.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_export(model):
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (IMAGE,), dynamic_shapes=({0: batch},))
    x = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(program.module()(x), model(x))
    assert not [
        key
        for key in program.state_dict
        if key not in dict(model.named_parameters()) | dict(model.named_buffers())
    ]


@pytest.mark.slow
def test_compile_fullgraph(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGE), model(IMAGE))
        with cbam.disabled(model):  # also the switch is seen by compiled code
            assert torch.allclose(compiled(IMAGE), model(IMAGE), atol=1e-5)
    model.train()
    compiled(IMAGE).sum().backward()
    assert model.layer1[0].bn2.cbam.channel_attention.mlp[0].weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_two_graphs_serve_batches_of_all_sizes(training):
    """torch makes the first for the size it sees and a second one for all sizes; no more may follow."""
    torch._dynamo.reset()
    counters.clear()
    model = Net(Block(8)).train(training)
    cbam.attach(model, init="paper", preset="official", input_size=16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    graphs = []
    for size in (2, 3, 4, 7, 5):
        compiled(torch.rand(size, 3, 16, 16)).sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs == [1, 2, 2, 2, 2]
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("ci", ["", "true"])
def test_compile_with_the_default_backend(monkeypatch, tmp_path, ci):
    """The code generator itself, on one block; torch's is stricter where the variable CI is set."""
    monkeypatch.setenv("CI", ci)
    # What was compiled before, by this process or another one, would hide it.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    if cpp.available():
        lowering.lowerings.pop(torch.ops.cbam.forward.default, None)
    torch._dynamo.reset()
    block = cbam.CBAM(16)
    x = torch.rand(2, 16, 9, 9)
    torch.testing.assert_close(torch.compile(block, fullgraph=True)(x), block(x))


def test_every_block_is_one_of_ours(model):
    assert sum(isinstance(m, AttentionModule) for m in model.modules()) == 8 * 3
