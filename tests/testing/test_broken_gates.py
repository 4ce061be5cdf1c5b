"""Each way in which a gate can be wrong is found, by the checks that say so."""

import threading
from unittest import SkipTest

import pytest
import torch
from torch import nn

import cbam
from cbam import testing
from cbam.errors import CBAMError

# The others cost a second each.
CHECKS = [name for name in testing.CHECKS if name not in ("export", "compile")]
SHAPES = [(2, 4, 3, 5), (1, 4, 1, 1)]


class Sound(nn.Module):
    """A gate of somebody else, without a fault."""

    def __init__(self, channels, width=4):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels))

    def gate(self, x):
        return 2 * torch.sigmoid(self.mlp(x.mean((2, 3))))[:, :, None, None]

    def forward(self, x):
        return x * self.gate(x)

    def set_identity(self):
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)


class Twice(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent


class WrongGradient(Sound):
    def forward(self, x):
        return Twice.apply(super().forward(x))


class OutsideTheStateDict(Sound):
    def __init__(self, channels):
        super().__init__(channels)
        self.offset = torch.rand(()).item()

    def gate(self, x):
        return super().gate(x + self.offset)


class NoCopies(Sound):
    def __init__(self, channels):
        super().__init__(channels)
        self.lock = threading.Lock()


class Shared:
    def __init__(self, module):
        self.module = module

    def __deepcopy__(self, memo):
        return self


class CopiesShareWeights(Sound):
    def __init__(self, channels):
        super().__init__(channels)
        self.shared = Shared(self.mlp)

    def gate(self, x):
        return 2 * torch.sigmoid(self.shared.module(x.mean((2, 3))))[:, :, None, None]


class AlmostTheIdentity(Sound):
    def set_identity(self):
        nn.init.constant_(self.mlp[2].weight, 1e-4)


class InPlace(Sound):
    def forward(self, x):
        gate = self.gate(x)
        with torch.no_grad():
            x.mul_(0.5)
        return x * gate


class AlwaysFloat32(Sound):
    def forward(self, x):
        return x.float() * self.gate(x).float()


class NoPixelAlone(Sound):
    def gate(self, x):
        return 2 * torch.sigmoid(self.mlp(x.std((2, 3))))[:, :, None, None]


class OverTheBatch(Sound):
    def gate(self, x):
        return super().gate(x.mean(0, keepdim=True))


class RandomInEvaluation(Sound):
    def gate(self, x):
        return super().gate(nn.functional.dropout(x, 0.5))


class MovesInEvaluation(Sound):
    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class UnusedWeight(Sound):
    def __init__(self, channels):
        super().__init__(channels)
        self.unused = nn.Parameter(torch.ones(3))


class WrongForChannelsLast(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y if x.is_contiguous() else y * 1.01


class Dead(Sound):
    def gate(self, x):
        return super().gate(x).detach()


class NoPickles(Sound):
    """A deep copy takes the function as it is."""

    def __init__(self, channels):
        super().__init__(channels)
        self.scale = lambda gate: gate * 1.0

    def gate(self, x):
        return self.scale(super().gate(x))


class KnowsItsNorm(Sound):
    """Leaves a norm of another class out."""

    def __init__(self, channels):
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(channels)

    def gate(self, x):
        return super().gate(self.norm(x) if type(self.norm) is nn.BatchNorm2d and x.shape[2] > 1 else x)


class KeepsItsFirstWeight(Sound):
    first = None

    def gate(self, x):
        if self.training:
            return super().gate(x)
        if self.first is None:
            self.first = self.mlp[2].weight.detach().clone()
        hidden = self.mlp[1](self.mlp[0](x.mean((2, 3))))
        return (
            2
            * torch.sigmoid(nn.functional.linear(hidden, self.first.to(x.dtype), self.mlp[2].bias))[
                :, :, None, None
            ]
        )


class NoGradientInHalf(Sound):
    def forward(self, x):
        y = super().forward(x)
        return y if x.dtype.itemsize > 2 else y.detach() + 0 * y


class WrongUnderAutocast(Sound):
    def forward(self, x):
        return super().forward(x) * (2 if torch.is_autocast_enabled("cpu") else 1)


def no_harm(*_):
    return None


class LeavesHooks(Sound):
    def forward(self, x):
        self.register_forward_hook(no_harm)
        return super().forward(x)


class SwitchesItsMode(Sound):
    def forward(self, x):
        y = super().forward(x)
        self.eval()
        return y


class LoopsOverTheBatch(Sound):
    """A program of it is of one batch size."""

    def gate(self, x):
        return torch.cat([super(LoopsOverTheBatch, self).gate(image[None]) for image in x])


class AsksForItsClass(Sound):
    """The exporter's tensors are of another one."""

    def forward(self, x):
        return super().forward(x) if type(x) is torch.Tensor else x


# What must be found; more may be: what cannot be copied has no moving average either.
BROKEN = {
    WrongGradient: {"finite differences"},
    OutsideTheStateDict: {"state dict"},
    NoCopies: {"deepcopy", "pickle", "moving average", "SyncBatchNorm"},
    CopiesShareWeights: {"deepcopy"},
    AlmostTheIdentity: {"identity"},
    InPlace: {"forward"},
    AlwaysFloat32: {"forward", "autocast"},
    NoPixelAlone: {"forward"},
    OverTheBatch: {"modes"},
    RandomInEvaluation: {"forward"},
    MovesInEvaluation: {"modes"},
    UnusedWeight: {"attach"},
    WrongForChannelsLast: {"forward", "backward"},
    Dead: {"finite differences", "attach"},
    NoPickles: {"pickle"},
    KnowsItsNorm: {"SyncBatchNorm"},
    KeepsItsFirstWeight: {"state dict"},
    NoGradientInHalf: {"backward"},
    WrongUnderAutocast: {"autocast"},
    LeavesHooks: {"modes"},
    SwitchesItsMode: {"modes"},
}


def test_a_sound_gate_passes():
    results = testing.check_attention(Sound, checks=CHECKS, shapes=SHAPES, width=3)
    assert not results.failed
    skipped = {row.case.check for row in results.rows if row.outcome == "not applicable"}
    assert skipped == {"saved", "attention maps"}


@pytest.mark.parametrize("gate", BROKEN, ids=lambda gate: gate.__name__)
def test_a_broken_one_is_found(gate):
    with pytest.raises(testing.ChecksFailed) as failed:
        testing.check_attention(gate, checks=CHECKS, shapes=SHAPES)
    found = {row.case.check for row in failed.value.results.failed}
    assert BROKEN[gate] <= found, failed.value
    assert f"FAILED {gate.__name__}: {next(c for c in CHECKS if c in found)}, auto" in str(failed.value)


def test_a_fault_of_somebody_else_s_module_is_found():
    """torch's conversion puts a plain norm in the place of timm's, which has an activation in it."""
    pytest.importorskip("timm")
    with pytest.raises(testing.ChecksFailed, match="the map after the conversion: off by"):
        testing.check_attention("timm:sk", checks=["SyncBatchNorm"], shapes=[(2, 32, 5, 5)])


class Branches(Sound):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else x / 2


@pytest.mark.parametrize("check", ["export", "compile", "torch.func"])
def test_a_branch_on_values_is_found(check):
    with pytest.raises(testing.ChecksFailed, match=rf"FAILED Branches: {check}, auto"):
        testing.check_attention(Branches, checks=[check])


@pytest.mark.parametrize("gate", [LoopsOverTheBatch, AsksForItsClass], ids=lambda gate: gate.__name__)
def test_a_program_of_something_else_is_found(gate):
    with pytest.raises(testing.ChecksFailed, match=rf"FAILED {gate.__name__}: export, auto"):
        testing.check_attention(gate, checks=["export"], shapes=SHAPES[:1])


class PerBatch(Sound):
    def forward(self, x):
        return super().forward(x) * torch.ones(()) if int(x.shape[0]) % 2 else super().forward(x) * 1.0


def test_a_graph_for_each_batch_size_is_found():
    with pytest.raises(testing.ChecksFailed, match=r"graphs compiled after batches of 2, 3, 5, 4 and 7"):
        testing.check_attention(PerBatch, checks=["compile"])


def test_gates_that_are_not_the_factors_are_found():
    name = "gates_that_lie"
    cbam.register_attention(name, Sound, gates=lambda module, x: module.gate(x) / 2)
    try:
        with pytest.raises(testing.ChecksFailed, match="the map times the gates that were recorded: off by"):
            testing.check_attention(name, checks=["attention maps"])
    finally:
        cbam.nn.registry._KINDS.pop(name)


def test_cases_for_pytest():
    (case,) = testing.cases("eca", checks=["pickle"])
    assert str(case) == "eca: pickle, auto, float32, contiguous, 2x16x7x9"
    assert case.run() is None
    with pytest.raises(AssertionError, match="cannot be pickled"):
        testing.cases(NoCopies, checks=["pickle"])[0].run()
    with pytest.raises(SkipTest, match="not registered"):
        testing.cases(Sound, checks=["saved"])[0].run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checks": ["deepcoyp"]}, "unknown check 'deepcoyp'. Did you mean 'deepcopy'"),
        ({"backends": ["cuda"]}, "unknown backend 'cuda'"),
        ({"memory_formats": ["nhwc"]}, "unknown memory format 'nhwc'"),
        ({"shapes": [(2, 16)]}, r"shapes of maps such as \(2, 16, 7, 9\), given \(2, 16\)"),
        ({"shapes": []}, "at least one shape"),
        ({"kernel": 3}, "unknown option of eca 'kernel'. Did you mean 'kernel_size'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(CBAMError, match=message):
        testing.cases("eca", **arguments)
