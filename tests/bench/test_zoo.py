"""One model of each family through the zoo's checks; that these see what is wrong; that the command goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import zoo

FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "lraspp_mobilenet_v3_large",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "raft_small", "regnet_x_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "ssdlite320_mobilenet_v3_large", "vgg11",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_every_family(name):
    row = zoo.check("torchvision", name)
    assert row["reason"] == ""
    assert row["convolutional"]
    assert row["sites"] > 0


def test_what_does_not_convolve_is_left_out():
    assert not zoo.check("timm", "mixer_s32_224")["convolutional"]


class TestItSees:
    def check(self, monkeypatch, model):
        monkeypatch.setattr(zoo, "build", lambda library, name: model)
        monkeypatch.setattr(zoo, "is_convolutional", lambda model: True)
        return zoo.check("torchvision", "a model")["reason"]

    def network(self):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

    def test_a_good_one(self, monkeypatch):
        assert self.check(monkeypatch, self.network()) == ""

    def test_a_changed_output(self, monkeypatch):
        import cbam

        attach = cbam.attach
        monkeypatch.setattr(cbam, "attach", lambda model, **options: attach(model, init="paper", **options))
        assert self.check(monkeypatch, self.network()) == "the output is not the same"

    def test_gates_that_do_not_move(self, monkeypatch):
        class Cut(nn.Module):
            def forward(self, x):
                return x.detach()

        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), Cut(), nn.LazyLinear(5))
        assert "leaves 1 of 1 gates as they were, such as 1" in self.check(monkeypatch, model)


def test_the_command_goes_on_and_reports(tmp_path):
    output, page = tmp_path / "zoo.jsonl", tmp_path / "zoo.md"
    line = {"library": "torchvision", "model": "alexnet", "seconds": 1, "family": "AlexNet", "sites": 3,
            "convolutional": True, "reason": "a reason"}  # fmt: skip
    output.write_text(json.dumps(line) + '\n{"library": "torchv')

    def run(*arguments):
        command = [sys.executable, zoo.__file__, "--output", str(output), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout

    assert "1 done, 1 to go" in run("--library", "torchvision", "--only", "squeezenet1_1")
    run("--report", str(page))
    text = page.read_text()
    assert "1 of 2 convolutional models pass" in text
    assert "| alexnet | a reason |" in text
    assert "timm: not run yet" in text
    assert torch.__version__ in text
