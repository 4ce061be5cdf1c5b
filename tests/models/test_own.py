"""`--model my_net:build`: networks of the user's own, by every command that takes a network."""

import textwrap

import pytest
import torch

from cbam import from_pretrained, save_pretrained
from cbam.cli.main import main
from cbam.errors import CBAMError
from cbam.models import build_model
from cbam.models.own import build_own, check_classifier
from cbam.models.registry import split_attention
from cbam.pretrained.config import Backbone

CODE = """
from torch import nn

number = 3

class Net(nn.Sequential):
    def __init__(self, num_classes=7, in_channels=1):
        super().__init__(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
        )

def build_cbam(**options):
    return Net(**options)

def always_two():
    return Net(2)

def nothing():
    return None

def broken(num_classes):
    raise KeyError("no")
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A module in the current folder whose name no other test has imported."""
    name = f"net_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    return name


def classes_and_channels(model):
    return model[6].out_features, model[0].in_channels


@pytest.mark.parametrize("name", ["Net", "build_cbam"])
def test_it_gets_what_it_takes(module, name):
    assert classes_and_channels(build_own(f"{module}:{name}")) == (7, 1)
    assert classes_and_channels(build_model(f"{module}:{name}", 4, in_channels=3)) == (4, 3)
    assert classes_and_channels(build_model(f"{module}:always_two", 4, in_channels=3)) == (2, 1)


def test_a_name_like_that_of_attention_is_none():
    assert split_attention("my_net:build_cbam") == ("my_net:build_cbam", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}:Nte", r"{} has no 'Nte'\. Closest: 'Net'"),
        ("{}:number", "names a int, which cannot be called"),
        ("{}:nothing", "returns a NoneType, not a torch.nn.Module"),
        ("{}:broken", r"broken\(num_classes=4\) failed \(KeyError: 'no'\)"),
        ("{}.py:Net", "such as {} for {}.py"),
        ("no_such_net:Net", "--model no_such_net:Net: no module 'no_such_net' is installed or in"),
    ],
)
def test_messages(module, name, message):
    with pytest.raises(CBAMError, match=message.format(module, module)):
        build_model(name.format(module), 4)


def test_pretrained_weights_are_its_own_business(module):
    with pytest.raises(CBAMError, match="let it load its weights, or give a file: --weights FILE"):
        build_model(f"{module}:Net", 4, pretrained=True)


def test_the_wrong_number_of_classes(module):
    name = f"{module}:always_two"
    with pytest.raises(CBAMError, match=r"returns \(2, 2\) for 2 images of 4 classes, expected \(2, 4\)"):
        check_classifier(build_own(name), name, 4, (1, 16, 16))
    with pytest.raises(CBAMError, match="fails on images of 3x16x16"):
        check_classifier(build_own(name), name, 2, (3, 16, 16))
    check_classifier(build_own(name), name, 2, (1, 16, 16))


def test_plan_and_cost(module, capsys):
    assert main(["plan", "--model", f"{module}:Net"]) == 0
    assert "in Net: 1 site" in capsys.readouterr().out
    size = ["--input-size", "3", "16", "16"]
    assert main(["cost", "--model", f"{module}:Net", "--attention", "se", "--num-classes", "5", *size]) == 0
    assert "input 1x3x16x16" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "compare"])
def test_training(module, command, tmp_path, capsys):
    few = ["--limit-train", "20", "--limit-val", "10", "--epochs", "1", "--batch-size", "10"]
    tiny = ["--data", "digits", "--device", "cpu", *few]
    attention = "cbam" if command == "train" else "none,cbam"
    output = ["--output", str(tmp_path / "run"), "--attention", attention]
    more = [] if command == "train" else ["--seeds", "1"]
    assert main([command, *tiny, *output, *more, "--model", f"{module}:always_two"]) == 2
    assert "for 2 images of 10 classes" in capsys.readouterr().err
    assert main([command, *tiny, *output, *more, "--model", f"{module}:Net"]) == 0
    if command == "train":
        network = from_pretrained(tmp_path / "run" / "best", build_own(f"{module}:Net", 10))
        assert network(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_no_file_says_which_code_to_run(module, tmp_path):
    model = build_own(f"{module}:Net")
    saved = save_pretrained(model, tmp_path / "saved", f"{module}:Net")
    with pytest.raises(CBAMError, match="holds no backbone's name"):
        from_pretrained(saved)
    with pytest.raises(CBAMError, match="a network that this library knows"):
        Backbone("os:getcwd", 10, 3)
