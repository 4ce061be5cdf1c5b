"""What is read from compiled code, and the table of figures that need no GPU."""

from __future__ import annotations

import pytest
import torch

from cbam.bench import code, targets
from cbam.bench.cases import Case, Result
from cbam.bench.code import copied_maps
from cbam.bench.config import BenchConfig
from cbam.bench.device import device_of
from cbam.bench.folder import load
from cbam.cli.main import main
from tests.ops.library import needs_operator, needs_triton

CASE = Case("code", "", "", (128, 256, 56, 56), "bfloat16", "channels_last", 1)
FORWARD = """
        buf3 = extern_kernels.convolution(buf2, buf1, stride=(1, 1))
        cpp_fused_forward_mean_2(buf5, buf6)
        buf4 = torch.ops.cbam.forward.default(buf3, primals_1, None)
"""
BACKWARD = """
        cpp_fused_add_backward_1(buf1, buf2)
        buf3 = torch.ops.cbam.backward.default(buf2, convolution_1, primals_1)
"""


class TestCopiedMaps:
    def test_none(self):
        assert copied_maps(FORWARD, BACKWARD) == 0

    @pytest.mark.parametrize(
        ("forward", "backward"),
        [
            (FORWARD.replace("default(buf3,", "default(buf9,"), BACKWARD),
            (
                FORWARD.replace("default(buf3,", "default(reinterpret_tensor(buf3, (2, 4), (4, 1), 0),"),
                BACKWARD,
            ),
            (FORWARD.replace("cpp_fused_forward_mean_2", "cpp_fused_forward_2"), BACKWARD),
            (FORWARD, BACKWARD.replace("convolution_1", "buf7")),
            (
                FORWARD,
                BACKWARD.replace("cpp_fused_add_backward_1", "triton_poi_fused_convolution_backward_1"),
            ),
        ],
    )
    def test_one(self, forward, backward):
        assert copied_maps(forward, backward) == 1

    def test_without_an_operator_nothing_is_counted(self):
        with pytest.raises(ValueError, match="0 operators in the forward pass"):
            copied_maps("", "")
        with pytest.raises(ValueError, match="1 operators in the forward pass, 0 in the backward pass"):
            copied_maps(FORWARD, "")


def test_copies_are_not_counted_in_code_that_was_not_compiled(monkeypatch):
    monkeypatch.setattr(code, "COUNTERS", {})
    with torch.compiler.set_stance("force_eager"):
        result = code.measure(CASE, BenchConfig(model="resnet18", threads=1), device_of("cpu"))
    why = "nothing was compiled: torch.compiler.set_stance('force_eager') is in force"
    assert result.notes == [f"copies: {why}"]


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(code, "COUNTERS", {"instructions": "tests.no_such", "host": "tests.ops.library"})
    monkeypatch.setattr(code, "copies_in", lambda config: 1 / 0)
    result = code.measure(CASE, BenchConfig(quick=True), device_of("cpu"))
    assert result.extra == {}
    assert result.notes[0].startswith("instructions: needs triton and the repository's tests.no_such")
    assert result.notes[-1] == "copies: ZeroDivisionError: division by zero"
    found = {target.figure: target.verdict for target in targets.targets([result])}
    assert set(found.values()) == {"not measured"}
    assert len(found) == 15


def test_verdicts():
    rows = [{"name": "pool", "loop": loop, "program": 9.0, "registers": 40} for loop in (4.0, 7.0)]
    rows.append({"name": "hidden", "loop": 0.0, "program": 0.0, "registers": 255})
    counted = {"launches": [5, 8], "rows": {"first": rows, "second": [{**rows[0], "registers": 130}]}}
    extra = {"instructions": counted, "host": {"bfloat16": {"block, forward": 40.0}}, "copies": 1}
    found = {target.figure: target for target in targets.targets([Result(CASE, extra=extra)])}
    verdicts = {figure: target.verdict for figure, target in found.items() if target.measured is not None}
    assert verdicts == {
        "pool, inference, instructions an element": "aim met",
        "pool, training, instructions an element": "must met",
        "launches forward, one block in training": "must met",
        "launches backward, one block in training": "MISSED by 14%",
        "host, stub launcher: block, forward / relu": "must met",
        "registers, worst pass over the map": "MISSED by 2%",
        "maps copied around ours, compiled training step": "MISSED",
    }


@pytest.mark.slow
@needs_operator
@needs_triton
def test_one_command_gives_every_figure_that_needs_no_gpu(tmp_path, capsys):
    options = ["--quick", "--memory-formats", "channels_last", "--threads", "1", "--output", str(tmp_path)]
    assert main(["bench", "--parts", "code", "host", "compiled", *options]) == 0
    results = load(tmp_path)
    assert not [note for result in results for note in result.notes]
    found = list(targets.targets(results))
    assert [target.figure for target in found if target.measured is None] == []
    assert len(found) == 19
    assert {target.figure: target.measured for target in found}[
        "maps copied around ours, compiled training step"
    ] == 0
    page = (tmp_path / "bench.md").read_text()
    for target in found:
        assert f"| {target.figure} |" in page
    shown = capsys.readouterr().out
    for word in {word for target in found for word in target.figure.split()}:
        assert word in shown, word
