"""`benchmarks/gpu/measure.py`: a dry run on the CPU from end to end, and what a GPU run hangs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cbam.errors import CBAMError
from cbam.ops.dispatch import set_backend

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "measure.py"
sys.path.append(str(SCRIPT.parents[1]))

from gpu import correctness, figures, plan, traffic  # noqa: E402
from gpu.correctness import IMPRECISE, OK, SKIPPED, WRONG, Case, check  # noqa: E402
from gpu.device import Machine  # noqa: E402
from gpu.plan import SCALES, Job  # noqa: E402
from gpu.pool import Worker, run_jobs  # noqa: E402
from gpu.resnet import ResNet  # noqa: E402
from gpu.store import Store  # noqa: E402

CASE = {"kind": "module", "shape": (2, 16, 9, 8), "dtype": "float32", "memory_format": "channels_last"}
DRY = ("--device", "cpu", "--tiny")
SECTIONS = (
    "To reach", "Correctness", "forward, N=2, bfloat16, channels_last",
    "forward+backward, N=2, bfloat16, channels_last",
    "ResNet-50, AMP bfloat16, channels_last", "Host overhead", "DRAM traffic", "Kernels of forward+backward, textbook",
)  # fmt: skip


def measure(*arguments, seconds=300):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True, text=True, timeout=seconds, env=environment, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    return folder, measure("--output", str(folder), *DRY)


def content(folder):
    return json.loads((folder / "gpu.json").read_text())


def save(folder, results):
    (folder / "gpu.json").write_text(json.dumps(results))


@pytest.mark.slow
class TestDryRun:
    def test_everything_is_measured_and_stands_in_the_table(self, dry_run):
        folder, run = dry_run
        assert run.returncode == 0, run.stdout + run.stderr
        results, table = content(folder), (folder / "gpu.md").read_text()
        scale = SCALES["tiny"]
        planned = {job.name for job in (*plan.checks(scale), *plan.timings(scale))}
        assert set(results["jobs"]) == planned
        assert [name for name, job in results["jobs"].items() if "error" in job] == []
        assert results["skipped"] == {}
        for section in SECTIONS:
            assert f"## {section}" in table
        assert "Not measured" not in table
        assert "A tiny run" in table

    def test_every_raw_number_is_kept(self, dry_run):
        jobs = content(dry_run[0])["jobs"]
        modules = [job["result"] for job in jobs.values() if job["kind"] == "module"]
        assert len(modules) == 2
        for result in modules:
            assert result["notes"] == []
            assert set(result["samples_us"]) == {"call", "graph", "hot graph"}
            for samples in result["samples_us"].values():
                assert {"copy", "cbam operator", "textbook", "careful compiled", "cbam compiled"} <= set(
                    samples
                )
                assert all(len(values) == 2 and min(values) > 0 for values in samples.values())
        both = next(result for result in modules if "saved_bytes" in result)
        assert both["saved_bytes"]["cbam operator"] < both["saved_bytes"]["cbam eager"]
        networks = [job["result"] for job in jobs.values() if job["kind"] == "network"]
        assert all(result["notes"] == [] and "plain" in result["samples_us"] for result in networks)
        assert max(gap for result in networks for gap in result["gaps"].values()) < 0.05
        assert jobs["dram traffic"]["result"]["program"] == "runs"

    def test_a_second_call_goes_on_and_names_what_there_is_no_time_for(self, dry_run, tmp_path):
        before = content(dry_run[0])
        del before["jobs"]["host overhead"], before["jobs"]["kernels"]
        save(tmp_path, before)
        run = measure("--output", str(tmp_path), *DRY, "--budget", "0.5")
        after = content(tmp_path)
        assert run.returncode == 0, run.stdout + run.stderr
        assert after["jobs"] == before["jobs"]
        assert len(after["sessions"]) == 2
        assert set(after["skipped"]) == {"host overhead", "kernels"}
        assert "no time left: needs 6 s" in after["skipped"]["host overhead"]
        assert "| host overhead | no time left" in (tmp_path / "gpu.md").read_text()

    def test_nothing_is_timed_while_a_check_is_wrong(self, dry_run, tmp_path):
        results = content(dry_run[0])
        results["jobs"] = {name: job for name, job in results["jobs"].items() if job["kind"] == "check"}
        bad = next(iter(results["jobs"]))
        results["jobs"][bad]["result"] |= {"status": WRONG, "failures": ["y: all of it"]}
        save(tmp_path, results)
        run = measure("--output", str(tmp_path), *DRY)
        after, table = content(tmp_path), (tmp_path / "gpu.md").read_text()
        assert run.returncode == 1
        assert bad in run.stdout
        assert {job["kind"] for job in after["jobs"].values()} == {"check"}
        assert len(after["skipped"]) == len(list(plan.timings(SCALES["tiny"])))
        assert "y: all of it" in table


class TestStore:
    def test_what_belongs_together_goes_on(self, tmp_path):
        identity = {"code": "1", "device": "A"}
        first, second = Store(tmp_path), Store(tmp_path)
        first.open(identity, {"python": "3"}, restart=False)
        first.add("a", "check", {"shape": [1]}, {"result": {"status": OK}})
        first.add("b", "check", {}, {"error": "out of luck"})
        first.save()
        second.open(identity, {"python": "3"}, restart=False)
        assert (second.done("a"), second.done("b"), second.done("c")) == (True, False, False)
        assert second.results("check") == [{"name": "a", "shape": [1], "status": OK}]

    def test_another_state_of_the_code_or_device_does_not_go_into_the_same_table(self, tmp_path):
        Store(tmp_path).open({"code": "1", "device": "A"}, {}, restart=False)
        with pytest.raises(CBAMError, match="differs in code, device"):
            Store(tmp_path).open({"code": "2", "device": "B"}, {}, restart=False)
        Store(tmp_path).open({"code": "2", "device": "B"}, {}, restart=True)
        assert content(tmp_path)["identity"]["code"] == "2"

    def test_a_file_that_is_no_run_is_left_alone(self, tmp_path):
        (tmp_path / "gpu.json").write_text("[]")
        with pytest.raises(CBAMError, match="holds no run"):
            Store(tmp_path).open({"code": "1"}, {}, restart=False)
        assert (tmp_path / "gpu.json").read_text() == "[]"


class TestMachines:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu_it_says_what_it_found_and_needs(self, tmp_path):
        run = measure("--output", str(tmp_path / "out"))
        assert run.returncode == 2
        assert f"found torch {torch.__version__}" in run.stdout
        assert "--device cpu --tiny" in run.stdout
        assert not (tmp_path / "out").exists()

    def test_the_full_program_does_not_run_on_a_cpu(self, tmp_path):
        run = measure("--output", str(tmp_path), "--device", "cpu")
        assert run.returncode == 2
        assert "--tiny" in run.stdout

    def test_the_core_s_dependencies_are_enough(self):
        """Everything that workers import, with the optional packages out of reach."""
        code = (
            "import sys\n"
            "class Block:\n"
            "    def find_spec(self, name, *_):\n"
            "        if name.split('.')[0] in {'timm','torchvision','rich','tyro','scipy','PIL','matplotlib','yaml'}:\n"
            "            raise ImportError(name)\n"
            "sys.meta_path.insert(0, Block())\n"
            f"sys.path[:0] = [{str(ROOT / 'benchmarks')!r}, {str(ROOT / 'src')!r}]\n"
            "import gpu.worker, gpu.run\n"
            "from gpu.network import _plain\n"
            "network, source = _plain(False)\n"
            "print(sum(p.numel() for p in network.parameters()), source)\n"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("25557032 our own, torchvision cannot be had")


class TestCorrectness:
    def test_the_rule(self):
        """Plain torch's own result keeps it, four times its error is imprecise, and twenty times is wrong."""
        case = Case(Machine("cpu"), **CASE | {"dtype": "bfloat16"})
        plain, exact = case.outcome("eager"), case.outcome("eager", exact=True)

        def judged(factor):
            return case.judge(plain | {"y": exact["y"] + factor * (plain["y"] - exact["y"])})

        assert judged(1)["status"] == OK
        assert (judged(4)["status"], judged(4)["where"]) == (IMPRECISE, "y")
        assert (judged(20)["status"], judged(20)["where"]) == (WRONG, "y")
        assert "y: error" in judged(20)["failures"][0]

    def test_nan_is_wrong(self):
        case = Case(Machine("cpu"), **CASE)
        plain = case.outcome("eager")
        plain["x"][0, 0, 0, 0] = float("nan")
        found = case.judge(plain)
        assert found["status"] == WRONG
        assert found["share_of_rule"] is None

    @pytest.mark.parametrize("what", ["values", "graph"])
    def test_an_operator_that_answers_differently_each_time_is_wrong(self, what, monkeypatch):
        from cbam import CBAM

        calls = []
        right = CBAM.attend

        def restless(self, x):
            calls.append(1)
            return right(self, x) * (1 + 1e-6 * len(calls))

        monkeypatch.setattr(CBAM, "attend", restless)
        found = check(Machine("cpu"), what, **CASE)
        assert found["status"] == WRONG
        assert "differ" in " ".join(found["failures"])

    def test_a_norm_that_stays_apart_is_no_failure(self, monkeypatch):
        monkeypatch.setattr(correctness.after_norm, "attend", lambda *_: None)
        found = check(Machine("cpu"), "values", **CASE | {"kind": "epilogue"})
        assert found["status"] == SKIPPED
        assert "apart" in found["why"]

    def test_the_backend_is_what_it_was(self):
        with set_backend("eager") as before:
            check(Machine("cpu"), "values", **CASE)
            assert repr(before) == "<backend 'eager'>"


