"""`cbam doctor`: what it prints, and that it is true."""

import os
import subprocess
import sys

import pytest
import torch

from cbam import set_backend
from cbam.cli import doctor
from cbam.cli.main import main
from cbam.ops import cpp, dispatch
from tests.ops.library import needs_operator, needs_same_bits


def rows(text):
    """First column -> the words after it."""
    return {line[:28].strip(): line[28:].split(None, 2) for line in text.splitlines()}


@needs_operator
@needs_same_bits
def test_with_the_operator(capsys):
    with set_backend("auto"):
        assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert f"available, with {cpp.instruction_set()} kernels" in out
    assert "runs in the operator," in out
    assert "a ReLU after attached attention run in the operator" in " ".join(out.split())
    found = rows(out)
    for name in ("preset paper", "preset official", "preset timm", "SqueezeExcitation", "bfloat16 on cpu"):
        assert found[name][:2] == ["operator", "operator"], name
    assert found["arrangement parallel"][:2] == ["eager", "eager"]
    assert found["arrangement spatial-channel"] == ["operator", "operator", "one call for each gate"]
    assert found["spatial descriptor conv"][0] == "both"


def test_without_a_library(capsys, monkeypatch):
    monkeypatch.setattr(
        cpp, "unavailable_reason", lambda: "the C++ operator is not built; reinstall with a C++ compiler: pip"
    )
    with set_backend("auto"):
        assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "missing: the C++ operator is not built; reinstall with a C++ compiler" in " ".join(out.split())
    assert rows(out)["preset paper"] == ["eager", "eager", "no operator"]


def test_eager_by_choice(capsys):
    with set_backend("eager"):
        main(["doctor"])
    out = capsys.readouterr().out
    assert rows(out)["preset paper"] == ["eager", "eager", "the backend is 'eager'"]
    assert "epilogue      separate, in plain torch" in out


@needs_operator
def test_forced(capsys):
    with set_backend("cpp"):
        main(["doctor"])
    assert rows(capsys.readouterr().out)["arrangement parallel"][:2] == ["error", "error"]


def test_where_the_norm_is_separate(capsys, monkeypatch):
    monkeypatch.setattr(cpp, "unavailable_reason", lambda: None)
    monkeypatch.setattr(doctor.after_norm, "exact", lambda dtype, channels_last, training: not channels_last)
    with set_backend("auto"):
        text = doctor._norm_before()
    assert "float32 channels_last training" in text
    assert "contiguous" not in text


def test_wrong_use(capsys, monkeypatch):
    assert main(["doctor", "me"]) == 2
    assert "takes no arguments, given 'me'" in capsys.readouterr().err
    monkeypatch.setattr("cbam.ops.dispatch._chosen", None)
    monkeypatch.setenv("CBAM_BACKEND", "gpu")
    dispatch._read_environment.cache_clear()  # as in a new process; a wrong name is not kept
    assert main(["doctor"]) == 2
    assert "unknown backend in CBAM_BACKEND 'gpu'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option, capsys):
    assert main(["doctor", option]) == 0
    assert "usage: cbam doctor" in capsys.readouterr().out


def test_the_gpu_operator_by_force_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "cbam", "doctor"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "CBAM_BACKEND": "triton", "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    out = " ".join(done.stdout.split())
    assert "on a GPU not available: there is no GPU that PyTorch can use" in out
    assert "norm + gates separate, in plain torch" in out
    assert "preset paper error error the map is on the CPU; the Triton operator runs on a GPU" in out
