"""Write the files of this folder; runs on commit d02c289, the last one before the change, and on no later one.

git worktree add ../before d02c289 && cd ../before
(build the operator as the Makefile does, then)
PYTHONPATH=src:PATH/TO/tests/legacy OMP_NUM_THREADS=1 python PATH/TO/tests/legacy/make_files.py
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import tiny  # makes timm/legacy_tiny known
import torch
from cbam.compare.progress import PlainProgress
from rich.console import Console
from safetensors.torch import save_file

import cbam
from cbam import attach, fold_gate_scale, save_pretrained
from cbam.cli.main import main
from cbam.compare.run import execute as compare
from cbam.compare.run import prepare as prepare_comparison
from cbam.models import build_model
from cbam.ops.cpp import library_file

HERE = Path(__file__).resolve().parent
MODEL, IMAGES = "timm/legacy_tiny", (1, 8, 8)
SMALL = shlex.split("--data digits --limit-train 200 --limit-val 100 --epochs 2 --batch-size 20 --device cpu")
NET = ["--model", MODEL, "--reduction-ratio", "4"]
COMPARE = [*SMALL, *NET, "--seeds", "2"]
ABLATE = [*SMALL, *NET, "--seeds", "1", "--kernel", "3,7"]
TRAIN = [*SMALL, *NET, "--ema", "0.9", "--save-every", "4", "--keep", "1", "--output", "train"]


class Stopped(BaseException):
    """The process is killed."""


def stopped_comparison():
    """`cbam compare`, killed in the second epoch of its third network."""
    from cbam.cli.compare import parse

    class Killed(PlainProgress):
        def step(self, epoch, step, steps, loss):
            if self._number == 3 and (epoch, step) == (1, 5):
                raise Stopped

    config = parse([*COMPARE, "--output", "compare"])
    progress = Killed(Console(file=io.StringIO()))
    with contextlib.suppress(Stopped):
        compare(prepare_comparison(config, ["cbam", "compare"], progress), progress)
    keep("compare", "compare-stopped")


def stopped_training():
    """`cbam train`, killed in its second epoch behind a save in the middle of it."""
    from cbam.cli.train import parse
    from cbam.train.run import Told, execute, prepare

    def step(epoch, step, steps, loss):
        if (epoch, step) == (1, 6):
            raise Stopped

    with contextlib.suppress(Stopped):
        execute(prepare(parse(TRAIN), ["cbam", "train"], Told(step=step)))
    keep("train", "train-stopped")


def keep(folder, name):
    """Copy a run without what its machine left, and without pictures and page, which are drawn again."""
    unwanted = shutil.ignore_patterns(".lock", "pictures", "report.html", "*.png", "*.svg", "bench.*")
    shutil.copytree(folder, HERE / name, ignore=unwanted)
    environment = HERE / name / "env.json"
    if environment.exists():
        content = json.loads(environment.read_text())
        environment.write_text(json.dumps({**content, "system": "Linux"}, indent=1) + "\n")


def randomised(model):
    """Weights and running statistics of a network that has been trained, as far as their size goes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("gate_scale"):
                continue
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * 0.3
                tensor.copy_(noise.abs() + 0.5 if "running_var" in name else noise + (tensor.ndim == 1))
    return model.eval()


def network(**options):
    model = build_model(MODEL, 10, in_channels=1)
    if options:
        attach(model, input_size=IMAGES, **options)
    return randomised(model)


def saved(outputs):
    """Folders of save_pretrained, and the input and output of each network."""
    x = torch.randn(4, *IMAGES, generator=torch.Generator().manual_seed(2))
    outputs["input"] = x

    def save(name, model, backbone=MODEL, **options):
        with torch.no_grad():
            outputs[name] = model(x)
        save_pretrained(model, HERE / "saved" / name, backbone, **options)

    about = {"class_names": list("0123456789"), "input_size": IMAGES, "mean": [0.3], "std": [0.4]}
    save("paper", network(reduction_ratio=4), **about)
    save("official", network(preset="official", reduction_ratio=4, init="paper"))
    save("no-backbone", network(preset="timm", reduction_ratio=4), backbone=None)
    several = {
        "layer1.0.bn2": {"kernel_size": 3, "preset": "official"},
        "layer2.0.bn2": {"attention": "se", "gate": "hardsigmoid"},
    }
    save("several", network(sites=several, reduction_ratio=4))
    save("se-unfused", network(attention="se", reduction_ratio=4, fuse_tail=False))
    save("channel", network(attention="channel", reduction_ratio=4, channel_pooling="avg"))
    folded = network(attention="spatial", kernel_size=5, spatial_descriptor="max")
    fold_gate_scale(folded)
    save("spatial-folded", folded)
    base = network()
    save_file(base.state_dict(), HERE / "saved" / "base.safetensors")
    attach(base, input_size=IMAGES, reduction_ratio=4)
    plain = base.state_dict()
    for name, value in network(reduction_ratio=4).state_dict().items():
        if ".cbam." in name or "bn" in name or name.startswith("fc"):
            plain[name].copy_(value * 0.7)
    save("attention-only", base.eval(), attention_only=True)


def checkpoints():
    """A state dict by torch.save, and what `cbam convert` makes of it."""
    attached = network(preset="official", reduction_ratio=4, init="paper")
    there = HERE / "checkpoints"
    there.mkdir()
    torch.save(attached.state_dict(), there / "attached.pth")
    for to in ("cbam", "timm"):
        command = ["convert", str(there / "attached.pth"), str(there / f"{to}.safetensors"), "--to", to]
        assert main([*command, "--descriptor-order", "max-avg"]) == 0


def results(folder):
    cells = sorted((HERE / folder / "cells").glob("*/result.json"))
    return {cell.parent.name: json.loads(cell.read_text()) for cell in cells}


def run():
    assert "d02c289" in os.popen(f"git -C {Path(cbam.__file__).parent} log -1 --format=%H").read()[:7]
    assert library_file().exists()
    torch.set_num_threads(1)
    for old in [path for path in HERE.iterdir() if path.is_dir()]:
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory() as there:
        os.chdir(there)
        stopped_comparison()
        assert main(["compare", *COMPARE, "--output", "compare"]) == 0
        keep("compare", "compare")
        assert main(["ablate", *ABLATE, "--output", "ablate"]) == 0
        keep("ablate", "ablate")
        stopped_training()
        assert main(["train", *TRAIN]) == 0
        shutil.rmtree("train/checkpoints")
        keep("train", "train")
        assert main(["bench", "--quick", "--parts", "modules", "--threads", "1", "--output", "bench"]) == 0
        keep("bench", "bench")
    outputs = {}
    saved(outputs)
    checkpoints()
    save_file(outputs, HERE / "saved" / "outputs.safetensors")
    about = {
        "arithmetic": tiny.arithmetic(),
        "compare": results("compare"),
        "ablate": results("ablate"),
        "train": json.loads((HERE / "train" / "result.json").read_text()),
    }
    (HERE / "expected.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run())
