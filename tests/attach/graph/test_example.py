"""Example inputs: one argument, several, by name."""

import pytest
import torch
from torch import nn

import cbam
from cbam.attach.graph.example import split_example
from tests.attach.networks import Block, Net


class ByName(Net):
    """Both arguments are keywords only."""

    def forward(self, *, image, weight):
        return super().forward(image * weight)


class Batch(Net):
    """The only argument is a dict."""

    def forward(self, batch):
        return super().forward(batch["image"])


EXAMPLE = {"image": torch.rand(1, 3, 8, 8), "weight": torch.tensor(2.0)}


@pytest.mark.parametrize("kind", [ByName, Batch])
def test_a_dict_is_keywords_or_the_argument(kind):
    model = kind(Block(8)).eval()
    plan = cbam.plan(model, example_input=EXAMPLE)
    assert [site.name for site in plan.sites] == ["blocks.0.bn2"]
    arguments, keywords = split_example(model, EXAMPLE)
    before = model(*arguments, **keywords)
    cbam.attach(model, example_input=EXAMPLE)
    assert torch.equal(model(*arguments, **keywords), before)


def test_the_shapes_are_in_the_plan():
    assert cbam.plan(ByName(Block(8)), example_input=EXAMPLE).input_shapes == ((1, 3, 8, 8), ())


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (1, ((1,), {})),
        ((1, 2), ((1, 2), {})),
        ([1, 2], (([1, 2],), {})),
        ({"input": 1}, ((), {"input": 1})),
        ({"other": 1}, (({"other": 1},), {})),
        ({3: 1}, (({3: 1},), {})),
    ],
)
def test_arguments(example, expected):
    assert split_example(nn.ReLU(), example) == expected


def test_keywords_that_fail_are_explained():
    with pytest.raises(cbam.CBAMError, match=r"by name example_input=\{'name': \.\.\.\}"):
        cbam.plan(ByName(Block(8)), input_size=8)


def test_the_cost_of_several_inputs():
    one = cbam.cost(Net(Block(8)), (3, 8, 8))
    two = cbam.cost(ByName(Block(8)), example_input=EXAMPLE)
    assert two.macs == one.macs
    assert "input 1x3x8x8, a number, eval mode" in str(two)
    with pytest.raises(cbam.CBAMError, match=r"inputs of shape \[\(1, 3, 8, 8\)\] failed"):
        cbam.cost(ByName(Block(8)), example_input=(EXAMPLE["image"],))
