"""A GPU's measurements: a dry run on the CPU from end to end, and the parts that only a GPU has."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cbam.bench import gpu, report, targets, traffic
from cbam.bench.cases import BOTH, FORWARD, GRAPH, HOT, INFERENCE, TRAINING, Case, Result, cases
from cbam.bench.config import BenchConfig, defaults
from cbam.bench.device import device_of
from cbam.bench.report import markdown
from cbam.bench.summary import dram_passes
from cbam.evaluate import dram
from cbam.runs.environment import code_hash

SECTIONS = (
    "Promises", "Correctness on real shapes", "forward, channels_last, N=2, bfloat16: ms",
    "forward+backward, channels_last, N=2, bfloat16, in a graph: ms", "host, 1x64x4², bfloat16: µs of a call",
    "forward+backward, channels_last, N=2, bfloat16, in a graph, map in the cache",
    "memory of forward+backward", "network, batch 2, 32 px, bfloat16, CUDA graph",
    "network, batch 2, 32 px, bfloat16, compiled: ms", "network, batch 2, 32 px, bfloat16, compiled, in a graph: ms",
    "network, batch 2, 32 px, bfloat16, compiled, reduce-overhead: ms", "network, batch 2, 32 px, bfloat16: ms",
    "kernels of forward+backward, textbook", "growing batch", "Not measured",
)  # fmt: skip


def bench(folder, *arguments):
    command = [
        sys.executable,
        "-m",
        "cbam",
        "bench",
        "--device",
        "dry-run",
        "--threads",
        "1",
        "--output",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=400, env=environment
    )


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "run"
    return folder, bench(folder)


def rows(folder):
    return [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]


def start_from(dry_run, folder, chosen):
    """Another run that has come as far as the chosen rows."""
    folder.mkdir()
    for name in ("config.yaml", "env.json"):
        (folder / name).write_bytes((dry_run[0] / name).read_bytes())
    (folder / "measurements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))


@pytest.mark.slow
class TestDryRun:
    def test_everything_is_measured_and_stands_in_the_page(self, dry_run):
        folder, run = dry_run
        assert run.returncode == 0, run.stdout + run.stderr
        content, page = json.loads((folder / "bench.json").read_text()), (folder / "bench.md").read_text()
        planned = [case.name for case in cases(defaults("dry-run").in_effect())]
        assert [result["name"] for result in content["results"]] == planned
        assert content["not_measured"] == {}
        for section in SECTIONS:
            assert f"## {section}" in page, section
        assert "numbers mean nothing" in page
        missing = page.split("## Not measured")[1]
        assert "| traffic 2x8x6² bfloat16 channels_last | there is no GPU |" in missing
        assert missing.count("| there is no GPU |") == missing.count("\n| ") - 1, "and nothing else"

    def test_every_sample_is_kept(self, dry_run):
        results = [Result.from_json(row) for row in rows(dry_run[0])]
        modules = [result for result in results if result.case.part == "modules"]
        assert len(modules) == 2
        for result in modules:
            assert result.notes == []
            assert result.ways == ["", GRAPH, HOT]
            for way in result.ways:
                samples = result.of_way(way).samples_ms
                expected = {"copy", "cbam operator", "textbook", "careful compiled", "cbam compiled"}
                assert expected <= set(samples)
                assert all(len(values) == 2 and min(values) > 0 for values in samples.values())
        assert modules[0].saved_bytes["cbam operator"] < modules[0].saved_bytes["cbam eager"]
        networks = [result for result in results if result.case.part == "network"]
        assert all(result.notes == [] and "plain" in result.samples_ms for result in networks)
        by_part = {result.case.part: result for result in results}
        assert by_part["traffic"].extra["program"] == "runs"
        assert set(by_part["checks"].extra["counts"]) <= {"ok", "skipped"}
        assert set(by_part["kernels"].extra["kernels"]) == {"cbam operator", "textbook", "copy"}
        assert by_part["host"].samples_ms["batch norm with CBAM"]

    def test_a_second_call_names_what_there_is_no_time_for(self, dry_run, tmp_path):
        before = [row for row in rows(dry_run[0]) if row["case"]["part"] not in ("host", "kernels")]
        start_from(dry_run, tmp_path / "run", before)
        run = bench(tmp_path / "run", "--budget", "0.001")
        assert run.returncode == 0, run.stdout + run.stderr
        assert rows(tmp_path / "run") == before
        content = json.loads((tmp_path / "run" / "bench.json").read_text())
        assert {name.split()[0] for name in content["not_measured"]} == {"host", "kernels"}
        assert len(content["environment"]["continued"]) == 1
        assert "| not enough time: needs 6 s" in (tmp_path / "run" / "bench.md").read_text()

    def test_nothing_is_timed_while_a_check_is_wrong(self, dry_run, tmp_path):
        checks = [row for row in rows(dry_run[0]) if row["case"]["part"] == "checks"]
        checks[0]["extra"] = {"counts": {"wrong": 1}, "failures": {"test_values[a]": "wrong: y: all of it"}}
        start_from(dry_run, tmp_path / "run", checks)
        run = bench(tmp_path / "run")
        assert run.returncode == 1, run.stdout + run.stderr
        assert rows(tmp_path / "run") == checks
        assert "y: all of it" in (tmp_path / "run" / "bench.md").read_text()
        assert "skipped because of an earlier result" in run.stdout
        more = bench(tmp_path / "run", "--keep-going", "--parts", "host")
        assert more.returncode == 1
        assert len(rows(tmp_path / "run")) == 3


def test_workers_need_no_more_than_torch():
    """Everything that they import, with the optional packages out of reach."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in {'timm','torchvision','rich','tyro','scipy','PIL','matplotlib','yaml'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import cbam.bench.measure, cbam.runs.pool\n"
        "import importlib.util\n"
        "importlib.util.find_spec = lambda name: None\n"
        "from cbam.bench.cases import Case\n"
        "from cbam.bench.config import BenchConfig\n"
        "case = Case('modules', '', 'forward', (1, 8, 3, 3), 'float32', 'contiguous', 0)\n"
        "config = BenchConfig(device='dry-run', rounds=2, compile=False)\n"
        "print(len(cbam.bench.measure.measure(case, config).samples_ms))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 3 * 5, "copies, eager, textbook and careful, each in three ways"


