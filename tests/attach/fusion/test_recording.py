"""What a recorded forward pass must show, and what it must refuse to record."""

import random
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cbam.attach.fusion.recording import record

FLAG = True


class Block(nn.Module):
    """Something that has one attribute of every kind."""

    factor = 2.0

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.stride, self.shortcut, self.options = 1, None, {"wide": True}
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))
        self.empty = nn.Sequential()
        self.several = nn.ModuleList([nn.ReLU()])

    @property
    def main_norm(self):
        return getattr(self, "b" + "n")

    def doubled(self, x):
        return x * self.factor

    def sometimes(self, x):
        return x if random.random() < 0.5 else 2 * x

    @torch.no_grad()
    def decorated(self, x):
        return x


def of(forward, block=None, site=None):
    block = block or Block()
    return record(block, forward, site or block.bn)


def kinds(recording):
    return [node.op for node in recording.nodes]


ACCEPTED = {
    "calls of modules": lambda self, x: self.bn(self.conv(x)),
    "an attribute decides": lambda self, x: self.bn(x) if self.stride == 1 else x,
    "a module that is not there": lambda self, x: self.bn(x if self.shortcut is None else self.shortcut(x)),
    "truth of a module": lambda self, x: self.bn(self.conv(x) if self.conv else x),
    "functions of torch": lambda self, x: torch.relu(F.avg_pool2d(self.bn(x), 2)),
    "a method and a number of the class": lambda self, x: self.doubled(self.bn(x)),
    "a property": lambda self, x: self.main_norm(x),
    "a parameter": lambda self, x: self.scale * self.bn(x),
    "sizes": lambda self, x: self.bn(x).view(x.shape[0], -1),
    "any arguments": lambda self, *x: self.bn(x[0]),
    "an argument with a default": lambda self, x, scale=1.0: self.bn(x) * scale,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_recorded_computes_the_same(name):
    block, x = Block().eval(), torch.randn(2, 4, 6, 6)
    recording = of(ACCEPTED[name], block)
    assert len(recording.calls) == 1
    graph = recording.nodes[0].graph
    torch.testing.assert_close(torch.fx.GraphModule(block, graph)(x), ACCEPTED[name](block, x))


def drops_by_torch(self, x):
    return x if torch.rand(1) < 0.5 else self.bn(x)


def drops_by_python(self, x):
    return x if random.random() < 0.5 else self.bn(x)


def writes(self, x):
    self.seen = x
    return self.bn(x)


def writes_an_item(self, x):
    self.options["seen"] = x
    return self.bn(x)


def in_a_context(self, x):
    with torch.autocast("cpu", enabled=False):
        return self.bn(x)


def tries(self, x):
    try:
        return self.bn(x)
    except RuntimeError:
        return x


def prints(self, x):
    print(x.shape)  # noqa: T201
    return self.bn(x)


def imports(self, x):
    import math

    return self.bn(x) * math.pi


def closes_over(value):
    return lambda self, x: self.bn(x) * value


REFUSED = {
    "chance": drops_by_torch,
    "chance in Python": drops_by_python,
    "an attribute that is written": writes,
    "an item that is written": writes_an_item,
    "a context": in_a_context,
    "an exception": tries,
    "printing": prints,
    "an import": imports,
    "a closure": closes_over(2),
    "a global": lambda self, x: self.bn(x) if FLAG else x,
    "training": lambda self, x: self.bn(x) if self.training else x,
    "the gradient mode": lambda self, x: self.bn(x) if torch.is_grad_enabled() else x,
    "setting it": lambda self, x: torch.set_grad_enabled(True) or self.bn(x),
    "values": lambda self, x: self.bn(x) if x.sum() > 0 else x,
    "sizes that decide": lambda self, x: self.bn(x) if x.shape[0] > 1 else x,
    "types": lambda self, x: self.bn(x) if isinstance(x, torch.Tensor) else x,
    "a dict": lambda self, x: self.bn(x) if self.options["wide"] else x,
    "an empty container": lambda self, x: self.bn(x) if self.empty else x,
    "several modules": lambda self, x: self.several[0](self.bn(x)),
    "a decorated method": lambda self, x: self.decorated(self.bn(x)),
    "two arguments": lambda self, x, y: self.bn(x) + y,
    "chance in a method": lambda self, x: self.bn(self.sometimes(x)),
    "two results": lambda self, x: (self.bn(x), x),
    "a module's weight": lambda self, x: self.bn(x) * self.bn.weight,
    "the module itself": lambda self, x: self.bn(x, self),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_recording_could_miss_is_refused(name):
    assert of(REFUSED[name]).nodes == ()


def test_the_model_is_not_touched():
    block = Block()
    before = dict(vars(block))
    of(writes, block)
    assert vars(block) == before


def test_modules_around_the_site_are_entered():
    block = Block()
    recording = of(lambda self, x: self.branch(x), block, block.branch[1][0])
    assert [str(node.target) for node in recording.nodes if node.op == "call_module"] == [
        "branch.0",
        "branch.1.0",
    ]
    assert recording.entered == (block.branch, block.branch[1])
    assert kinds(of(lambda self, x: self.bn(self.branch(x)), block)) == [
        "placeholder", "call_module", "call_module", "output",
    ]  # fmt: skip


def test_in_place_additions_are_told_from_others():
    def adds(self, x):
        y = self.bn(x)
        y += x
        return y

    targets = [node.target for node in of(adds).nodes]
    assert torch.fx.proxy.operator.iadd in targets
    assert torch.fx.proxy.operator.add not in targets


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block, "stride", 2),
        lambda block: setattr(block, "shortcut", nn.Conv2d(4, 4, 1)),
        lambda block: setattr(block, "conv", nn.Conv2d(4, 4, 1)),
        lambda block: setattr(block, "scale", None),
        lambda block: setattr(block, "factor", 3.0),
        lambda block: setattr(block, "forward", block.forward),
        lambda block: block.branch.append(nn.ReLU()),
        lambda block: setattr(block.branch[1], "forward", block.branch[1].forward),
        lambda block: block.branch[1].__setitem__(0, nn.BatchNorm2d(4)),
    ],
)
def test_it_holds_until_something_that_was_read_changes(change):
    def forward(self, x):
        x = self.conv(x if self.shortcut is None else self.shortcut(x))
        return self.branch(x) * self.scale * self.factor + self.stride

    block = Block()
    recording = of(forward, block, block.branch[1][0])
    assert recording.nodes
    block.eval()
    block.remark = "not read"
    assert recording.holds()
    change(block)
    assert not recording.holds()


def test_other_threads_may_run_models_meanwhile():
    """torch.fx.symbolic_trace would catch their modules' calls."""
    block, x = Block().eval(), torch.randn(1, 4, 5, 5)
    expected, stop, wrong = block.conv(x), threading.Event(), []

    def run():
        while not stop.is_set():
            y = block.conv(x)
            if type(y) is not torch.Tensor or not torch.equal(y, expected):
                wrong.append(y)

    worker = threading.Thread(target=run)
    worker.start()
    for _ in range(200):
        assert of(ACCEPTED["calls of modules"], block).nodes
    stop.set()
    worker.join()
    assert not wrong
