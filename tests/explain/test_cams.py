from __future__ import annotations

import gc
import types

import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from captum.attr import LayerGradCam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchcam.methods import GradCAM

from cbam.errors import CBAMError
from cbam.explain import class_activation_maps
from cbam.explain.cams import METHODS

CLASSES = 5


class Network(nn.Module):
    """A small classifier with every trap: in-place operations, batch norm, dropout, an overridden `train`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6))
        self.dropout = nn.Dropout(0.5)
        self.unused = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, CLASSES)
        self.trained = 0

    def train(self, mode=True):
        self.trained = getattr(self, "trained", 0) + 1
        return super().train(mode)

    def features(self, images):
        maps = self.stage(self.stem(images))
        maps += 0.1
        return torch.relu_(maps)

    def forward(self, images):
        return self.head(self.dropout(self.features(images)).mean((2, 3)))


@pytest.fixture
def network():
    torch.manual_seed(1)
    network = Network()
    network.train()
    network(torch.rand(16, 3, 12, 12))  # running statistics that are not the initial ones
    return network


@pytest.fixture
def images():
    return torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(2))


LABELS = [0, 3, 1, 4]


def state(network):
    """Everything that looking must not change."""
    return {
        "modes": [module.training for module in network.modules()],
        "flags": [parameter.requires_grad for parameter in network.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        "values": {name: value.clone() for name, value in network.state_dict().items()},
        "hooks": [
            len(hooks)
            for module in network.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ],
        "trained": network.trained,
        "random": torch.get_rng_state(),
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key in ("modes", "flags", "hooks", "trained"):
        assert before[key] == after[key], key
    assert torch.equal(before["random"], after["random"])
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name
    for old, new in zip(before["grads"], after["grads"], strict=True):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)


class TestMaps:
    def test_equals_the_definition(self, network, images):
        network.eval()
        # A is what the layer gives, whatever in-place operations make of it afterwards.
        maps = network.stage(network.stem(images)).detach().requires_grad_(True)
        scores = network.head(torch.relu(maps + 0.1).mean((2, 3)))
        scores[range(4), LABELS].sum().backward()
        expected = torch.relu((maps.grad.mean((2, 3), keepdim=True) * maps).sum(1)).detach()
        expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-12)
        found = class_activation_maps(network, "stage", images, LABELS)
        torch.testing.assert_close(found.heat, expected)
        chances = scores.detach().softmax(1)
        assert found.probabilities == pytest.approx(chances[range(4), LABELS].tolist())
        assert found.predicted == tuple(chances.argmax(1).tolist())

    def test_equals_torchcam_up_to_the_scale(self, network, images):
        network.eval()
        # Without in-place operations, of which each release of torchcam makes something else.
        network.features = lambda images: torch.relu(network.stage(network.stem(images)) + 0.1)
        with GradCAM(network, "stage") as extractor:
            raw = extractor(LABELS, network(images), normalized=False)[0]
        found = class_activation_maps(network, "stage", images, LABELS)
        for mine, theirs, flat in zip(found.heat, raw, found.flat, strict=True):
            assert not flat
            torch.testing.assert_close(mine * theirs.max(), theirs)
            assert mine.max() == 1

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_equals_torchcam_used_directly(self, network, images, method):
        network.eval()
        network.features = lambda images: torch.relu(network.stage(network.stem(images)) + 0.1)
        options = {"fc_layer": "head"} if method == "cam" else {}
        kind = getattr(torchcam.methods, METHODS[method].extractor, None)
        if kind is None:
            pytest.skip("not in this release of torchcam")
        torch.manual_seed(5)
        with kind(network, "stage", **options) as extractor:
            raw = extractor(LABELS, network(images), normalized=False)[0].detach().clamp_min(0)
        torch.manual_seed(5)
        before = state(network)
        found = class_activation_maps(network, "stage", images, LABELS, method)
        assert_same(before, state(network))
        assert not all(found.flat)
        for mine, theirs in zip(found.heat, raw, strict=True):
            torch.testing.assert_close(mine, theirs / theirs.max(), rtol=0, atol=1e-5)

    def test_grad_cam_equals_captum_s(self, network, images):
        network.eval()
        attributed = LayerGradCam(network, network.stem[1]).attribute(images, torch.tensor(LABELS))
        raw = attributed.detach().relu()[:, 0]
        found = class_activation_maps(network, "stem.1", images, LABELS)
        torch.testing.assert_close(found.heat, raw / raw.amax((1, 2), keepdim=True), rtol=0, atol=1e-5)

    def test_grad_cam_equals_pytorch_grad_cam_s(self, network, images):
        network.eval()
        with pytorch_grad_cam.GradCAM(network, [network.stem]) as theirs:
            scaled = torch.from_numpy(theirs(images, [ClassifierOutputTarget(label) for label in LABELS]))
        found = class_activation_maps(network, "stem", images, LABELS).heat
        lowest = found.amin((1, 2), keepdim=True)  # which that library subtracts
        torch.testing.assert_close((found - lowest) / (1 - lowest), scaled, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("form", ["tuple", "dict", "object"])
    def test_scores_in_a_tuple_a_dict_or_an_object(self, network, images, method, form):
        torch.manual_seed(5)
        expected = class_activation_maps(network, "stage", images, LABELS, method)
        forward = network.forward
        network.forward = lambda images: {
            "tuple": lambda scores: (scores, images),
            "dict": lambda scores: {"hidden": images, "logits": scores},
            "object": lambda scores: types.SimpleNamespace(logits=scores),
        }[form](forward(images))
        torch.manual_seed(5)
        found = class_activation_maps(network, "stage", images, LABELS, method)
        torch.testing.assert_close(found.heat, expected.heat)

    def test_the_layer_and_the_class_may_be_left_to_it(self, network, images):
        found = class_activation_maps(network, None, images)
        assert (
            found.layer == "dropout"
        )  # the last module that gives a map, which in evaluation is that of the stage
        assert found.predicted == tuple(found.scores.argmax(1).tolist())
        expected = class_activation_maps(network, found.layer, images, found.predicted)
        assert torch.equal(found.heat, expected.heat)
        assert found.probabilities == expected.probabilities

    def test_the_minimum_is_not_stretched_away(self, images):
        # Every place argues for the class nearly alike; a min-max scaling would paint a pattern from 0 to 1.
        network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        with torch.no_grad():
            network[0].weight.fill_(0.01)
            network[0].bias.fill_(10.0)
            network[3].weight.fill_(1.0)
        heat = class_activation_maps(network, "0", images, [0] * 4).heat
        assert heat.min() > 0.99

    @pytest.mark.parametrize("constant", [0.0, 3.0])
    def test_a_flat_map_is_flat_and_not_noise(self, images, constant):
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        with torch.no_grad():
            network[0].weight.mul_(1e-9 * constant)
            network[0].bias.fill_(constant)
            network[3].weight.fill_(1.0)  # evidence for the class, the same everywhere
        maps = class_activation_maps(network, "0", images, [0] * 4)
        assert maps.flat == (True,) * 4
        assert maps.heat.count_nonzero() == 0

    def test_evidence_against_everywhere_is_flat(self, images):
        network = nn.Sequential(
            nn.Conv2d(3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
        )
        with torch.no_grad():
            network[0].weight.fill_(1.0)
            network[4].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        maps = class_activation_maps(network, "1", images, [0, 1, 0, 1])
        assert maps.flat == (False, True, False, True)

    def test_images_of_a_batch_do_not_influence_each_other(self, network, images):
        together = class_activation_maps(network, "stage", images, LABELS)
        alone = class_activation_maps(network, "stage", images[2:3], LABELS[2:3])
        torch.testing.assert_close(together.heat[2:3], alone.heat)

    def test_double_precision_and_channels_last(self, network, images):
        expected = class_activation_maps(network, "stage", images, LABELS).heat
        network = network.double().to(memory_format=torch.channels_last)
        torch.testing.assert_close(class_activation_maps(network, "stage", images, LABELS).heat, expected)


class TestCircumstances:
    def test_a_frozen_network(self, network, images):
        expected = class_activation_maps(network, "stage", images, LABELS)
        network.requires_grad_(False)
        torch.testing.assert_close(
            class_activation_maps(network, "stage", images, LABELS).heat, expected.heat
        )

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_inside_no_grad(self, network, images, context):
        expected = class_activation_maps(network, "stage", images, LABELS)
        with context():
            inside = class_activation_maps(network, "stage", images * 1, LABELS)
        torch.testing.assert_close(inside.heat, expected.heat)

    def test_a_network_that_works_in_place_on_its_input(self, images):
        network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 2))
        before = images.clone()
        class_activation_maps(network, "1", images, [0, 1, 0, 1])
        assert torch.equal(images, before)

    def test_an_in_place_operation_on_the_layer_itself(self, network, images):
        # `relu_` overwrites what `stage` gave; the map is that of the tensor as it flows on, as in torchcam.
        assert class_activation_maps(network, "stage", images, LABELS).heat.isfinite().all()


class TestUntouched:
    @pytest.mark.parametrize("training", [True, False])
    def test_after_success(self, network, images, training):
        network.train(training)
        network.stem[1].training = False  # a norm frozen by its user
        network.stage[0].weight.requires_grad_(False)
        network(images).sum().backward()
        before = state(network)
        class_activation_maps(network, "stage", images, LABELS)
        assert_same(before, state(network))

    def test_after_an_exception_inside_the_network(self, network, images, monkeypatch):
        before = state(network)

        def explode(*_):
            raise ArithmeticError("boom")

        monkeypatch.setattr(network.head, "forward", explode)
        with pytest.raises(ArithmeticError, match="boom"):
            class_activation_maps(network, "stage", images, LABELS)
        assert_same(before, state(network))

    def test_after_a_refusal(self, network, images):
        before = state(network)
        with pytest.raises(CBAMError):
            class_activation_maps(network, "unused", images, LABELS)
        assert_same(before, state(network))

    def test_between_forward_and_backward_of_a_training_step(self, network, images):
        network.eval()
        network(images).sum().backward()
        expected = [parameter.grad for parameter in network.parameters()]
        network.zero_grad()
        loss = network(images).sum()
        class_activation_maps(network, "stage", images, LABELS)
        loss.backward()
        for old, parameter in zip(expected, network.parameters(), strict=True):
            assert old is None or torch.equal(old, parameter.grad)

    def test_a_hundred_calls_leak_nothing(self, network, images):
        def alive():
            gc.collect()
            return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

        class_activation_maps(network, "stage", images, LABELS)
        before = alive()
        for _ in range(100):
            class_activation_maps(network, "stage", images, LABELS)
        assert alive() <= before


class TestRefusals:
    def test_an_unknown_layer_names_the_nearest(self, network, images):
        with pytest.raises(CBAMError, match=r"unknown layer 'stages'\. Did you mean 'stage'"):
            class_activation_maps(network, "stages", images, LABELS)

    def test_a_layer_that_is_no_feature_map(self, network, images):
        with pytest.raises(CBAMError, match=r"'head' must return a feature map .* it returns \(4, 5\)"):
            class_activation_maps(network, "head", images, LABELS)

    def test_a_layer_that_takes_no_part(self, network, images):
        with pytest.raises(CBAMError, match="'unused' did not run in the forward pass"):
            class_activation_maps(network, "unused", images, LABELS)

    def test_a_layer_that_the_score_does_not_depend_on(self, images):
        class Detached(Network):
            def forward(self, images):
                return super().forward(images) + self.unused(self.features(images)).detach().sum()

        network = Detached()
        with pytest.raises(CBAMError, match="does not depend on the output of layer 'unused'"):
            class_activation_maps(network, "unused", images, LABELS)

    def test_wrong_number_of_labels(self, network, images):
        with pytest.raises(CBAMError, match=r"images \(4, 3, 12, 12\) and 2 labels"):
            class_activation_maps(network, "stage", images, [0, 1])

    def test_a_label_outside_the_classes(self, network, images):
        with pytest.raises(CBAMError, match="label 5 is not one of the model's 5 classes"):
            class_activation_maps(network, "stage", images, [0, 1, 5, 2])

    def test_a_model_that_gives_no_scores(self, network, images):
        for output in (lambda x: {"scores": network.features(x)}, lambda x: {}, lambda x: "no"):
            network.forward = output
            with pytest.raises(
                CBAMError, match=r"a classifier, which returns scores \(images, classes\); the model"
            ):
                class_activation_maps(network, "stage", images, LABELS)

    def test_an_unknown_method(self, network, images):
        with pytest.raises(CBAMError, match=r"unknown method 'grad-cam'. Did you mean 'gradcam'\?"):
            class_activation_maps(network, "stage", images, LABELS, "grad-cam")

    def test_cam_needs_the_layer_that_the_classifier_reads(self, network, images):
        with pytest.raises(
            CBAMError, match="'cam' needs a layer whose channels the classifier reads; 'stem'"
        ):
            class_activation_maps(network, "stem", images, LABELS, "cam")
        with pytest.raises(CBAMError, match="reads the weights of a classifier; Sequential has none"):
            class_activation_maps(nn.Sequential(nn.ReLU()), "0", images, LABELS, "cam")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_activations_that_are_not_finite_are_named(self, network, images, bad):
        images[2, 0, 0, 0] = bad
        with pytest.raises(
            CBAMError, match=r"the output of layer 'stage': values that are not finite .* image 2"
        ):
            class_activation_maps(network, "stage", images, LABELS)

    def test_scores_that_are_not_finite_are_named(self, network, images):
        with torch.no_grad():
            network.head.bias[1] = float("nan")
        with pytest.raises(CBAMError, match="the scores: values that are not finite"):
            class_activation_maps(network, "stage", images, LABELS)

    def test_gradients_that_are_not_finite_are_named(self, network, images):
        # sqrt has an infinite slope at 0, while its value is finite.
        network.forward = lambda x: network.head((network.stage(network.stem(x)) * 0).mean((2, 3)).sqrt())
        with pytest.raises(CBAMError, match="the gradient at layer 'stage'"):
            class_activation_maps(network, "stage", images, LABELS)
