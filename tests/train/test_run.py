from __future__ import annotations

import pytest

from cbam.data import load_data
from cbam.errors import CBAMError
from cbam.nn import CBAM
from cbam.train.config import TrainConfig, TrainRunConfig
from cbam.train.run import build


@pytest.fixture(scope="module")
def data():
    return load_data("digits", limit_train=20, limit_val=10)


def test_the_first_weights_depend_on_the_seed_alone(data):
    first, again, other = (
        build(TrainRunConfig(data="digits", model="resnet20", seed=seed), data).state_dict()
        for seed in (0, 0, 1)
    )
    assert all(value.equal(again[name]) for name, value in first.items())
    assert not all(value.equal(other[name]) for name, value in first.items())


def test_options_reach_the_attention(data):
    run = TrainRunConfig(data="digits", model="resnet20", preset="paper", kernel_size=3, reduction_ratio=4)
    blocks = [module for module in build(run, data).modules() if isinstance(module, CBAM)]
    assert len(blocks) == 9
    assert {block.preset for block in blocks} == {"paper"}
    assert {block.spatial_attention.conv.kernel_size for block in blocks} == {(3, 3)}
    assert blocks[0].channel_attention.layers[0].out_channels == 4


@pytest.mark.parametrize("attention", ["none", "se", "channel", "spatial"])
def test_every_attention_is_built(data, attention):
    build(TrainRunConfig(data="digits", model="resnet20", attention=attention), data)


def test_a_model_that_brings_its_attention(data):
    with pytest.raises(CBAMError, match="--model resnet20 --attention se"):
        build(TrainRunConfig(data="digits", model="resnet20_se"), data)
    build(TrainRunConfig(data="digits", model="resnet20_se", attention="none"), data)


def test_only_what_changes_the_result_counts_as_another_run():
    run = TrainRunConfig(data="digits", model="resnet20")
    elsewhere = TrainConfig(device="cpu", accumulate=2, compile=True, workers=3)
    same = TrainRunConfig(
        data="digits", model="resnet20", save_every=5, keep=9, output=run.folder / "x", train=elsewhere
    )
    assert TrainRunConfig.differences(run.resolved(), same.resolved()) == []
    other = TrainRunConfig(data="digits", model="resnet20", seed=3)
    assert TrainRunConfig.differences(run.resolved(), other.resolved()) == ["seed: 0 there, 3 now"]


def test_a_training_can_be_sharded_from_some_step_on():
    run, sharded = (TrainRunConfig(data="digits", train=TrainConfig(shard=shard)) for shard in (False, True))
    assert TrainRunConfig.differences(run.resolved(), sharded.resolved()) == []