def test_the_code_has_a_hash():
    assert code_hash() == code_hash()
    assert len(code_hash()) == 16


class TestChecks:
    case = Case("checks", "", "", (2, 8, 6, 6), "bfloat16", "channels_last", 0)

    def found(self, monkeypatch, tmp_path, text):
        file = tmp_path / "tests" / "ops" / "test_some.py"
        file.parent.mkdir(parents=True)
        (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device')\n")
        file.write_text(text)
        monkeypatch.setattr(gpu, "CHECKS", (file,))
        return gpu.check(self.case, BenchConfig(device="dry-run"), device_of("dry-run"))

    def test_failures_and_what_is_imprecise_are_named(self, monkeypatch, tmp_path):
        text = (
            "import pytest\n"
            "def test_a_bfloat16_channels_last(): pytest.fail('y: far')\n"
            "def test_b_bfloat16_channels_last(): pytest.xfail('imprecise: y: near')\n"
            "def test_c_bfloat16_channels_last(): pass\n"
            "def test_d_float32(): pytest.fail('of another type')\n"
        )
        extra = self.found(monkeypatch, tmp_path, text).extra
        assert extra["counts"] == {"ok": 1, "imprecise": 1, "wrong": 1}
        assert "y: far" in extra["failures"]["test_a_bfloat16_channels_last"]
        assert "imprecise: y: near" in extra["failures"]["test_b_bfloat16_channels_last"]

    def test_a_file_that_cannot_be_collected_is_wrong(self, monkeypatch, tmp_path):
        assert self.found(monkeypatch, tmp_path, "import no_such_module\n").extra["counts"] == {"wrong": 1}

    def test_without_the_tests_it_says_so(self, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu, "CHECKS", (gpu.FIRST, tmp_path / "none.py"))
        result = gpu.check(self.case, BenchConfig(device="dry-run"), device_of("dry-run"))
        assert "was not checked: needs pytest" in result.notes[0]


NCU_NAMES = ("ID", "Process Name", "Kernel Name", "Stream", dram.READ, dram.WRITE)
NCU = ",".join(f'"{name}"' for name in NCU_NAMES) + '\n"","","","","byte","byte"\n'


def ncu_table(calls):
    """What ncu prints for calls of the given kernels, each of which leaves 256 bytes to be written afterwards."""
    marker = ("at::cuda::<unnamed>::spin_kernel(long)", 32, 0)
    lines = []
    for kernels in calls:
        for name, read, written in [marker, *kernels, marker, ("reduce_kernel", 99999, 256)]:
            lines.append(f'"{len(lines)}","python","{name}","7","{read:,}","{written:,}"')
    return "==PROF== Connected\n" + NCU + "\n".join(lines) + "\n"


class TestTraffic:
    shapes = ((1, 4, 8, 8),)  # a map of 512 bytes
    calls = 2 * traffic.REPEATS * len(traffic.PROVIDERS)

    def test_kernels_go_to_the_call_that_launched_them(self):
        table = ncu_table([[("pool, (8, 8)", 512, 0), ("gate", 1024, 256)]] * self.calls)
        regions = traffic.regions(dram.read_csv(table), self.shapes)
        assert len(regions) == self.calls
        assert [name for name, *_ in regions[0]["kernels"]] == ["pool, (8, 8)", "gate"]
        assert (regions[1]["provider"], regions[1]["direction"]) == ("ours", "backward")

    def test_passes(self):
        table = ncu_table([[("pool", 512, 0), ("gate", 1024, 256)]] * self.calls)
        regions = traffic.regions(dram.read_csv(table), self.shapes)
        case = Case("traffic", "", "", (1, 4, 8, 8), "bfloat16", "channels_last", 0)
        first = dram_passes([Result(case, extra={"regions": regions})])[0]
        assert (first["read"], first["written"], first["passes"]) == (3.0, 1.0, 4.0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("==ERROR== ERR_NVGPUCTRPERM", "no line with column names"),
            (NCU.replace('"byte","byte"', '"Mbyte","byte"'), "Mbyte"),
        ],
    )
    def test_a_table_of_another_kind_is_refused(self, text, message):
        with pytest.raises(ValueError, match=message):
            dram.read_csv(text)

    def test_a_call_without_its_marker_is_noticed(self):
        with pytest.raises(ValueError, match="calls instead of"):
            traffic.regions(dram.read_csv(ncu_table([[("pool", 1, 1)]])), self.shapes)


