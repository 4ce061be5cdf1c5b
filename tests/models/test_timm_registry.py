"""Our backbones through timm's factory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import cbam.models.timm_registry  # noqa: F401 (registers the networks)
from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError
from cbam.models import build_model, model_names
from cbam.models.registry import OWN, timm_names

REGISTERED = timm_names()


def test_importing_the_models_leaves_timm_alone():
    imports = "import sys, cbam.models, cbam.evaluate.paper_costs"
    code = f"{imports}; print('timm' in sys.modules, 'torchvision' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_every_name_is_timm_s_and_ours():
    assert set(REGISTERED) <= set(timm.list_models())
    assert len(set(REGISTERED.values())) == len(REGISTERED) == 3 * len(OWN) + 2 * 7
    assert {"paper_resnet50", "paper_resnet50_se", "paper_resnet50_cbam"} <= set(timm.list_models("paper_*"))
    assert "wrn18_200_cbam" in timm.list_models("wrn18_*")
    assert timm.model_entrypoint("resnet50").__module__ == "timm.models.resnet", "timm's own stay timm's"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("paper_resnet18_cbam", 64),
        ("resnet20_se", 32),
        ("mobilenet_v1_070_cbam", 64),
        ("wrn18_150", 64),
        ("resnet18_cbam", 64),
    ],
)
def test_networks(name, size):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, in_chans=1).eval()
    torch.manual_seed(0)
    other = build_model(REGISTERED[name], 10, in_channels=1).eval()
    images = torch.rand(2, 1, size, size)
    assert torch.equal(model(images), other(images))
    assert model.num_classes == 10
    assert model.default_cfg["architecture"] == name


@pytest.mark.parametrize("name", [*REGISTERED])
def test_settings_point_at_the_first_and_last_layer(name):
    settings = timm.get_pretrained_cfg(name).to_dict()
    plain = REGISTERED[name].removesuffix("_se").removesuffix("_cbam")
    with torch.device("meta"):
        modules = dict(build_model(plain, settings["num_classes"]).named_modules())
    assert modules[settings["first_conv"]].in_channels == 3
    assert modules[settings["classifier"]].out_features == settings["num_classes"]
    assert settings["input_size"] == ((3, 32, 32) if settings["num_classes"] == 10 else (3, 224, 224))


def test_our_names_stay_ours_once_timm_knows_them():
    assert not isinstance(build_model("timm/resnet18", 3), type(build_model("paper_resnet18", 3)))
    assert str(build_model("timm/wrn18_150_se", 3)) == str(build_model("wrn18_1.5_se", 3))
    assert not {f"timm/{name}" for name in REGISTERED} & set(model_names())


def test_timm_s_tools_read_the_settings():
    model = timm.create_model("resnet20_cbam", num_classes=4)
    assert resolve_model_data_config(model)["input_size"] == (3, 32, 32)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == model.num_classes == 7
    assert sum(isinstance(m, WithAttention) for m in model.modules()) == 9
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape[2:] == model.default_cfg["pool_size"]
    assert timm.create_model("paper_resnet18", num_classes=0)(torch.zeros(1, 3, 64, 64)).shape == (1, 512)


def test_defaults_of_training_scripts_are_taken():
    options = {"drop_rate": 0.0, "drop_path_rate": None, "global_pool": "avg", "scriptable": False}
    assert timm.create_model("resnet20", **options).num_classes == 10
    overlay = {"input_size": (3, 64, 64)}
    assert timm.create_model("resnet20", pretrained_cfg_overlay=overlay).default_cfg["input_size"] == (
        3,
        64,
        64,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": True}, "resnet20 comes without pretrained weights.*checkpoint_path=FILE"),
        ({"drop_rate": 0.2, "features_only": True}, "takes num_classes and in_chans, given also 'drop_rate'"),
        ({"num_classes": -1}, "num_classes=-1"),
    ],
)
def test_what_they_do_not_take(options, message):
    with pytest.raises(CBAMError, match=message):
        timm.create_model("resnet20", **options)


def test_torchvision_s_need_a_classifier():
    with pytest.raises(CBAMError, match="resnet18_se is torchvision's network, which needs a classifier"):
        timm.create_model("resnet18_se", num_classes=0)


def test_it_comes_back_from_a_folder(tmp_path):
    """By the name for `build_model`, so that the reader needs no registry."""
    import cbam

    model = timm.create_model("paper_resnet18_cbam", num_classes=3, in_chans=1).eval()
    cbam.save_pretrained(model, tmp_path)
    again = cbam.from_pretrained(tmp_path)
    assert again.cbam_config.backbone.name == "paper_resnet18"
    image = torch.rand(1, 1, 64, 64)
    assert torch.equal(model(image), again(image))
