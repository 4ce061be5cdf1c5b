"""`cbam ablate`, from the options to the tables."""

from __future__ import annotations

import json

import pytest

from cbam.cli.ablate import AblateConfig
from cbam.cli.main import main

SMALL = ["--data", "digits", "--limit-train", "100", "--limit-val", "30", "--epochs", "1", "--device", "cpu"]


def test_a_grid_of_tables_and_sweeps():
    grid = AblateConfig(
        data="digits", table="1,3", reduction="4,16", attention="none,control", seeds=2
    ).grid()
    assert grid.variants[:3] == ("none", "control", "se")
    assert "cbam:official:r4" in grid.variants
    assert (grid.seeds, str(grid.folder)) == (2, "runs/ablate-digits-resnet20")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "digits"], "Type --table 1,2,3"),
        (["--data", "digits", "--table", "7"], "--table takes 1, 2 or 3"),
        (["--data", "digits", "--table", "one"], "--table takes whole numbers"),
        (["--data", "digits", "--kernel", "4"], "odd sizes"),
        (["--report"], "--report takes the folder of a run"),
        (["--report", "a", "b"], "--report takes the folder of a run"),
        (["--report", "nowhere"], "no run folder at nowhere; `cbam ablate --output nowhere ...` makes one"),
    ],
)
def test_what_cannot_be_done_is_explained_at_once(options, expected, capsys):
    assert main(["ablate", *options]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_and_then_another_in_the_same_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    options = [*SMALL, "--seeds", "1", "--output", str(folder)]
    assert main(["ablate", "--table", "3", *options]) == 0
    out = capsys.readouterr().out
    assert "Table 3: arrangement" in out
    assert "No claim can be made" in out
    first = {file: file.stat().st_mtime_ns for file in folder.glob("cells/*/result.json")}
    assert len(first) == 5, "plain and the four rows"
    assert main(["ablate", "--kernel", "3,7", *options]) == 0
    capsys.readouterr()
    assert {file: file.stat().st_mtime_ns for file in first} == first, "what is trained is kept"
    assert json.loads((folder / "cells" / "cbam-official-k3-seed0" / "result.json").read_text())["parameters"]
    assert main(["ablate", f"--report={folder}"]) == 0
    text = capsys.readouterr().out
    assert text == (folder / "ablations.md").read_text(encoding="utf-8")
    assert "Table 3" in text
    assert "kernel k of the spatial gate" in text


def test_the_help_says_when_images_are_needed_and_each_example_has_its_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["ablate", "--help"])
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert "cbam ablate --report runs/ablate-fashion-mnist-resnet20" in lines
    assert any(line.endswith("--model resnet20 --seeds 3 --epochs 5") for line in lines)
    text = " ".join(out.replace("│", " ").split())
    assert "(required, but not with --report)" in text
    assert "--report " in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--table", "1"], "ablate needs images: type --data NAME"),
        (["--data", "digits", "--report", "a"], "--report takes the folder of a run and nothing else"),
        ([], "ablate needs images: type --data NAME"),
    ],
)
def test_images_or_a_report(options, expected, capsys):
    assert main(["ablate", *options]) == 2
    assert expected in capsys.readouterr().err
