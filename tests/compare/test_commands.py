"""The command that the report gives for a variant trains the very network of the comparison."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file

from cbam import load_run
from cbam.cli import ablate, compare, cost, plan, train
from cbam.cli.detect import compare as detect_compare
from cbam.cli.detect import train as detect_train
from cbam.cli.main import main
from cbam.compare.commands import train_commands
from cbam.compare.grid import Cell, build_cell
from cbam.data import load_data
from cbam.nn import CBAM
from cbam.train.build import count_parameters
from cbam.train.run import build

RUN = shlex.split(
    "--data digits --limit-train 40 --limit-val 20 --epochs 1 --batch-size 20 --device cpu --image-size 16"
)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", limit_train=20, limit_val=10)


VARIANTS = (
    "none",
    "se",
    "cbam",
    "cbam:official:k3",
    "channel:avg",
    "timm:gc",
    "cbam:spatial-channel:r4",
    "control",
)


def test_one_default_in_every_command():
    networks = {
        "train": train.parse(["--data", "digits"]),
        "compare": compare.parse(["--data", "digits"]),
        "ablate": ablate.parse(["--data", "digits", "--table", "1"]),
    }
    assert {config.model for config in networks.values()} == {"resnet20"}
    detectors = [module.parse(["--data", "coco:photos"]) for module in (detect_train, detect_compare)]
    assert len({config.model for config in detectors}) == 1
    presets = {
        CBAM(16).preset,
        networks["train"].resolved()["preset"],
        plan.PlanConfig("resnet20").preset,
        cost.CostConfig("resnet20").preset,
    }
    assert presets == {"paper"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ratio", [None, 8])
def test_every_command_builds_the_network_of_the_cell(data, variant, ratio):
    more = [] if ratio is None else ["--reduction-ratio", str(ratio)]
    config = compare.parse([*RUN, "--attention", ",".join(VARIANTS), *more])
    parameters = {}
    cell = build_cell(Cell(variant, 1), config, data, parameters).state_dict()
    found = train_commands(config.resolved(), config.variants, parameters)
    assert set(VARIANTS) - set(found) == (set() if variant in ("cbam", "control") else {"control"})
    words = found[variant]
    assert words[:2] == ["cbam", "train"]
    alone = build(train.parse([*words[2:], "--seed", "1"]), data).state_dict()
    assert alone.keys() == cell.keys()
    assert all(torch.equal(value, alone[name]) for name, value in cell.items())


def test_the_command_repeats_every_option_that_counts():
    options = shlex.split(
        "--data digits --model resnet18 --sites layer3,layer4 --lr 0.03 --schedule step --label-smoothing 0.1 --mixup "
        "0.2 --ema 0.9 --gate-lr-scale 0.1 --weights net.safetensors --mean 0.5 --std 0.2 --val-fraction 0.3"
    )
    config = compare.parse(options)
    found = train_commands(config.resolved(), config.variants, {})
    again = train.parse(found["cbam"][2:])
    theirs, ours = config.resolved(), again.resolved()
    apart = {"attention", "output", "seeds", "ray", "slurm", "model_cpus", "model_gpus"}
    assert {name: ours[name] for name in theirs if name in ours and name not in apart} == {
        name: theirs[name] for name in theirs if name in ours and name not in apart
    }
    assert "--gate-lr-scale" not in found["none"]
    assert "--sites" not in found["none"]


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ("", ""),
        ("--image-size 224", "--image-size 224"),
        ("--model resnet18 --image-size 64", "--image-size 64"),
        ("--augment none", "--augment none"),
        ("--augment flip --flip 0.2", "--augment flip --flip 0.2"),
        ("--model resnet18 --crop 0.25", "--crop 0.25"),
    ],
)
def test_of_a_folder_it_repeats_what_was_typed_and_no_more(tmp_path, options, printed):
    config = compare.parse(["--data", str(tmp_path), *options.split()])
    words = train_commands(config.resolved(), ["cbam"], {})["cbam"]
    line = " ".join(words[words.index("--attention") + 2 :])
    assert line == printed
    ours, theirs = train.parse(words[2:]).resolved(), config.resolved()
    assert all(ours[name] == theirs[name] for name in ("image_size", "resize", "augment", "crop", "flip"))


def test_detectors_have_commands_too():
    config = detect_compare.parse(
        ["--data", "coco:photos", "--epochs", "2", "--attention", "none,cbam:k3,control"]
    )
    found = train_commands(config.resolved(), config.variants, {"cbam:k3": 9_000_000})
    again = detect_train.parse(found["cbam:k3"][3:])
    assert (again.attention, again.train.epochs, again.peak_lr()) == ("cbam:k3", 2, config.peak_lr())
    control = detect_train.parse(found["control"][3:])
    assert (control.attention, control.widened_to) == ("control", 9_000_000)
    for wrong in (["--attention", "control", "--sites", "head"], ["--attention", "se", "--widened-to", "9"]):
        with pytest.raises(SystemExit):
            detect_train.parse(["--data", "coco:photos", *wrong])


def test_a_control_needs_the_size_that_it_had():
    config = compare.parse([*RUN, "--attention", "none,se,control"])
    assert list(train_commands(config.resolved(), config.variants, {"none": 3})) == ["none", "se"]


def test_a_control_is_as_large_as_the_network_with_cbam(data):
    """Where no number is given."""
    control, cbam = (build(train.parse([*RUN, "--attention", name]), data) for name in ("control", "cbam"))
    assert count_parameters(control) == pytest.approx(count_parameters(cbam), rel=0.01)
    assert not any("cbam" in name for name in control.state_dict())


def test_the_printed_line_trains_the_network_of_the_comparison(tmp_path, monkeypatch, capsys):
    """In a quick, tracked comparison: what that leaves out comes with the same command without --quick."""
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    options = [*RUN, "--attention", "cbam,control", "--seeds", "1", "--track", "tensorboard"]
    assert main(["compare", *options, "--quick"]) == 0
    lines = [text for text in capsys.readouterr().out.splitlines() if "cbam train" in text]
    assert [line.partition("--attention ")[2].split()[0] for line in lines] == ["cbam", "control"]
    page = (tmp_path / "runs/digits-resnet20/report.html").read_text()
    for line in lines:
        assert line.strip() in page
        assert main(shlex.split(line)[1:]) == 0
    assert "Left out with <code>--quick</code>" in page
    assert "latency, batch 1" not in page
    for name in ("cbam", "control"):
        cell = tmp_path / f"runs/digits-resnet20/cells/{name}-seed0"
        assert list((cell / "tensorboard").glob("events.*"))
        alone = tmp_path / f"runs/train-digits-resnet20-{name}"
        ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (alone, cell))
        assert (ours["val_loss"], ours["parameters"]) == (theirs["val_loss"], theirs["parameters"])
        weights = load_file(alone / "final/model.safetensors")
        cell_weights = load_file(cell / "model.safetensors")
        assert all(torch.equal(value, weights[key]) for key, value in cell_weights.items())
    check_use_of_a_control(alone, ours, capsys)
    assert main(["compare", *options]) == 0
    page = (tmp_path / "runs/digits-resnet20/report.html").read_text()
    assert "latency, batch 1" in page
    assert "Left out with" not in page
    assert not (tmp_path / "runs/digits-resnet20-2").exists()


def check_use_of_a_control(run, result, capsys):
    """It opens, is evaluated, goes on and predicts like any other network."""
    opened = load_run(run)
    assert opened.network.config.backbone.widened_to is not None
    assert count_parameters(opened.model) == result["parameters"]
    capsys.readouterr()
    options = shlex.split("--data digits --limit-val 20 --image-size 16 --device cpu --output")
    assert main(["evaluate", str(run / "final"), *options, str(run / "scores.json")]) == 0
    assert json.loads((run / "scores.json").read_text())["top1"] == result["val_accuracy"]
    assert main(["train", "--config", str(run / "config.yaml"), "--output", str(run)]) == 0
    assert "top-1" in capsys.readouterr().out, "the same options, and nothing to do"
    steps = sorted((run / "checkpoints").glob("step-*"))
    assert count_parameters(load_run(steps[-1]).model) == result["parameters"]


@pytest.mark.parametrize(
    "settings", [{}, {"data": 3, "model": None}, {"data": "digits", "model": "resnet20", "lr": []}]
)
def test_settings_written_by_hand_give_no_command_or_one(settings):
    train_commands(settings, ["none", "cbam", "control"], {"cbam": 3})
    train_commands(settings, ["control"], {})