class TestPool:
    @pytest.fixture
    def worker(self, tmp_path):
        with (tmp_path / "log").open("wb") as log:
            worker = Worker("cpu", {}, log)
            yield worker
            worker.close()

    def test_time_limits_errors_and_deaths_cost_one_job_each(self, worker):
        answers = {}
        forever = {"dtype": "float32", "rounds": 10**9, "seconds": 1e9}
        jobs = [
            Job("describe", "describe", needs=0, limit=60),
            Job("too long", "host", forever, needs=0, limit=0.5),
            Job("unknown", "host", {"dtype": "no such type"}, needs=0),
            Job("again", "state", needs=0),
        ]
        left = run_jobs(
            jobs, [worker], time.monotonic() + 200, lambda job, answer: answers.update({job.name: answer})
        )
        assert left == []
        assert answers["describe"]["result"]["operator"] == "runs"
        assert "given up" in answers["too long"]["error"]
        assert "unexpected keyword" in answers["unknown"]["error"] or "missing" in answers["unknown"]["error"]
        assert answers["again"]["result"] == {}

    def test_a_job_cut_off_by_the_end_is_not_held_against_it(self, worker):
        forever = {"dtype": "float32", "rounds": 10**9, "seconds": 1e9}
        left = run_jobs(
            [Job("cut", "host", forever, needs=0, limit=500)], [worker], time.monotonic() + 2, pytest.fail
        )
        assert [(job.name, why) for job, why in left] == [("cut", "cut off when the time was over")]

    def test_an_error_of_ours_is_not_swallowed(self, worker):
        def broken(job, answer):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_jobs([Job("state", "state", needs=0)], [worker], time.monotonic() + 100, broken)


