"""Files that version d02c289 wrote, before names and structure changed: they are read, with the same results.

`make_files.py` wrote them. Where torch rounds as it did there (`tiny.arithmetic`) and the operator is built, trainings
that go on must end in the same numbers to the last bit. On another processor sums are taken in another order, and
thirty steps of training make that visible: there the accuracy may move by a few of 100 images.
"""

import contextlib
import io
import json
import shlex
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import cbam as package
from cbam import attach, from_pretrained, load_weights
from cbam.cli.main import main
from cbam.models import build_model
from tests.legacy import tiny

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text())
SAVED = [path.name for path in sorted((HERE / "saved").iterdir()) if path.is_dir()]
TIMES = {"seconds", "finished"}
SMALL = shlex.split("--data digits --limit-train 200 --limit-val 100 --epochs 2 --batch-size 20 --device cpu")
NET = shlex.split("--model timm/legacy_tiny --reduction-ratio 4")


@cache
def exact():
    operator = Path(package.__file__).parent / "_cpp.abi3.so"
    return operator.exists() and tiny.arithmetic() == EXPECTED["arithmetic"]


def check_same(before, now):
    """All that was said before is said now; what is new may stand beside it."""
    for name in before.keys() - TIMES:
        old, new = before[name], now[name]
        if isinstance(old, dict):
            check_same(old, new)
        elif exact() or not isinstance(old, (float, list)):
            assert new == old, name
        elif name in ("val_loss", "val_accuracy", "val_top5", "val_accuracy_ema", "val_top5_ema"):
            assert new == pytest.approx(old, abs=0.05), name


def copied(tmp_path, name):
    return Path(shutil.copytree(HERE / name, tmp_path / name))


def contents(folder, *patterns):
    return {path: path.read_bytes() for pattern in patterns for path in sorted(folder.glob(pattern))}


