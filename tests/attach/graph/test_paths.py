"""What leads where in a small graph, and what is behind a detector's predictions."""

import torch
from torch import nn

import cbam
from cbam.attach.graph.paths import ancestors, decoding, descendants, makers, trunk
from cbam.attach.graph.probe import Call, Node, Probe, run_probe
from tests.attach.networks import Block, Detector, Net


def decoded_modules(model):
    probe = run_probe(model.eval(), (torch.rand(1, 3, 16, 16),))
    found = decoding(probe)
    return [call.name for call in probe.calls if call.name and call.output in found]


def sites(model, kind):
    return [site.name for site in cbam.plan(model.eval(), sites=kind, input_size=(3, 16, 16)).sites]


def graph(*parents):
    """A probe whose node i was made from the nodes `parents[i]`, all of them maps, by a module of its own."""
    nodes = [Node("op", made_from, (1, 8, 4, 4)) for made_from in parents]
    for index, node in enumerate(nodes):
        for parent in node.parents:
            nodes[parent].consumers.add(index)
    calls = [Call(f"m{index}", None, index, None) for index in range(1, len(nodes))]
    return Probe(nodes, calls, {})


class TestPaths:
    """A residual block of two branches between two layers: 0 - 1 - (2 | 3) - 4 - 5."""

    BLOCK = graph((), (0,), (1,), (1,), (2, 3), (4,))

    def test_the_trunk_is_what_no_path_avoids(self):
        assert trunk(self.BLOCK) == [0, 1, 4, 5]
        assert trunk(self.BLOCK, 4) == [0, 1, 4]
        assert trunk(graph((), (0,), (1,), (2, 0))) == [0, 3], "a shortcut around everything"

    def test_ancestors_and_descendants(self):
        assert ancestors(self.BLOCK, 3) == {0, 1, 3}
        assert descendants(self.BLOCK, 2) == {2, 4, 5}

    def test_the_innermost_maker_comes_first(self):
        calls = [Call("block.act", 1, 2, None), Call("other", 0, 1, None), Call("block", 0, 2, None)]
        assert [call.name for call in makers(Probe([], calls, {}), 2)] == ["block.act", "block"]


class TestDecoding:
    def test_what_makes_boxes_of_predictions(self):
        assert decoded_modules(Detector()) == ["mean"]

    def test_a_classifier_has_none(self):
        assert decoded_modules(Net(Block(8))) == []

    def test_maps_of_one_size_that_are_joined_are_no_predictions(self):
        class Joined(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two, self.last = (nn.Conv2d(c, 8, 1) for c in (3, 3, 8))

            def forward(self, x):
                both = torch.cat([self.one(x).flatten(2), self.two(x).flatten(2)], 2)
                return self.last(both.view(1, 8, 32, 16))

        assert decoded_modules(Joined()) == []

    def test_levels_that_a_transformer_reads_go_on(self):
        class Levels(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
                self.mix, self.last = nn.Linear(8, 8), nn.Conv2d(8, 8, 1)

            def forward(self, x):
                fine = self.stem(x)
                tokens = torch.cat([fine.flatten(2), self.down(fine).flatten(2)], 2).transpose(1, 2)
                mixed = self.mix(tokens)[:, :256].transpose(1, 2)
                return self.last(mixed.reshape(1, 8, 16, 16))

        assert decoded_modules(Levels()) == []

    def test_it_is_no_site_of_any_kind(self):
        model = Detector()
        with_boxes = [kind for kind in ("stage", "conv", "block", "head") if "mean" in sites(model, kind)]
        assert with_boxes == []

    def test_the_predictions_before_it_are_the_heads(self):
        """The box convolutions are predictions although a convolution follows them."""
        assert sites(Detector(), "head") == ["boxes.0", "boxes.1", "classes.0", "classes.1"]