NCU_NAMES = ("ID", "Process Name", "Kernel Name", "Stream", traffic.READ, traffic.WRITE)
NCU = ",".join(f'"{name}"' for name in NCU_NAMES) + '\n"","","","","byte","byte"\n'


def ncu_table(calls):
    """What ncu prints for calls of the given kernels, each of which leaves 256 bytes to be written afterwards."""
    marker = ("at::cuda::<unnamed>::spin_kernel(long)", 32, 0)
    rows = []
    for kernels in calls:
        for name, read, written in [marker, *kernels, marker, ("reduce_kernel", 99999, 256)]:
            rows.append(f'"{len(rows)}","python","{name}","7","{read:,}","{written:,}"')
    return "==PROF== Connected\n" + NCU + "\n".join(rows) + "\n"


class TestTraffic:
    shapes = ((1, 4, 8, 8),)  # a map of 512 bytes
    calls = 2 * traffic.REPEATS * len(traffic.PROVIDERS)

    def test_kernels_go_to_the_call_that_launched_them(self):
        table = ncu_table([[("pool, (8, 8)", 512, 0), ("gate", 1024, 256)]] * self.calls)
        regions = traffic.regions(traffic.read_csv(table), self.shapes)
        assert len(regions) == self.calls
        assert [name for name, *_ in regions[0]["kernels"]] == ["pool, (8, 8)", "gate"]
        assert (regions[1]["provider"], regions[1]["direction"]) == ("cbam operator", "backward")

    def test_passes(self, tmp_path):
        store = Store(tmp_path)
        table = ncu_table([[("pool", 512, 0), ("gate", 1024, 256)]] * self.calls)
        regions = traffic.regions(traffic.read_csv(table), self.shapes)
        store.add("dram traffic", "traffic", {}, {"result": {"regions": regions}})
        first = figures.dram_passes(store)[0]
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
            traffic.read_csv(text)

    def test_a_call_without_its_marker_is_noticed(self):
        with pytest.raises(ValueError, match="calls instead of"):
            traffic.regions(traffic.read_csv(ncu_table([[("pool", 1, 1)]])), self.shapes)


