"""`cbam compare` as users meet it: real runs on digits in processes of their own, killed, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cbam.cli.main import main

SMALL = ["--data", "digits", "--limit-train", "640", "--limit-val", "100", "--epochs", "3", "--device", "cpu"]


def start(*options, launch=(sys.executable,)):
    # In a session of its own, so that all of its processes can be ended together.
    return subprocess.Popen(
        [*launch, "-m", "cbam", "compare", *SMALL, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # A shell that runs the tests in the background hands on an ignored SIGINT; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def communicate(process):
    try:
        return process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def run(*options):
    process = start(*options)
    out, err = communicate(process)
    return process.returncode, out, err


@pytest.fixture
def compare(server):
    """Run a comparison whose parent has imported torch already."""

    def compare(*options):
        done = server.run("compare", *SMALL, *options)
        return done.returncode, done.stdout, done.stderr

    return compare


def wait_for_epochs(run_folder, count, process):
    """Return once so many epochs are in metrics.jsonl."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        metrics = run_folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"no {count} epochs after two minutes")


def epochs(run_folder):
    """The metrics without what a clock measured; the last line for an epoch counts."""
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("images_per_s", "data_wait_s", "seconds")
    return {(row["cell"], row["epoch"]): {k: v for k, v in row.items() if k not in clock} for row in rows}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of three variants and one seed that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    code, out, err = run("--attention", "none,cbam,control", "--seeds", 1, "--output", folder)
    assert code == 0, err
    return folder, out, err


@pytest.mark.slow
class TestStraight:
    """What a run leaves."""

    def test_the_folder(self, straight):
        folder, _, _ = straight
        names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        expected = {
            "config.yaml",
            "env.json",
            "data.json",
            "metrics.jsonl",
            "costs.json",
            "summary.csv",
            "report.html",
        }
        assert expected <= names
        for cell in ("none-seed0", "cbam-seed0", "control-seed0"):
            assert {f"cells/{cell}/result.json", f"cells/{cell}/model.safetensors"} <= names
        assert not any(name.endswith(("state.pt", ".tmp", ".damaged")) for name in names)

    def test_the_results(self, straight):
        folder, _, _ = straight
        result = json.loads((folder / "cells" / "cbam-seed0" / "result.json").read_text())
        assert result["epochs"] == 3
        confusion = torch.tensor(result["confusion"])
        assert confusion.sum() == 100
        assert result["val_accuracy"] == confusion.trace().item() / 100
        assert result["val_accuracy"] == epochs(folder)["cbam-seed0", 3]["val_accuracy"]
        weights = load_file(folder / "cells" / "cbam-seed0" / "model.safetensors")
        counted = sum(
            value.numel() for name, value in weights.items() if "running" not in name and "num_b" not in name
        )
        assert counted == result["parameters"]

    def test_costs_and_summary(self, straight):
        folder, _, _ = straight
        costs = json.loads((folder / "costs.json").read_text())
        assert list(costs) == ["none", "cbam", "control"]
        assert abs(costs["control"]["parameters"] / costs["cbam"]["parameters"] - 1) <= 0.01
        assert costs["cbam"]["macs"] > costs["none"]["macs"]
        assert all(
            cost["latency"]["32"]["median_ms"] > 0 and cost["training_images_per_s"] > 0
            for cost in costs.values()
        )
        rows = list(csv.DictReader((folder / "summary.csv").open()))
        assert [row["variant"] for row in rows] == ["none", "cbam", "control"]
        pictures = json.loads((folder / "pictures" / "pictures.json").read_text())
        assert set(pictures["images"][0]["variants"]) == {"none", "cbam", "control"}

    def test_how_to_repeat_it(self, straight):
        folder, _, _ = straight
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        assert settings["lr"] == 0.1
        assert settings["seeds"] == 1
        environment = json.loads((folder / "env.json").read_text())
        assert environment["command"][:4] == ["cbam", "compare", "--data", "digits"]
        data = json.loads((folder / "data.json").read_text())
        assert (data["train_images"], data["val_images"], data["input_size"]) == (640, 100, [1, 8, 8])

    def test_what_is_printed(self, straight):
        folder, out, err = straight
        assert "control" in out
        assert "No claim can be made from one seed" in out
        assert str(folder / "report.html") in out
        assert "\x1b" not in out + err, "no terminal, so no control codes"
        assert err.count(" epoch ") == 9, "one line per epoch"
        to_copy = ("report: ", "  cbam train ", "use one: ")  # commands and paths are not broken
        assert all(len(line) <= 90 for line in out.splitlines() if not line.startswith(to_copy))

    def test_again_trains_nothing_and_answers_the_same(self, straight, compare):
        folder, out, _ = straight
        before = (folder / "metrics.jsonl").read_bytes()
        code, again, err = compare("--attention", "none,cbam,control", "--seeds", 1, "--output", folder)
        assert code == 0
        assert again == out
        assert "3 of them done before" in err
        assert (folder / "metrics.jsonl").read_bytes() == before
        assert len(json.loads((folder / "env.json").read_text())["continued"]) == 1


