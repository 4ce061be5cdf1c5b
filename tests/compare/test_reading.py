from __future__ import annotations

import json

import pytest

from cbam.compare.reading import read_history, read_run
from cbam.errors import CBAMError


def test_reads_everything_in_the_order_of_the_configuration(make_run):
    run = read_run(make_run())
    assert run.variants == ["none", "se", "cbam", "control"]
    assert [(r["variant"], r["seed"]) for r in run.results][:4] == [
        ("none", 0),
        ("none", 1),
        ("none", 2),
        ("se", 0),
    ]
    assert run.missing == []
    assert len(run.history) == 12
    assert [row["epoch"] for row in run.history["cbam-seed1"]] == [1, 2, 3, 4, 5, 6]


def test_an_unfinished_run_knows_what_is_missing(make_run):
    run = read_run(make_run({"none": (0.9, 0.91), "cbam": (0.92,)}, seeds=2))
    assert run.missing == [("cbam", 1)]


def test_what_is_not_there_yet_is_empty(tmp_path):
    (tmp_path / "config.yaml").write_text("attention: none,cbam\nseeds: 1\n")
    run = read_run(tmp_path)
    assert (run.environment, run.costs, run.pictures, run.results, run.history) == ({}, {}, {}, [], {})
    assert run.planned == [("none", 0), ("cbam", 0)]


def test_seeds_added_later_are_read(make_run):
    folder = make_run()
    (folder / "config.yaml").write_text("attention: none,se\nseeds: 1\n")
    run = read_run(folder)
    assert run.variants == ["none", "se", "cbam", "control"]
    assert len(run.results) == 12


class TestHistory:
    def write(self, tmp_path, *lines):
        file = tmp_path / "metrics.jsonl"
        file.write_text("\n".join(lines))
        return file

    def line(self, epoch, value):
        return json.dumps({"cell": "cbam-seed0", "variant": "cbam", "epoch": epoch, "val_accuracy": value})

    def test_the_later_line_of_an_epoch_wins(self, tmp_path):
        file = self.write(
            tmp_path, self.line(1, 0.1), self.line(2, 0.2), self.line(2, 0.3), self.line(1, 0.4)
        )
        rows = read_history(file)["cbam-seed0"]
        assert [(row["epoch"], row["val_accuracy"]) for row in rows] == [(1, 0.4), (2, 0.3)]

    @pytest.mark.parametrize("length", [1, 20, 60])
    def test_a_torn_last_line_is_left_out(self, tmp_path, length):
        rows = read_history(self.write(tmp_path, self.line(1, 0.1), self.line(2, 0.2)[:length]))
        assert [row["epoch"] for row in rows["cbam-seed0"]] == [1]

    def test_a_character_torn_in_the_middle_is_left_out(self, tmp_path):
        file = self.write(tmp_path, self.line(1, 0.1))
        file.write_bytes(file.read_bytes() + b'\n{"cell": "\xc3')
        assert len(read_history(file)["cbam-seed0"]) == 1

    def test_a_broken_line_before_the_last_is_an_error_that_names_it(self, tmp_path):
        file = self.write(tmp_path, self.line(1, 0.1), "{", self.line(2, 0.2))
        with pytest.raises(CBAMError, match=r"metrics\.jsonl, line 2"):
            read_history(file)


class TestRefusals:
    def test_no_folder(self, tmp_path):
        with pytest.raises(CBAMError, match=r"no run folder at .*nowhere"):
            read_run(tmp_path / "nowhere")

    def test_a_folder_without_a_run(self, tmp_path):
        with pytest.raises(CBAMError, match="holds no run: it has no config"):
            read_run(tmp_path)

    @pytest.mark.parametrize("name", ["env.json", "data.json", "costs.json", "pictures/pictures.json"])
    def test_a_damaged_file_is_named(self, make_run, name):
        folder = make_run()
        (folder / name).write_text('{"half": ')
        with pytest.raises(CBAMError, match=f"{name.rpartition('/')[2]} is no valid JSON"):
            read_run(folder)

    @pytest.mark.parametrize("name", ["env.json", "data.json", "costs.json", "pictures/pictures.json"])
    @pytest.mark.parametrize("text", ["[]", "5", '"x"', "null", "[" * 100_000, "9" * 5000])
    def test_a_file_of_another_kind_is_named(self, make_run, name, text):
        folder = make_run()
        (folder / name).write_text(text)
        with pytest.raises(
            CBAMError, match=rf"{name.rpartition('/')[2]} (should hold an object|is no valid JSON)"
        ):
            read_run(folder)

    @pytest.mark.parametrize(
        "text", ["{}", "[]", '{"variant": 5, "seed": 0}', '{"variant": "none", "seed": [0]}']
    )
    def test_a_result_of_no_cell_is_named(self, make_run, text):
        folder = make_run()
        (folder / "cells" / "none-seed0" / "result.json").write_text(text)
        with pytest.raises(CBAMError, match=r"none-seed0/result\.json"):
            read_run(folder)

    @pytest.mark.parametrize(
        "line",
        [
            "[]",
            "5",
            '{"cell": [1], "variant": "x", "epoch": 1}',
            '{"cell": "a", "variant": "x", "epoch": "1"}',
        ],
    )
    def test_metrics_of_no_epoch_are_named(self, make_run, line):
        file = make_run() / "metrics.jsonl"
        file.write_text(f"{line}\n{file.read_text()}")
        with pytest.raises(CBAMError, match=r"metrics\.jsonl, line 1: not an epoch's metrics"):
            read_run(file.parent)

    @pytest.mark.parametrize(
        "text",
        ["attention: 5", "attention: [[a]]", "seeds: 1000000000000", "seeds: [a]", "seeds: {}", "seeds: true",
         "a: &a [x]\nb: *a", "a: 2001-99-99", "a: !!int x", "a: " + "[" * 20_000],
    )  # fmt: skip
    def test_settings_of_no_run_are_named(self, make_run, text):
        folder = make_run()
        (folder / "config.yaml").write_text(text)
        with pytest.raises(CBAMError, match=r"config\.yaml"):
            read_run(folder)

    def test_a_path_that_is_none(self):
        with pytest.raises(CBAMError, match="File name too long"):
            read_run("a" * 5000)

    @pytest.mark.parametrize("text", ["- a\n- list\n", "a: [", ""])
    def test_a_configuration_that_is_none(self, tmp_path, text):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(CBAMError, match=r"config\.yaml"):
            read_run(tmp_path)
