"""What a network survives whose blocks end inside the operator: copies, files, other processes, the compiler."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

import cbam
from cbam.attach.fusion import with_epilogue
from tests.attach.fusion.blocks import IMAGE, attached, with_gates
from tests.attach.networks import ends, resnet
from tests.ops.library import needs_operator, needs_same_bits

pytestmark = [needs_operator, needs_same_bits]


class TestSurvival:
    """Beside test_survival.py, whose networks are such ones: copies run the end in the operator too."""

    @pytest.mark.parametrize(
        "twin",
        [
            copy.deepcopy,
            lambda model: pickle.loads(pickle.dumps(model)),
            lambda model: pickle.loads(pickle.dumps(model, 0)),
            lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)),
            lambda model: torch.optim.swa_utils.AveragedModel(model).module,
            lambda model: nn.Sequential(*list(model.children())[:-2]),
        ],
        ids=["deepcopy", "pickle", "pickle 0", "SyncBatchNorm", "EMA", "children"],
    )
    def test_copies(self, twin):
        model = attached(init="paper").eval()
        expected = model(IMAGE)
        other = twin(model).eval()
        assert ends(other, IMAGE) == 8
        if isinstance(other, torchvision.models.ResNet):
            torch.testing.assert_close(other(IMAGE), expected)
            assert cbam.detach(other) == 8
            assert type(other.layer1[0]) is BasicBlock
        assert torch.equal(model(IMAGE), expected)

    def test_replicas_that_live_for_one_step(self):
        block = attached().eval().layer1[0]
        replica = block._replicate_for_data_parallel()
        replica._modules = block._modules
        x = torch.rand(1, 64, 8, 8)
        assert torch.equal(replica(x), block(x))
        assert [ends(replica, x), ends(block, x)] == [0, 1]

    def test_a_shallow_copy(self):
        model = attached(init="paper").eval()
        block = copy.copy(model.layer1[0])
        x = torch.rand(1, 64, 8, 8)
        assert torch.equal(block(x), model.layer1[0](x))
        assert ends(block, x) == 1

    @pytest.mark.slow
    def test_another_process_loads_it(self, tmp_path):
        model = attached(init="paper").eval()
        torch.save(model, tmp_path / "model.pt")
        torch.save((IMAGE, model(IMAGE)), tmp_path / "case.pt")
        code = (
            f"import torch; model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False);"
            f"x, y = torch.load({str(tmp_path / 'case.pt')!r}); torch.testing.assert_close(model(x), y)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_copied_names_are_those_of_the_class(self):
        assert type(attached().layer1[0]).__qualname__ == "BasicBlock"
        assert with_epilogue._subclass(BasicBlock) is with_epilogue._subclass(BasicBlock)

    def test_functional_call(self):
        model = attached(init="paper").eval()
        weights = {name: p * 0.9 for name, p in model.named_parameters()}
        got = torch.func.functional_call(model, weights, (IMAGE,))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        assert torch.equal(got, model(IMAGE))

    def test_checkpointing(self):
        together, apart = with_gates()
        found = []
        for model in (together, apart):
            model.layer1.register_forward_pre_hook(lambda *_: None)
            image = IMAGE.clone().requires_grad_()
            x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
            torch.utils.checkpoint.checkpoint(model.layer1, x, use_reentrant=False).square().sum().backward()
            found.append(image.grad)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * found[1].abs().max().item())

    @pytest.mark.slow
    def test_compiled_through_changes_of_mode(self):
        torch._dynamo.reset()
        together, apart = with_gates()
        compiled = torch.compile(together, fullgraph=True, backend="aot_eager")
        for training in (False, True, False):
            together.train(training)
            apart.train(training)
            torch.testing.assert_close(compiled(IMAGE), apart(IMAGE), rtol=1e-4, atol=1e-4)
        for (name, got), expected in zip(together.named_buffers(), apart.buffers(), strict=True):
            torch.testing.assert_close(got, expected, msg=name)
        assert ends(together, IMAGE) == 8  # and without the compiler as before


def test_pickles_that_name_the_file_by_its_old_name_still_load():
    model = resnet().eval()
    cbam.attach(model, init="paper", input_size=(3, 32, 32))
    block, x = model.layer1[0], torch.rand(1, 64, 8, 8)
    old = pickle.dumps(block, protocol=2).replace(
        b"ccbam.attach.fusion.with_epilogue\n_new\n", b"ccbam.attach.with_tail\n_new\n"
    )
    assert b"with_tail" in old
    loaded = pickle.loads(old)
    assert isinstance(loaded, with_epilogue.WithEpilogue)
    assert torch.equal(loaded(x), block(x))