@pytest.mark.slow
def test_kill_9_and_go_on_gives_the_same_bits(straight, server, compare, tmp_path):
    reference, _, _ = straight
    folder = tmp_path / "run"
    process = server.start(
        "compare", *SMALL, "--attention", "none,cbam,control", "--seeds", 1, "--output", folder
    )
    wait_for_epochs(folder, 4, process)  # in the second cell
    process.kill()
    process.communicate()
    assert not (folder / "report.html").exists()
    (folder / "metrics.jsonl").open("a").write('{"cell": "cbam-se')  # as a kill in the middle of a write
    code, _, err = compare("--attention", "none,cbam,control", "--seeds", 1, "--output", folder)
    assert code == 0, err
    assert "1 of them done before" in err
    for cell in ("none-seed0", "cbam-seed0", "control-seed0"):
        ours, theirs = (load_file(run / "cells" / cell / "model.safetensors") for run in (folder, reference))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), cell
    assert epochs(folder) == epochs(reference)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_ctrl_c_stops_it_with_the_way_to_go_on(server, tmp_path):
    folder = tmp_path / "my run"
    process = server.start("compare", *SMALL, "--attention", "none,se", "--output", folder)
    wait_for_epochs(folder, 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.endswith(f"--attention none,se --output '{folder}'\n"), (
        "the command, quoted as a shell needs it"
    )
    assert re.search(r"(done\. The run is|everything is saved) in .*my run\. To resume", err)


@pytest.mark.slow
def test_more_seeds_and_damaged_files(straight, compare):
    folder, _, _ = straight
    (folder / "cells" / "cbam-seed0" / "result.json").write_text('{"variant": "cb')
    (folder / "costs.json").write_text("")
    weights = load_file(folder / "cells" / "cbam-seed0" / "model.safetensors")
    code, out, err = compare("--attention", "none,cbam,control", "--seeds", 2, "--output", folder)
    assert code == 0, err
    assert "result.json is damaged" in err
    assert "costs.json is damaged" in err
    assert "6 models to train for 3 epochs each, 2 of them done before" in err
    again = load_file(folder / "cells" / "cbam-seed0" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in weights.items()), (
        "trained again to the same end"
    )
    assert "95 % interval" in out


@pytest.mark.slow
def test_two_processes_share_a_batch(tmp_path):
    """What torchrun and `accelerate launch` start: one run, one folder, one voice."""
    folder = tmp_path / "run"
    options = ["--attention", "none", "--seeds", 1, "--output", folder, "--epochs", 2]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = start(*options, launch=launch)
    out, err = communicate(done)
    assert done.returncode == 0, err
    assert out.count("report: ") == 1
    result = json.loads((folder / "cells" / "none-seed0" / "result.json").read_text())
    assert torch.tensor(result["confusion"]).sum() == 100, "no image is counted twice"
    assert (folder / "metrics.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "digits", "--model", "resnet21"], "unknown model 'resnet21'. Did you mean 'resnet"),
        (["--data", "digits", "--attention", "none,cbma"], "Did you mean 'cbam'"),
        (["--data", "fashon-mnist"], "Did you mean 'fashion-mnist'"),
        (["--data", "no/such/folder"], "no folder 'no/such/folder'"),
        (["--data", "digits", "--config", "none.yaml"], "none.yaml cannot be read: No such file"),
        (["--data", "digits", "--weights", "none.pth"], "none.pth"),
        (["--data", "digits", "--reduction-ratio", "0"], "--reduction-ratio must be at least 1"),
        (["--data", "digits", "--epochs", "0"], "--epochs must be at least 1"),
        (["--data", "digits", "--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
    ],
)
def test_bad_usage_says_what_to_type_and_leaves_nothing(tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["compare", *options])
    except SystemExit as stop:  # tyro's own way out
        code = stop.code
    assert code == 2
    text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert told in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "digits", "--epoch", "3"], "--epochs"),
        (["--data", "digits", "--epochs", "many"], "many"),
        ([], "--data"),
    ],
)
def test_wrong_options_get_the_nearest(capsys, options, told):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *options])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_another_configuration_in_the_same_folder_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("data: digits\nmodel: resnet20\nepochs: 7\nseeds: 3\n")
    assert main(["compare", "--data", "digits", "--output", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "epochs: 7 there, 10 now" in err
    assert "--output" in err


OPTIONS = """data labels image-size resize augment crop flip mean std limit-train limit-val val-fraction
bad-images import model sites replace pretrained weights attention reduction-ratio seeds output overwrite
config ray slurm track quick model-cpus model-gpus epochs batch-size optimizer lr weight-decay decay-norms
gate-lr-scale gate-weight-decay ema precision device accumulate sync-bn workers schedule step-epochs
warmup-epochs label-smoothing mixup cutmix class-weights sampler freeze-backbone shard compile"""


def test_the_options_are_frozen(capsys):
    """So many are the most that one can overlook: a new one needs a user, and this list to be changed on purpose."""
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    _, _, text = capsys.readouterr().out.partition(
        "--help"
    )  # the description, in front of it, names options too
    options = re.findall(r"(?m)^\W{0,3}--([a-z][a-z-]+)", text)
    assert options == OPTIONS.split()


def test_one_line_of_help_for_each_option(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "0.01 with --pretrained or --weights" in text
    assert "widened until it has as many parameters as cbam" in text
