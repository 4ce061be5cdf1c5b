"""The models that the cells start from: the same backbone for every variant, and a control of the right size."""

from __future__ import annotations

import pytest
import torch

from cbam.attach.replacement import Replacement
from cbam.attach.variants import matched_by_control, variant_names
from cbam.compare.config import CompareConfig
from cbam.compare.grid import Cell, build_cell, cells, count_parameters
from cbam.data import load_data
from cbam.errors import CBAMError
from cbam.models import build_model
from cbam.train import run as train
from cbam.train.config import TrainRunConfig


@pytest.fixture(scope="module")
def data():
    return load_data("digits", limit_train=20, limit_val=20)


def build(variant, data, seed=0, **settings):
    return build_cell(
        Cell(variant, seed),
        CompareConfig(data="digits", attention=",".join(variant_names()), **settings),
        data,
    )


def test_attention_alone_is_no_comparison():
    with pytest.raises(CBAMError, match="Type: --attention none,cbam"):
        CompareConfig(data="digits", attention="cbam")


def test_seed_major_order():
    assert [(c.variant, c.seed) for c in cells(("none", "cbam"), 3)] == [
        (variant, seed) for seed in range(3) for variant in ("none", "cbam")
    ]


def test_every_variant_of_a_seed_starts_from_the_same_backbone(data):
    plain = build("none", data, seed=3).state_dict()
    for variant in variant_names():
        if variant == "control":
            continue
        weights = build(variant, data, seed=3).state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in plain.items()), variant
    other = build("none", data, seed=4).state_dict()
    assert not torch.equal(plain["conv1.weight"], other["conv1.weight"])


def test_building_a_cell_does_not_depend_on_what_was_built_before(data):
    first = build("cbam", data, seed=1).state_dict()
    build("control", data, seed=1)
    torch.manual_seed(99)
    again = build("cbam", data, seed=1).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_building_leaves_the_generator_alone(data):
    before = torch.get_rng_state()
    build("control", data)
    assert torch.equal(before, torch.get_rng_state())


def test_the_control_computes_what_plain_computes_and_is_as_large_as_cbam(data):
    plain, cbam, control = (build(name, data).eval() for name in ("none", "cbam", "control"))
    assert abs(count_parameters(control) / count_parameters(cbam) - 1) <= 0.01
    assert count_parameters(control) > count_parameters(plain)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(control(images), plain(images))


def test_the_control_matches_the_first_attention_without_cbam(data):
    assert matched_by_control(("none", "channel", "se", "control")) == "channel"
    config = CompareConfig(data="digits", attention="none,cbam:official,control")
    target = count_parameters(build_cell(Cell("cbam:official", 0), config, data))
    control = count_parameters(build_cell(Cell("control", 0), config, data))
    assert abs(control / target - 1) <= 0.01


def test_from_scratch_the_gates_are_fresh_and_fine_tuned_ones_change_nothing(data, tmp_path):
    images = torch.randn(2, 1, 8, 8)
    plain = build("none", data)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    assert not torch.equal(build("cbam", data).eval()(images), plain.eval()(images))
    tuned = build("cbam", data, seed=5, weights=tmp_path / "plain.pth")
    assert torch.equal(tuned.eval()(images), plain.eval()(images))


def test_presets_and_ratio_arrive(data):
    official, paper = build("cbam:official", data), build("cbam", data)
    assert count_parameters(official) > count_parameters(paper), "the authors' code has biases and a norm"
    assert count_parameters(build("se", data, reduction_ratio=4)) > count_parameters(build("se", data))


def test_named_sites_arrive(data):
    """Paths, and for a network without residual branches the ends of its stages unless told otherwise."""
    settings = {"model": "vgg11", "image_size": 32, "sites": ("features.7,features.1?",)}
    small = load_data("digits", limit_train=20, limit_val=20, image_size=32)
    keys = {
        key.split(".cbam.")[0] for key in build("cbam", small, **settings).state_dict() if ".cbam." in key
    }
    assert keys == {"features.7"} | {f"features.{i}" for i in range(10, 20)}
    with pytest.raises(
        CBAMError, match=r"sites='residual' finds no site in VGG.*'stage' \(5\), 'conv' \(8\)"
    ):
        build("cbam", small, **{**settings, "sites": ("residual",)})
    keys = build("cbam", small, model="vgg11", image_size=32).state_dict()
    assert sum(key.endswith(".cbam.spatial_attention.conv.weight") for key in keys) == 5


def test_the_control_counts_the_network_that_it_matches_once(data, monkeypatch):
    built = []
    monkeypatch.setattr(
        "cbam.models.build_model",
        lambda *given, **options: built.append(given) or build_model(*given, **options),
    )
    config = CompareConfig(data="digits", attention="none,cbam,control")
    parameters = {}
    for variant in config.variants:
        build_cell(Cell(variant, 0), config, data, parameters)
    assert len(built) == 3, "one network a variant"
    build_cell(Cell("control", 1), config, data, parameters)
    assert len(built) == 4
    alone = count_parameters(build_cell(Cell("control", 1), config, data))
    assert parameters["control"] == alone, "as large as without the known number"


def test_attention_in_the_place_of_squeeze_excitations():
    """In `compare` and `train`; the plain network keeps its own."""
    settings = {"model": "mobilenet_v3_small", "image_size": 32, "replace": "se"}
    small = load_data("digits", limit_train=20, limit_val=20, image_size=32)
    plain, attended = (build(variant, small, **settings) for variant in ("none", "cbam"))
    replaced = {name for name, module in attended.named_modules() if isinstance(module, Replacement)}
    assert replaced == {name for name, m in plain.named_modules() if type(m).__name__ == "SqueezeExcitation"}
    trained = train.build(TrainRunConfig(data="digits", attention="cbam", **settings), small)
    assert {name for name, module in trained.named_modules() if isinstance(module, Replacement)} == replaced
    with pytest.raises(CBAMError, match="unknown replace 'norm'"):
        CompareConfig(data="digits", replace="norm")
