"""Who is how much faster, the tables that say so, the picture, and the promises."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from cbam.bench import figure, targets
from cbam.bench.__main__ import main
from cbam.bench.cases import BOTH, FORWARD, Case, Result
from cbam.bench.figure import draw
from cbam.bench.folder import BenchFolder, load
from cbam.bench.report import markdown, sections, trust
from cbam.bench.summary import (
    best_compiled,
    best_compiled_over_ours,
    mean_of,
    mean_ratio,
    providers,
    select,
    textbook_over_ours,
    widest_quartiles,
)
from cbam.runs.tables import show

COMMITTED = Path(__file__).parents[2] / "docs" / "results" / "bench"


def without(results, *names):
    return [
        replace(r, samples_ms={k: v for k, v in r.samples_ms.items() if not any(n in k for n in names)})
        for r in results
    ]


def text_of(results, width=80):
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None)
    show(sections(results), console)
    console.print(trust(results))
    return stream.getvalue()


def test_ratios_of_the_modules(results):
    forward = select(results, "modules", FORWARD)
    assert len(forward) == 8
    assert mean_of(forward, textbook_over_ours) == pytest.approx(12.0)
    assert best_compiled(forward[0]) == "careful compiled"
    assert mean_of(forward, best_compiled_over_ours) == pytest.approx(3.0)
    assert mean_ratio(forward, "cbam operator") == pytest.approx(2.0)
    assert mean_ratio(select(results, "modules", BOTH), "cbam operator") == pytest.approx(6.0)


def test_without_the_operator_eager_is_ours_and_without_a_compiler_there_is_no_peer(results):
    bare = without(select(results, "modules", FORWARD), "operator", "compiled")
    assert mean_of(bare, textbook_over_ours) == pytest.approx(2.4)
    assert best_compiled(bare[0]) is None
    assert mean_of(bare, best_compiled_over_ours) is None
    assert mean_of([], textbook_over_ours) is None


def test_a_mean_over_some_of_the_shapes_is_not_given_out(results):
    forward = select(results, "modules", FORWARD)
    assert mean_of([*forward[:7], *without(forward[7:], "compiled")], best_compiled_over_ours) is None
    assert "timm compiled" not in providers([*forward[:7], *without(forward[7:], "timm compiled")])


def test_the_widest_quartiles():
    case = Case("modules", "", FORWARD, (8, 16, 7, 7), "float32", "contiguous", 2)
    found = widest_quartiles([Result(case, {"copy": [1.0, 1.0, 1.0], "textbook": [1.0, 2.0, 3.0]})])
    assert found is not None
    assert found[0] == pytest.approx(0.5)
    assert found[2] == "textbook"


@pytest.mark.parametrize("width", [80, 100])
def test_the_tables_fit_and_say_it(results, width):
    text = text_of(results, width)
    assert "…" not in text, "nothing is cut off"
    assert max(map(len, text.splitlines())) <= width
    rows = {tuple(line.split()) for line in text.splitlines()}
    assert ("cbam", "operator", *(["8.00", "2.00x"] * 4), "2.00x") in rows
    assert ("textbook", "/", "ours", *["12.0x"] * 5) in rows
    assert ("compiled", "/", "ours", *["3.00x"] * 5) in rows
    assert ("cbam", "operator", "210", "1.050", "210", "1.050", "1.015", "1.005") in rows
    assert ("forward", "contiguous", "84.3", "48.2", "1.75x", "1.50x") in rows
    assert ("time", "~", "size^", "1.00", "1.00", "1.00", "1.00") in rows
    assert ("cbam", "operator", "1.02", "2.50", "1.02", "2.50") in rows
    assert ("batch", "norm", "with", "CBAM", "18.0", "4.50x", "18.0", "4.50x") in rows
    assert "inference, contiguous: ours 1.050 (1.050 to 1.050), of the fastest 1.050" in text


def test_half_a_run_has_the_tables_of_that_half(results):
    text = text_of(select(results, "network"))
    assert "training" in text
    assert "ps per element" not in text
    assert text_of([]).strip() == ""
    assert "compiled / ours" not in text_of(without(results, "compiled"))


def test_the_picture_is_drawn_and_is_the_same_each_time(results, tmp_path):
    file = draw(results, tmp_path)
    with Image.open(file) as image:
        assert image.width > 1000
    svg = (tmp_path / "bench.svg").read_bytes()
    for name in (b"textbook compiled", b"forward+backward", b"times a plain copy", b"512x28"):
        assert name in svg, name
    draw(results, tmp_path)
    assert (tmp_path / "bench.svg").read_bytes() == svg
    assert draw(select(results, "network"), tmp_path) is None


def test_bars_stand_beside_their_names_also_where_somebody_is_missing(results):
    modules = select(results, "modules")
    forward, both = (select(modules, "modules", mode) for mode in (FORWARD, BOTH))
    both = without(both, "cbam compiled", "careful compiled")
    names = figure._names([forward, both])
    assert set(names) == set(figure._names([both, forward]))
    axes = Figure().add_subplot()
    figure._panel(axes, both, names)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == names
    drawn = {labels[round(bar.get_y() + bar.get_height() / 2)]: 1 + bar.get_width() for bar in axes.patches}
    assert set(drawn) == set(names) - {"cbam compiled", "careful compiled"}
    for name, length in drawn.items():
        assert length == pytest.approx(mean_ratio(both, name)), name


def test_promises_that_are_kept(results, tmp_path, capsys):
    found = {target.figure: target for target in targets.targets(results)}
    assert found["forward: textbook / ours"].verdict == "must met"
    assert found["forward: best compiled / ours"].verdict == "aim met"
    assert found["forward at 8x256x56², contiguous / copy"].measured == pytest.approx(2.0)
    assert found["inference / plain, contiguous"].verdict == "must met"
    assert found["training step / plain, channels_last"].verdict == "aim met"
    assert found["bytes saved / plain, contiguous"].measured == pytest.approx(1.015)
    assert found["1 thread / 2, forward, contiguous"].measured == pytest.approx(1.75)
    assert found["1x64x4², batch norm with CBAM / batch norm"].measured == pytest.approx(3.0)
    assert found["1x64x4², CBAM / relu, forward + backward"].verdict == "must met"
    BenchFolder(tmp_path).write_outputs(results, {})
    assert main([str(tmp_path)]) == 0
    assert "MISSED" not in capsys.readouterr().out


def test_promises_that_are_broken_or_not_measured(results, tmp_path, capsys):
    slow = [
        replace(
            r,
            samples_ms={
                k: [2 * t for t in v] if k == "cbam operator" else v for k, v in r.samples_ms.items()
            },
        )
        for r in results
    ]
    verdicts = {target.figure: target.verdict for target in targets.targets(slow)}
    assert verdicts["forward: textbook / ours"] == "MISSED by 40%"
    assert verdicts["forward at 8x256x56², contiguous / copy"] == "MISSED by 100%"
    assert verdicts["inference / plain, contiguous"] == "MISSED by 94%"
    only = select(results, "network")
    assert {t.verdict for t in targets.targets(only) if "ours" in t.figure} == {"not measured"}
    BenchFolder(tmp_path).write_outputs(only, {})
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path / "nothing")]) == 2
    assert "holds no run" in capsys.readouterr().out


def test_other_settings_than_the_promised_ones_are_named(results):
    assert list(targets.deviations(results)) == []
    other = [replace(r, case=replace(r.case, threads=1, shape=(2, *r.case.shape[1:]))) for r in results]
    told = "\n".join(targets.deviations(other))
    for words in ("threads 1 instead of 2", "module shapes", "images"):
        assert words in told


def test_the_figures_of_the_document_come_from_the_committed_results(capsys):
    assert main([str(COMMITTED)]) == 1
    told, document = capsys.readouterr().out, (COMMITTED.parent / "bench.md").read_text()
    for name, shown in (("forward: textbook / ours", "**6.3, missed**"), ("best compiled / ours", "3.4")):
        assert name in told
        assert shown in document
    found = {target.figure: target.measured for target in targets.targets(load(COMMITTED))}
    assert found["forward: textbook / ours"] == pytest.approx(6.3, abs=0.05)
    assert found["forward+backward: best compiled / ours"] == pytest.approx(3.4, abs=0.05)
    assert found["bytes saved / plain, contiguous"] == pytest.approx(1.005, abs=0.0005)


def test_the_page_has_promises_tables_and_what_is_missing(results):
    page = markdown(results, {"quick": True, "commit": "abc"}, {"python": "3.12"}, {"a case": "no time left"})
    for words in ("numbers mean nothing", "## Promises", "| forward: textbook / ours |  | >= 10 |", "commit abc",
                  "## forward, contiguous, N=8", "| a case | no time left |", "Widest quartiles"):  # fmt: skip
        assert words in page, words