class TestFigures:
    @pytest.fixture
    def store(self, tmp_path):
        store = Store(tmp_path)
        times = {"copy": 2.0, "copy into": 1.0, "cbam operator": 4.0, "textbook": 48.0, "careful": 20.0,
                 "careful compiled": 10.0, "textbook compiled": 12.0, "cbam compiled": 5.0}  # fmt: skip
        for mode in ("forward", "forward+backward"):
            for stage in plan.STAGES:
                arguments = {"mode": mode, "shape": [128, *stage], "dtype": "bfloat16"}
                arguments |= {"memory_format": "channels_last"}
                samples = {
                    kind: {n: [t, 3 * t] for n, t in times.items()} for kind in ("call", "graph", "hot graph")
                }
                result = {"samples_us": samples, "bytes": 1, "notes": []}
                store.add(f"{mode} {stage}", "module", arguments, {"result": result})
        for mode, way, batch in (("training step", "eager", 128), ("inference", "graph", 1)):
            result = {"samples_us": {"plain": [10.0, 20.0], "cbam": [10.2, 20.4]}, "notes": [], "source": ""}
            if way == "eager":
                result["saved_bytes"] = {"plain": 1000, "cbam": 1030}
            arguments = {"mode": mode, "way": way, "batch": batch}
            store.add(f"{mode} {way}", "network", arguments, {"result": result})
        return store

    def test_targets(self, store):
        found = {target.figure: target for target in figures.targets(store, 128, 128)}
        expected = {
            "forward, N=128: share of the copy limit, as called": (0.25, "MISSED by 44%"),
            "forward+backward, N=128: textbook / ours, GPU time alone": (12.0, "aim met"),
            "forward+backward, N=128: careful / ours, as called": (5.0, "aim met"),
            "forward+backward, N=128: best compiled peer / ours, as called": (2.5, "aim met"),
            "ResNet-50 training step, batch 128, eager: ours / plain": (1.02, "aim met"),
            "ResNet-50 inference, batch 1, graph: ours / plain": (1.02, "aim met"),
            "ResNet-50, bytes kept for backward: ours / plain": (1.03, "MISSED by 1%"),
        }
        for figure, (measured, verdict) in expected.items():
            assert found[figure].measured == pytest.approx(measured), figure
            assert found[figure].verdict == verdict, figure
        unknown = found["ResNet-50 training step, batch 128, compiled: ours / plain"]
        assert (unknown.measured, unknown.verdict) == (None, "not measured")

    def test_a_stage_that_is_missing_leaves_the_mean_open(self, store):
        name = next(name for name, job in store.jobs.items() if job["kind"] == "module")
        del store.jobs[name]["result"]["samples_us"]["call"]["cbam operator"]
        found = {target.figure: target.verdict for target in figures.targets(store, 128, 128)}
        assert found["forward, N=128: share of the copy limit, as called"] == "not measured"
        assert found["forward, N=128: share of the copy limit, GPU time alone"] != "not measured"


def test_our_resnet_is_torchvision_s():
    models = pytest.importorskip("torchvision.models")
    theirs, ours = models.resnet50().eval(), ResNet().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_no_two_jobs_have_one_name(scale):
    jobs = [*plan.checks(scale), *plan.timings(scale)]
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert {job.serves for job in plan.ahead(scale)} <= set(names)
    json.dumps([job.arguments for job in jobs])