def cbam(verb, folder, *options):
    """Run a verb on an old run's folder with the options that stand in it; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([verb, "--config", str(folder / "config.yaml"), "--output", str(folder), *options])
    assert code == 0
    return printed.getvalue()


def check_settings(name, folder):
    before, now = (yaml.safe_load((run / "config.yaml").read_text()) for run in (HERE / name, folder))
    assert {key: now.get(key) for key in before if key != "output"} == {
        key: value for key, value in before.items() if key != "output"
    }


def test_a_finished_comparison_is_reported_again(tmp_path):
    folder = copied(tmp_path, "compare")
    kept = contents(folder, "cells/*/*", "metrics.jsonl")
    assert len(kept) == 17
    cbam("compare", folder)
    assert {path: path.read_bytes() for path in kept} == kept, "a network was trained again"
    check_settings("compare", folder)
    before, now = ((run / "summary.csv").read_text().splitlines() for run in (HERE / "compare", folder))
    before_rows, rows = (
        [dict(zip(t[0].split(","), line.split(","), strict=True)) for line in t[1:]] for t in (before, now)
    )
    # Since then two seeds get no interval, and the speed of training leaves out the first epoch.
    newer = ("_low", "_high", "p_value", "images_per_s")
    for row, old in zip(rows, before_rows, strict=True):
        same = [column for column in old if not any(part in column for part in newer)]
        assert {column: row[column] for column in same} == {column: old[column] for column in same}
        assert not any(row[column] for column in old if "_low" in column or "p_value" in column)
    costs = [json.loads((run / "costs.json").read_text()) for run in (HERE / "compare", folder)]
    for cost in (cost for run in costs for cost in run.values()):
        cost.pop("training_images_per_s", None)
    check_same(*costs)
    page = (folder / "report.html").read_text()
    for accuracy in ("26.50", "24.50", "14.50", "32.00"):  # of the four variants, in per cent
        assert accuracy in page


@pytest.mark.slow
def test_a_stopped_comparison_ends_as_it_would_have(tmp_path):
    folder = copied(tmp_path, "compare-stopped")
    kept = contents(folder, "cells/none-seed0/*", "cells/se-seed0/*")
    cbam("compare", folder)
    assert {path: path.read_bytes() for path in kept} == kept, "a finished network was trained again"
    check_settings("compare", folder)
    for name, result in EXPECTED["compare"].items():
        check_same(result, json.loads((folder / "cells" / name / "result.json").read_text()))
        old, new = (
            load_file(run / "cells" / name / "model.safetensors") for run in (HERE / "compare", folder)
        )
        assert list(old) == list(new)
        if exact():
            assert all(torch.equal(old[key], new[key]) for key in old)
    first = [
        row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if row["cell"] == "cbam-seed0"
    ]  # fmt: skip
    assert [row["epoch"] for row in first] == [1, 2], "its first epoch was kept, and only the second trained"


def test_the_tables_of_an_ablation_are_printed_again(tmp_path, capsys):
    folder = copied(tmp_path, "ablate")
    assert main(["ablate", "--report", str(folder)]) == 0
    text = capsys.readouterr().out
    for cell in ("cbam-official-k3-seed0", "cbam-official-seed0"):
        assert f"{100 * EXPECTED['ablate'][cell]['val_accuracy']:.2f}" in text


def test_an_ablation_goes_on(tmp_path):
    folder = copied(tmp_path, "ablate")
    kept = contents(folder, "cells/*/*")
    assert len(kept) == 6
    options = [*SMALL, *NET, "--seeds", "1", "--kernel", "3,7", "--output", str(folder)]
    assert main(["ablate", *options]) == 0
    assert {path: path.read_bytes() for path in kept} == kept, "a network was trained again"


def test_a_finished_training_is_known_to_be_finished(tmp_path):
    folder = copied(tmp_path, "train")
    kept = contents(folder, "**/*.*")
    text = cbam("train", folder)
    assert {path: path.read_bytes() for path in kept} == kept
    assert f"top-1 {EXPECTED['train']['val_accuracy']:.2%}" in text


@pytest.mark.parametrize("name", ["final", "final_ema"])
def test_a_training_s_networks_are_evaluated_to_the_same_accuracy(tmp_path, name):
    result = EXPECTED["train"]
    scores = tmp_path / "scores.json"
    options = ["--data", "digits", "--limit-val", "100", "--device", "cpu", "--output", str(scores)]
    assert main(["evaluate", str(HERE / "train" / name), *options]) == 0
    ending = name.removeprefix("final")
    found = json.loads(scores.read_text())
    assert found["top1"] == pytest.approx(result[f"val_accuracy{ending}"], abs=0 if exact() else 0.011)
    assert found["top5"] == pytest.approx(result[f"val_top5{ending}"], abs=0 if exact() else 0.011)


def test_a_stopped_training_ends_as_it_would_have(tmp_path, capsys):
    folder = copied(tmp_path, "train-stopped")
    options = [*SMALL, *NET, "--ema", "0.9", "--save-every", "4", "--keep", "1", "--output", str(folder)]
    assert main(["train", *options]) == 0
    assert "resumes after 1 epoch and 4 steps" in capsys.readouterr().err
    check_settings("train", folder)
    check_same(EXPECTED["train"], json.loads((folder / "result.json").read_text()))
    for name in ("final", "final_ema", "best"):
        old, new = (load_file(run / name / "model.safetensors") for run in (HERE / "train", folder))
        assert list(old) == list(new)
        if exact():
            assert all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_network_computes_what_it_computed(name):
    folder = HERE / "saved" / name
    config = json.loads((folder / "config.json").read_text())
    base = None
    if config["backbone"] is None or config["content"] == "attention":
        base = build_model("timm/legacy_tiny", 10, in_channels=1)
        if config["content"] == "attention":
            base.load_state_dict(load_file(HERE / "saved" / "base.safetensors"))
    model = from_pretrained(folder, base)
    outputs = load_file(HERE / "saved" / "outputs.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(outputs["input"]), outputs[name], rtol=1e-4, atol=1e-5)
    fused = any("WithEpilogue" in kind.__name__ for part in model.modules() for kind in type(part).__mro__)
    assert fused == config["fuse_tail"]
    for field in ("class_names", "input_size", "mean", "std"):
        value = getattr(model.cbam_config, field)
        assert (None if value is None else list(value)) == config[field]


def attached(preset):
    model = build_model("timm/legacy_tiny", 10, in_channels=1)
    attach(model, input_size=(1, 8, 8), preset=preset, reduction_ratio=4, init="paper")
    return model.eval()


@pytest.fixture
def official():
    """The network that `checkpoints` holds, and which is also saved as `official`."""
    return load_file(HERE / "saved" / "outputs.safetensors")


def check_output(model, outputs):
    with torch.no_grad():
        torch.testing.assert_close(model(outputs["input"]), outputs["official"], rtol=1e-4, atol=1e-5)


def test_a_state_dict_keeps_its_names(official):
    model = attached("official")
    model.load_state_dict(torch.load(HERE / "checkpoints" / "attached.pth", weights_only=True))
    check_output(model, official)


@pytest.mark.parametrize("name", ["attached.pth", "cbam.safetensors", "timm.safetensors"])
def test_a_checkpoint_loads(name, official):
    model = attached("official")
    sites = None
    if name.startswith("timm"):
        sites = {f"layer{n}.0.se": f"layer{n}.0.bn2.cbam" for n in (1, 2)}
    report = load_weights(model, HERE / "checkpoints" / name, sites=sites)
    assert report.complete
    check_output(model, official)


def test_a_converted_file_still_says_in_which_order_its_kernels_read(tmp_path, official):
    """Without the words beside the tensors, weights of this form are refused: official and timm differ there."""
    out = tmp_path / "timm.safetensors"
    assert main(["convert", str(HERE / "checkpoints" / "cbam.safetensors"), str(out), "--to", "timm"]) == 0
    before, now = load_file(HERE / "checkpoints" / "timm.safetensors"), load_file(out)
    assert before.keys() == now.keys()
    assert all(torch.equal(before[key], now[key]) for key in before)
    with safe_open(HERE / "checkpoints" / "cbam.safetensors", framework="pt") as file:
        assert file.metadata()["cbam.dialect"] == "cbam"


def test_measurements_of_the_old_code_are_not_mixed_with_new_ones(tmp_path, capsys):
    """`cbam bench` goes on only with the same code on the same machine; it has to see that this is another."""
    folder = copied(tmp_path, "bench")
    kept = contents(folder, "*")
    assert main(["bench", "--quick", "--parts", "modules", "--threads", "1", "--output", str(folder)]) == 2
    assert "d02c289" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in kept} == kept
