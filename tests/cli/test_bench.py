"""`cbam bench`: what it prints, and how it answers wrong options."""

from __future__ import annotations

import json

import pytest
import torch

from cbam.bench import measure
from cbam.cli.main import main


@pytest.mark.slow
def test_quick_runs_from_end_to_end(tmp_path, capsys):
    assert main(["bench", "--quick", "--threads", "1", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    for words in (
        "forward+backward, channels_last",
        "memory of",
        "network, batch 2",
        "growing batch",
        "growing map",
    ):
        assert words in shown.out, words
    assert "only checks that everything works" in shown.out
    assert str(tmp_path / "bench.csv") in shown.out
    assert "34 measurements" in shown.err
    content = json.loads((tmp_path / "bench.json").read_text())
    assert len(content["results"]) == 34
    assert content["settings"]["quick"] is True


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parts", "module"], "Did you mean 'modules'?"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--shapes", "256x56"], "--shapes expects CxHxW"),
        (["--thread", "2"], "--threads"),
        (["--rounds", "many"], "many"),
    ],
)
def test_wrong_options_end_with_2_and_what_to_type(arguments, told, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments, "--output", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_wrong_model_or_folder_ends_with_2(capsys, tmp_path):
    assert main(["bench", "--model", "resnet5O", "--output", str(tmp_path / "run")]) == 2
    assert "unknown model 'resnet5O'. Did you mean" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("x")
    assert main(["bench", "--output", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def stop(case, config, device):
        raise KeyboardInterrupt

    monkeypatch.setitem(measure.MEASURE, "modules", stop)
    line = ["bench", "--quick", "--restart", "--output", str(tmp_path)]
    assert main(line) == 130
    assert (
        f"To resume, type the same again:\n  cbam bench --quick --output {tmp_path}\n"
        in capsys.readouterr().err
    )


def test_the_device_decides_the_defaults(capsys):
    for arguments, told in ((["--help"], "float32"), (["--device", "cuda", "--help"], "bfloat16")):
        with pytest.raises(SystemExit):
            main(["bench", *arguments])
        assert f"(default: {told})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_found_and_needs(tmp_path, capsys):
    assert main(["bench", "--device", "cuda", "--output", str(tmp_path / "out")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"found torch {torch.__version__}" in told
    assert "--device dry-run" in told
    assert not (tmp_path / "out").exists()
