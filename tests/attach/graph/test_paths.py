"""What is behind a detector's predictions, on networks where that is known by reading them."""

import torch
from torch import nn

import cbam
from cbam.attach.graph.paths import decoding
from cbam.attach.graph.probe import run_probe
from tests.attach.networks import Block, Detector, Net


def decoded_modules(model):
    probe = run_probe(model.eval(), (torch.rand(1, 3, 16, 16),))
    found = decoding(probe)
    return [call.name for call in probe.calls if call.name and call.output in found]


def sites(model, kind):
    return [site.name for site in cbam.plan(model.eval(), sites=kind, input_size=(3, 16, 16)).sites]


class TestDecoding:
    def test_what_makes_boxes_of_predictions(self):
        assert decoded_modules(Detector()) == ["mean"]

    def test_a_classifier_has_none(self):
        assert decoded_modules(Net(Block(8))) == []

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
        assert sites(Detector(), "head") == ["boxes.0", "deep.cv2", "classes.0"] or sites(
            Detector(), "head"
        ) == ["boxes.0", "boxes.1", "classes.0", "classes.1"]