class TestTargets:
    @pytest.fixture
    def results(self):
        times = {"copy": 2.0, "copy into": 1.0, "cbam operator": 4.0, "textbook": 48.0, "careful": 20.0,
                 "careful compiled": 10.0, "textbook compiled": 12.0, "cbam compiled": 5.0}  # fmt: skip
        found = []
        for case in cases(defaults("cuda").in_effect()):
            if case.part == "modules" and not case.study:
                samples = {n + way: [t, 3 * t] for n, t in times.items() for way in ("", GRAPH, HOT)}
                found.append(Result(case, samples))
            elif case.part == "network" and (case.mode, case.study, case.shape[0]) in (
                (TRAINING, "", 128), (INFERENCE, "CUDA graph", 1), (INFERENCE, "compiled", 128),
            ):  # fmt: skip
                samples = {"plain": [10.0, 20.0], "cbam operator": [10.2, 20.4]}
                samples |= {name + GRAPH: [2 * t for t in times] for name, times in samples.items()}
                samples["cbam operator" + GRAPH] = [23.0, 46.0]
                saved = {"plain": 1000, "cbam operator": 1030} if case.mode == TRAINING else {}
                found.append(Result(case, samples, saved))
        return found

    def test_figures(self, results):
        found = {target.figure: target for target in targets.targets(results)}
        expected = {
            "forward, N=128, GPU time alone: share of the copy limit": (0.25, "MISSED by 31%"),
            "forward+backward, N=128, GPU time alone: best compiled peer / ours": (2.5, "must met"),
            "ResNet-50 training step, batch 128, eager, as called: ours / plain": (1.02, "aim met"),
            "ResNet-50 inference, batch 1, CUDA graph: ours / plain": (1.02, "aim met"),
            "ResNet-50 inference, batch 128, compiled, in a graph: ours / plain": (1.15, "must met"),
            "ResNet-50, bytes kept for backward: ours / plain": (1.03, "MISSED by 1%"),
        }
        for figure, (measured, verdict) in expected.items():
            assert found[figure].measured == pytest.approx(measured), figure
            assert found[figure].verdict == verdict, figure
        unknown = found["ResNet-50 training step, batch 128, compiled, in a graph: ours / plain"]
        assert (unknown.measured, unknown.verdict) == (None, "not measured")
        assert unknown.cells[1:4] == ["2.09", "<= 1.2", "<= 1.08"]

    def test_a_stage_that_is_missing_leaves_the_mean_open(self, results):
        first = next(r for r in results if (r.case.mode, r.case.shape[0]) == (FORWARD, 128))
        del first.samples_ms["cbam operator" + GRAPH]
        found = {target.figure: target.verdict for target in targets.targets(results)}
        assert found["forward, N=128, GPU time alone: share of the copy limit"] == "not measured"
        assert found["forward+backward, N=128, GPU time alone: best compiled peer / ours"] == "must met"

    def test_a_pass_is_compared_with_a_copy_of_what_it_moves(self):
        case = Case("kernels", "", BOTH, (128, 256, 56, 56), "bfloat16", "channels_last", 0)
        tables = {
            "cbam operator": {"squeeze": [1.0, 80.0], "apply": [1.0, 125.0], "hidden": [1.0, 20.0]},
            "textbook": {"apply": [1.0, 500.0]},
            "copy": {"vectorized_copy": [1.0, 100.0]},
        }
        ours, theirs = report._kernels(Result(case, input_bytes=205_000_000, extra={"kernels": tables}))
        assert ours.rows == [
            ["apply", "1.0", "125", "410.0", "80 %"], ["squeeze", "1.0", "80.0", "205.0", "62 %"],
            ["hidden", "1.0", "20.0"],
        ]  # fmt: skip
        assert ours.notes == ["3 launches, 225 µs; a copy of the map 100 µs."]
        assert theirs.rows == [["apply", "1.0", "500"]]

    def test_the_page_has_the_ratios_to_ours(self, results):
        page = markdown(results, {}, {}, {})
        both = page.split(f"## {BOTH}, channels_last, N=128, bfloat16, in a graph:")[1]
        row = next(line for line in both.splitlines() if line.startswith("| textbook |"))
        assert row.endswith("| 24.0x | 12.0x |")
        assert "| copy limit | 62 % |" in both
