"""A comparison on a local Ray and through submitit's local executor: real processes, the same weights as here."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from cbam.cli.main import main
from cbam.errors import CBAMError
from cbam.runs.launchers import slurm_parameters

TASK = [
    *("compare", "--data", "digits", "--limit-train", "32", "--limit-val", "20", "--model", "resnet20"),
    *("--attention", "none,cbam", "--seeds", "1", "--epochs", "1", "--batch-size", "16", "--device", "cpu"),
]
CELLS = ("none-seed0", "cbam-seed0")


def weights(folder):
    return [load_file(folder / "cells" / name / "model.safetensors") for name in CELLS]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here") / "run"
    assert main([*TASK, "--output", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "package"),
    [(["--ray", "local"], "ray"), (["--slurm", "cluster=local,timeout_min=10"], "submitit")],
)
def test_elsewhere_gives_what_is_given_here(here, tmp_path, monkeypatch, where, package):
    pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    assert main([*TASK, *where, "--output", str(tmp_path / "run")]) == 0
    for ours, theirs in zip(weights(here), weights(tmp_path / "run"), strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["cell"] for row in rows} == set(CELLS)
    assert not list((tmp_path / "run" / "cells").rglob("metrics.jsonl"))
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_what_fails_is_named_and_the_rest_is_kept(tmp_path, capsys):
    pytest.importorskip("submitit")
    run = [*TASK, "--slurm", "cluster=local,timeout_min=10", "--output", str(tmp_path / "run")]
    assert main([*run, "--lr", "1e30"]) == 1
    said = capsys.readouterr().err
    assert "2 of 2 models failed" in said
    assert "cell cbam-seed0: the" in said
    assert "loss is nan" in said


@pytest.mark.parametrize("text", ["timeout_min", "=3", "timeout_min=", "a=1,b"])
def test_parameters_that_are_none(text):
    with pytest.raises(CBAMError, match="NAME=VALUE"):
        slurm_parameters(text)
